"""ALBEF written from other libraries' layers: the image tower from timm, everything of the text from transformers.

It shares no code with mmzoo. Modes, twin layers, decoder and losses follow salesforce/ALBEF's description of itself.
Names are the reference's, so what reads here as `itm_head` is there `itm_head`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VISION, WIDTH, HEADS, VOCAB, CONTEXT, EMBED = 24, 32, 4, 61, 20, 16
IMAGE, PATCH = 16, 8


def _bert(depth: int):
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=depth, num_attention_heads=HEADS,
        intermediate_size=48, max_position_embeddings=CONTEXT, is_decoder=True, layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    config.is_decoder = True
    return config


def _layer(config, *, cross_width: int | None) -> nn.Module:
    from transformers.models.bert.modeling_bert import BertLayer

    config.add_cross_attention = cross_width is not None
    layer = BertLayer(config)
    if cross_width is not None:
        layer.crossattention.self.key = nn.Linear(cross_width, WIDTH)
        layer.crossattention.self.value = nn.Linear(cross_width, WIDTH)
    return layer


def additive(keep: Tensor, *, causal: bool = False) -> Tensor:
    """A mask of 0 and -inf, (B, 1, L or 1, L), that transformers takes as it is."""
    length = keep.shape[1]
    seen = keep[:, None, None, :]
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)


class Words(nn.Module):
    """Embeddings, layers, and the word head whose table is the embeddings'."""

    def __init__(self, depth: int, first: int, cross_width: int):
        from transformers.models.bert.modeling_bert import BertEmbeddings, BertPredictionHeadTransform

        super().__init__()
        config = _bert(depth)
        self.first = first
        self.embeddings = BertEmbeddings(config)
        self.layer = nn.ModuleList(
            _layer(config, cross_width=cross_width if i >= first else None) for i in range(depth)
        )
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(VOCAB))

    def text(self, ids: Tensor, keep: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.layer[: self.first]:
            x = layer(x, additive(keep))
        return x

    def fusion(self, x: Tensor, mask: Tensor, image: Tensor | list[Tensor], image_mask=None) -> Tensor:
        for i, layer in enumerate(self.layer[self.first :]):
            context = image[i % 2] if isinstance(image, list) else image
            x = layer(x, mask, context, image_mask)
        return x

    def multimodal(self, ids: Tensor, keep: Tensor, image: Tensor | list[Tensor]) -> Tensor:
        return self.fusion(self.text(ids, keep), additive(keep), image)

    def logits(self, states: Tensor) -> Tensor:
        return self.transform(states) @ self.embeddings.word_embeddings.weight.T + self.bias


class Oracle(nn.Module):
    """The image tower and the text transformer with every head that any of the models has."""

    def __init__(self, *, twin: bool = False):
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.visual_encoder = VisionTransformer(
            img_size=IMAGE, patch_size=PATCH, embed_dim=VISION, depth=2, num_heads=3, mlp_ratio=2, num_classes=0,
            norm_layer=lambda width, **_: nn.LayerNorm(width, eps=1e-6),
        )  # fmt: skip
        self.text_encoder = Words(6 if twin else 4, 2, VISION)
        if twin:
            layers = self.text_encoder.layer
            for i in (2, 4):
                layers[i].crossattention.self.key = layers[i + 1].crossattention.self.key
                layers[i].crossattention.self.value = layers[i + 1].crossattention.self.value
        self.vision_proj, self.text_proj = nn.Linear(VISION, EMBED), nn.Linear(WIDTH, EMBED)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(WIDTH, 2)
        self.ta_head = nn.Linear(WIDTH, 3)
        self.cls_head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 if twin else 3))
        self.text_decoder = Words(2, 0, WIDTH)

    def tokens(self, images: Tensor) -> Tensor:
        return self.visual_encoder.forward_features(images)

    def image_feat(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def text_feat(self, states: Tensor) -> Tensor:
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    def decode(self, answer: Tensor, answer_keep: Tensor, question: Tensor, question_keep: Tensor) -> Tensor:
        """Logits (R, L, V) of the token after each."""
        d = self.text_decoder
        mask = additive(answer_keep, causal=True)
        return d.logits(d.fusion(d.embeddings(answer), mask, question, additive(question_keep)))


# -- copying into mmzoo's modules -----------------------------------------------------------------------------------


def _put(target: Tensor, *parts: Tensor) -> None:
    source = torch.cat(parts) if len(parts) > 1 else parts[0]
    assert target.shape == source.shape, (target.shape, source.shape)
    with torch.no_grad():
        target.copy_(source)


def _linear(target: nn.Module, *sources: nn.Module) -> None:
    _put(target.weight, *(s.weight for s in sources))
    _put(target.bias, *(s.bias for s in sources))


def copy_vision(ours: nn.Module, theirs: nn.Module) -> None:
    """timm's tower into ours."""
    _put(ours.cls, theirs.cls_token)
    _put(ours.pos, theirs.pos_embed)
    _linear(ours.patch.proj, theirs.patch_embed.proj)
    for a, b in zip(ours.blocks, theirs.blocks, strict=True):
        _linear(a.attn_norm, b.norm1)
        _linear(a.attn.qkv, b.attn.qkv)
        _linear(a.attn.out, b.attn.proj)
        _linear(a.mlp_norm, b.norm2)
        _linear(a.mlp.fc1, b.mlp.fc1)
        _linear(a.mlp.fc2, b.mlp.fc2)
    _linear(ours.norm, theirs.norm)


def copy_words(ours: nn.Module, theirs: Words, head: nn.Module | None = None) -> None:
    """transformers' layers into our text transformer, and the word head into ours."""
    _put(ours.embed.tok.weight, theirs.embeddings.word_embeddings.weight)
    _put(ours.embed.pos.weight, theirs.embeddings.position_embeddings.weight)
    _put(ours.embed.token_type.weight, theirs.embeddings.token_type_embeddings.weight)
    _linear(ours.embed.norm, theirs.embeddings.LayerNorm)
    for a, b in zip(ours.blocks, theirs.layer, strict=True):
        s = b.attention.self
        _linear(a.attn.qkv, s.query, s.key, s.value)
        _linear(a.attn.out, b.attention.output.dense)
        _linear(a.attn_norm, b.attention.output.LayerNorm)
        if hasattr(b, "crossattention"):
            s = b.crossattention.self
            _linear(a.cross.q, s.query)
            _linear(a.cross.kv, s.key, s.value)
            _linear(a.cross.out, b.crossattention.output.dense)
            _linear(a.cross_norm, b.crossattention.output.LayerNorm)
        _linear(a.mlp.fc1, b.intermediate.dense)
        _linear(a.mlp.fc2, b.output.dense)
        _linear(a.mlp_norm, b.output.LayerNorm)
    if head is not None:
        _linear(head.dense, theirs.transform.dense)
        _linear(head.norm, theirs.transform.LayerNorm)
        _put(head.bias, theirs.bias)


def copy_oracle(ours: nn.Module, oracle: Oracle) -> None:
    """Everything that our model has."""
    copy_vision(ours.vision, oracle.visual_encoder)
    copy_words(ours.text, oracle.text_encoder, getattr(ours, "mlm", None))
    for name, source in (("vision_proj", oracle.vision_proj), ("text_proj", oracle.text_proj),
                         ("match_head", oracle.itm_head), ("assign_head", oracle.ta_head)):  # fmt: skip
        if hasattr(ours, name):
            _linear(getattr(ours, name), source)
    if hasattr(ours, "logit_scale"):
        _put(ours.logit_scale, -oracle.temp.log())
    for name in ("compare_head", "entail_head"):
        if hasattr(ours, name):
            _linear(getattr(ours, name).fc1, oracle.cls_head[0])
            _linear(getattr(ours, name).fc2, oracle.cls_head[2])
    if hasattr(ours, "decoder"):
        copy_words(ours.decoder, oracle.text_decoder, ours.lm)


# -- the same shapes as mmzoo's configs -----------------------------------------------------------------------------


def towers(*, twin: bool = False, dropout: float = 0.0) -> dict:
    """Vision, text, image and text_input of a config with the oracle's shapes."""
    from mmzoo.spec import ImageSpec, TextSpec
    from mmzoo.towers import VisionConfig
    from mmzoo.towers.text import bert_text

    depth = 6 if twin else 4
    return {
        "vision": VisionConfig(
            image_size=IMAGE, patch=PATCH, width=VISION, depth=2, heads=3, hidden=2 * VISION, norm_eps=1e-6,
            act="gelu", init="timm", resample="albef",
        ),
        "text": bert_text(
            vocab=VOCAB, context=CONTEXT, width=WIDTH, depth=depth, heads=HEADS, hidden=48,
            cross_layers=tuple(range(2, depth)), cross_width=VISION, dropout=dropout, attn_dropout=dropout,
        ),
        "image": ImageSpec(IMAGE, fit="squash"),
        "text_input": TextSpec("tiny", CONTEXT, VOCAB, sep=False, clean="albef"),
    }  # fmt: skip


def decoder_config():
    """The answer decoder's."""
    from mmzoo.towers.text import bert_text

    return bert_text(
        vocab=VOCAB, context=CONTEXT, width=WIDTH, depth=2, heads=HEADS, hidden=48, cross_layers=(0, 1),
        cross_width=WIDTH, causal=True, dropout=0.0, attn_dropout=0.0,
    )  # fmt: skip
