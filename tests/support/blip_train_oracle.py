"""BLIP for pre-training, of other libraries' layers: the image tower from timm, everything of the text from BERT's.

It shares no code with mmzoo. Faces and losses follow salesforce/BLIP's description of itself; images are projected anew
wherever they are read. transformers' own BLIP has neither the teacher nor the tied decoder.
"""

from __future__ import annotations

import torch
from albef_oracle import (
    CONTEXT,
    EMBED,
    HEADS,
    IMAGE,
    PATCH,
    VISION,
    VOCAB,
    WIDTH,
    _bert,
    _layer,
    _linear,
    _put,
    additive,
    copy_vision,
)
from torch import Tensor, nn
from torch.nn import functional as F

DEPTH, BEGIN, ENCODE, END, PAD = 3, 57, 58, 3, 0


def led_by(token: int, ids: Tensor) -> Tensor:
    out = ids.clone()
    out[:, 0] = token
    return out


class _NoTypes(nn.Module):
    """Stands where BERT has a table of token types."""

    def forward(self, types: Tensor) -> float:
        return 0.0


class Face(nn.Module):
    """BERT with cross-attention in every layer, and without token types."""

    def __init__(self):
        from transformers.models.bert.modeling_bert import BertEmbeddings

        super().__init__()
        config = _bert(DEPTH)
        self.embeddings = BertEmbeddings(config)
        self.embeddings.token_type_embeddings = _NoTypes()
        self.layer = nn.ModuleList(_layer(config, cross_width=VISION) for _ in range(DEPTH))

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.layer:
            x = layer(x, mask) if image is None else layer(x, mask, image, None)
        return x


class Oracle(nn.Module):
    def __init__(self):
        from timm.models.vision_transformer import VisionTransformer
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

        super().__init__()
        self.visual_encoder = VisionTransformer(
            img_size=IMAGE, patch_size=PATCH, embed_dim=VISION, depth=2, num_heads=3, mlp_ratio=2, num_classes=0,
            norm_layer=lambda width, **_: nn.LayerNorm(width, eps=1e-6),
        )  # fmt: skip
        self.text_encoder, self.text_decoder = Face(), Face()
        self.text_decoder.embeddings = self.text_encoder.embeddings
        for ours, shared in zip(self.text_decoder.layer, self.text_encoder.layer, strict=True):
            for name in ("crossattention", "intermediate", "output"):
                setattr(ours, name, getattr(shared, name))
        self.transform = BertPredictionHeadTransform(_bert(DEPTH))
        self.bias = nn.Parameter(torch.zeros(VOCAB))
        self.vision_proj, self.text_proj = nn.Linear(VISION, EMBED), nn.Linear(WIDTH, EMBED)
        self.itm_head = nn.Linear(WIDTH, 2)
        self.log_scale = nn.Parameter(torch.tensor(0.07).log().neg())

    def tokens(self, images: Tensor) -> Tensor:
        return self.visual_encoder.forward_features(images)

    def image_feat(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def text_feat(self, ids: Tensor, keep: Tensor) -> Tensor:
        return F.normalize(self.text_proj(self.text_encoder(ids, additive(keep))[:, 0]), dim=-1)

    def match(self, ids: Tensor, keep: Tensor, tokens: Tensor) -> Tensor:
        return self.itm_head(self.text_encoder(led_by(ENCODE, ids), additive(keep), tokens)[:, 0])

    def write(self, ids: Tensor, keep: Tensor, tokens: Tensor) -> Tensor:
        """Logits (T, L, V) of the token after each."""
        x = self.text_decoder(led_by(BEGIN, ids), additive(keep, causal=True), tokens)
        return self.transform(x) @ self.text_encoder.embeddings.word_embeddings.weight.T + self.bias

    def lm_loss(self, ids: Tensor, keep: Tensor, tokens: Tensor, *, given: int = 0, smoothing: float = 0.1):
        """As the reference's labels: -100 at padding and at the first `given` + 1 tokens."""
        targets = ids.masked_fill(~keep, -100)
        targets[:, : given + 1] = -100
        logits = self.write(ids, keep, tokens)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=smoothing)


def _face(ours: nn.Module, theirs: Face) -> None:
    _put(ours.embed.tok.weight, theirs.embeddings.word_embeddings.weight)
    _put(ours.embed.pos.weight, theirs.embeddings.position_embeddings.weight)
    _linear(ours.embed.norm, theirs.embeddings.LayerNorm)
    for a, b in zip(ours.blocks, theirs.layer, strict=True):
        s = b.attention.self
        _linear(a.attn.qkv, s.query, s.key, s.value)
        _linear(a.attn.out, b.attention.output.dense)
        _linear(a.attn_norm, b.attention.output.LayerNorm)
        s = b.crossattention.self
        _linear(a.cross.q, s.query)
        _linear(a.cross.kv, s.key, s.value)
        _linear(a.cross.out, b.crossattention.output.dense)
        _linear(a.cross_norm, b.crossattention.output.LayerNorm)
        _linear(a.mlp.fc1, b.intermediate.dense)
        _linear(a.mlp.fc2, b.output.dense)
        _linear(a.mlp_norm, b.output.LayerNorm)


def copy_oracle(ours: nn.Module, oracle: Oracle) -> None:
    """Everything that our model has."""
    copy_vision(ours.vision, oracle.visual_encoder)
    if hasattr(ours, "match_head"):
        _face(ours.text, oracle.text_encoder)
        _linear(ours.vision_proj, oracle.vision_proj)
        _linear(ours.text_proj, oracle.text_proj)
        _linear(ours.match_head, oracle.itm_head)
        _put(ours.logit_scale, oracle.log_scale)
    if hasattr(ours, "decoder"):
        _face(ours.decoder, oracle.text_decoder)
        _linear(ours.lm.dense, oracle.transform.dense)
        _linear(ours.lm.norm, oracle.transform.LayerNorm)
        _put(ours.lm.bias, oracle.bias)


def config(*, vocab: int = VOCAB, dropout: float = 0.0, context: int = CONTEXT, **changes):
    """Ours of the oracle's shapes."""
    from mmzoo.models.blip import BLIPConfig
    from mmzoo.models.writing import SpecialTokens
    from mmzoo.spec import ImageSpec, TextSpec
    from mmzoo.towers import VisionConfig
    from mmzoo.towers.text import bert_text

    vision = VisionConfig(
        image_size=IMAGE, patch=PATCH, width=VISION, depth=2, heads=3, hidden=2 * VISION, norm_eps=1e-6,
        act="gelu", init="timm", resample="albef",
    )  # fmt: skip
    text = bert_text(
        vocab=vocab, context=CONTEXT, width=WIDTH, depth=DEPTH, heads=HEADS, hidden=48, token_types=0,
        cross_layers=tuple(range(DEPTH)), cross_width=VISION, dropout=dropout, attn_dropout=dropout,
    )  # fmt: skip
    return BLIPConfig(
        vision, text, ImageSpec(IMAGE, fit="squash"), TextSpec("tiny", context, vocab), embed=EMBED,
        tokens=SpecialTokens(begin=BEGIN, encode=ENCODE, end=END, pad=PAD), **changes,
    )  # fmt: skip
