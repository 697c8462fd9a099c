"""ALBEF as a straight port of the reference, out of timm's and transformers' layers: the peer of the benchmarks.

It shares no code with mmzoo. What it does needlessly is what salesforce/ALBEF does: an image is repeated for each of
its texts, its keys and values are projected for each pair anew, padding is computed, negatives are drawn one by one,
the queue is copied every step, every position of every text gets its logits, the teacher follows tensor by tensor.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100


def additive(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L) bool to a mask of 0 and -inf, (B, 1, L, L), that transformers takes as it is."""
    mask = torch.zeros(len(keep), 1, 1, keep.shape[1], dtype=dtype).masked_fill(
        ~keep[:, None, None], -torch.inf
    )
    return mask.expand(-1, -1, keep.shape[1], -1)


class Words(nn.Module):
    """BERT's embeddings and layers, the last of which attend to an image, and the word head tied to the embeddings.

    Args:
        attention: transformers' `"eager"`, as ALBEF's own is written out, or `"sdpa"`.
        first: The first layer with cross-attention.
        cross_width: Width of the image's tokens.
        sizes: Sizes of BERT-base that differ, by the names of transformers' `BertConfig`.
    """

    def __init__(self, attention: str, *, first: int = 6, cross_width: int = 768, **sizes: int):
        from transformers import BertConfig
        from transformers.models.bert import modeling_bert as bert

        super().__init__()
        # a decoder, or transformers builds no cross-attention; what is causal is said by the mask
        config = BertConfig(
            is_decoder=True, layer_norm_eps=1e-12, attn_implementation=attention, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, **sizes,
        )  # fmt: skip
        self.first = first
        self.embeddings = bert.BertEmbeddings(config)
        self.layer = nn.ModuleList()
        for i in range(config.num_hidden_layers):
            config.add_cross_attention = i >= first
            layer = bert.BertLayer(config)
            if i >= first and cross_width != config.hidden_size:
                attend = layer.crossattention.self
                attend.key, attend.value = (nn.Linear(cross_width, config.hidden_size) for _ in range(2))
            self.layer.append(layer)
        self.transform = bert.BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def text(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Texts (T, L) alone, up to the first layer that reads an image."""
        x = self.embeddings(ids)
        mask = additive(keep, x.dtype)
        for layer in self.layer[: self.first]:
            x = layer(x, mask)
        return x

    def fusion(self, x: Tensor, keep: Tensor, image: Tensor) -> Tensor:
        """States (T, L, D) with the tokens (T, N, D) of as many images."""
        mask = additive(keep, x.dtype)
        for layer in self.layer[self.first :]:
            x = layer(x, mask, image)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """Words for every position."""
        return F.linear(self.transform(states), self.embeddings.word_embeddings.weight, self.bias)


class Port(nn.Module):
    """Both towers and all heads of pre-training."""

    def __init__(self, words: Words, vision: nn.Module, embed: int):
        super().__init__()
        self.visual_encoder, self.text_encoder = vision, words
        self.vision_proj = nn.Linear(vision.embed_dim, embed)
        self.text_proj = nn.Linear(words.transform.dense.in_features, embed)
        self.itm_head = nn.Linear(words.transform.dense.in_features, 2)
        self.log_scale = nn.Parameter(torch.tensor(0.07).log().neg())  # the original learns its inverse

    def image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and unit vectors."""
        tokens = self.visual_encoder.forward_features(pixels)
        return tokens, F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def words(self, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """States of the text half and unit vectors."""
        states = self.text_encoder.text(ids, keep)
        return states, F.normalize(self.text_proj(states[:, 0]), dim=-1)


class Drawn(NamedTuple):
    """What both sides of a comparison shall draw: negatives (B,) and hidden words (B, L)."""

    image: Tensor
    text: Tensor
    ids: Tensor
    labels: Tensor


def draw_one_by_one(weights_i2t: Tensor, weights_t2i: Tensor) -> tuple[list[int], list[int]]:
    """An image for each text and a text for each image, as ALBEF and BLIP draw them."""
    count = len(weights_i2t)
    images = [int(torch.multinomial(weights_t2i[b], 1).item()) for b in range(count)]
    return images, [int(torch.multinomial(weights_i2t[b], 1).item()) for b in range(count)]


class Training:
    """The reference's pre-training step. What it draws is drawn and paid for, then replaced by what shall be drawn."""

    def __init__(
        self, model: Port, queue: tuple[Tensor, Tensor], *, alpha: float, momentum: float, fused: bool | None
    ):
        self.model, self.teacher = model, copy.deepcopy(model).requires_grad_(False)
        self.images, self.texts = (x.T.clone() for x in queue)  # (E, Q), as the reference keeps them
        self.pointer, self.alpha, self.momentum = 0, alpha, momentum
        spared = ("cls_token", "pos_embed", "position_embeddings")
        decayed: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, p in model.named_parameters():
            decayed[p.ndim > 1 and not any(s in name for s in spared)].append(p)
        groups: list[dict[str, Any]] = [
            {"params": decayed[False], "weight_decay": 0.0},
            {"params": decayed[True]},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.02, fused=fused)

    def losses(
        self, pixels: Tensor, ids: Tensor, keep: Tensor, drawn: Drawn
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrast, matching, hidden words; moves the teacher before, and the queue on the way."""
        m, t, count = self.model, self.teacher, len(ids)
        for new, old in zip(m.parameters(), t.parameters(), strict=True):
            old.data = old.data * self.momentum + new.data * (1 - self.momentum)
        tokens, image = m.image(pixels)
        states, text = m.words(ids, keep)
        scale = m.log_scale.exp()
        with torch.no_grad():
            tokens_m, image_m = t.image(pixels)
            _, text_m = t.words(ids, keep)
            all_images = torch.cat([image_m.T, self.images.clone()], dim=1)
            all_texts = torch.cat([text_m.T, self.texts.clone()], dim=1)
            truth = torch.zeros(count, all_texts.shape[1], dtype=image.dtype).fill_diagonal_(1)
            target_i = self.alpha * (scale * image_m @ all_texts).softmax(1) + (1 - self.alpha) * truth
            target_t = self.alpha * (scale * text_m @ all_images).softmax(1) + (1 - self.alpha) * truth
        sim_i, sim_t = scale * image @ all_texts, scale * text @ all_images
        loss_i = -(sim_i.log_softmax(1) * target_i).sum(1).mean()
        loss_t = -(sim_t.log_softmax(1) * target_t).sum(1).mean()
        self._enqueue(image_m, text_m)

        positive = m.text_encoder.fusion(states, keep, tokens)
        with torch.no_grad():
            weights = [sim[:, :count].softmax(1).fill_diagonal_(0) for sim in (sim_i, sim_t)]
            draw_one_by_one(*weights)
        images = torch.stack([tokens[i] for i in drawn.image.tolist()])
        texts = torch.stack([states[i] for i in drawn.text.tolist()])
        keeps = torch.stack([keep[i] for i in drawn.text.tolist()])
        negative = m.text_encoder.fusion(
            torch.cat([states, texts]), torch.cat([keep, keeps]), torch.cat([images, tokens])
        )
        first = torch.cat([positive[:, 0], negative[:, 0]])
        fits = torch.cat([torch.ones(count, dtype=torch.long), torch.zeros(2 * count, dtype=torch.long)])
        matching = F.cross_entropy(m.itm_head(first), fits)

        hide(ids, keep, m.text_encoder.bias.shape[0])
        logits = m.text_encoder.logits(
            m.text_encoder.fusion(m.text_encoder.text(drawn.ids, keep), keep, tokens)
        )
        with torch.no_grad():
            read = t.text_encoder.fusion(t.text_encoder.text(drawn.ids, keep), keep, tokens_m)
            soft = t.text_encoder.logits(read).softmax(-1)
        hard = F.cross_entropy(logits.flatten(0, 1), drawn.labels.flatten(), ignore_index=IGNORED)
        distilled = -(logits.log_softmax(-1) * soft).sum(-1)[drawn.labels != IGNORED].mean()
        return (loss_i + loss_t) / 2, matching, (1 - self.alpha) * hard + self.alpha * distilled

    def step(self, pixels: Tensor, ids: Tensor, keep: Tensor, drawn: Drawn) -> list[Tensor]:
        """One whole step; the three losses."""
        with torch.no_grad():
            self.model.log_scale.clamp_(0.6931, 6.9078)
        losses = self.losses(pixels, ids, keep, drawn)
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        return [loss.detach() for loss in losses]

    def _enqueue(self, image: Tensor, text: Tensor) -> None:
        end = self.pointer + len(image)
        assert end <= self.images.shape[1], "the reference's queue is a multiple of its batch"
        self.images[:, self.pointer : end], self.texts[:, self.pointer : end] = image.T, text.T
        self.pointer = end % self.images.shape[1]


def hide(ids: Tensor, keep: Tensor, words: int, mask: int = 103, p: float = 0.15) -> tuple[Tensor, Tensor]:
    """Hide words as the reference does; the first token of each text and padding stay."""
    chosen = torch.bernoulli(torch.full(ids.shape, p)).bool() & keep
    chosen[:, 0] = False
    labels, ids = ids.masked_fill(~chosen, IGNORED), ids.clone()
    behind = torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & chosen
    ids[behind] = mask
    other = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & chosen & ~behind
    ids[other] = torch.randint(words, ids.shape)[other]
    return ids, labels
