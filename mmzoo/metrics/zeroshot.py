"""Zero-shot classifiers: class names and prompt templates to one unit vector per class.

Prompts are short (ImageNet's 80 templates: about 10 tokens) while towers allow 77, so padding is most of
what a text tower computes. Here identical texts are encoded once, and texts are sorted by length and cut
into chunks no longer than their longest. A text tower that masks its padding, or is causal and pooled at the
end token, gives the same vectors either way; one whose padding is part of the function says so in
`TextSpec.pad_to_context` and gets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mmzoo.processing.templates import expand

if TYPE_CHECKING:
    from mmzoo.spec import TextSpec

__all__ = ["EncodesText", "TokenizesText", "build_classifier", "encode_texts"]

# Classes are taken in slabs of about so many prompts: all 1,000 ImageNet classes x 80 templates need three.
SLAB = 32_768


class EncodesText(Protocol):
    """The half of `EmbedsPairs` that is needed here."""

    def encode_text(self, ids: Tensor, keep: Tensor) -> Tensor:
        """(T, L) int64 ids and (T, L) bool keep to (T, E)."""
        ...


class TokenizesText(Protocol):
    """The half of `Processor` that is needed here."""

    @property
    def text_spec(self) -> TextSpec | None:
        """What the model expects of texts, or None where it reads none."""
        ...

    def texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """T texts to ids (T, L) int64 and keep (T, L) bool, padded on the right to the longest."""
        ...


@torch.no_grad()
def encode_texts(
    model: EncodesText,
    processor: TokenizesText,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Embed texts, each distinct one once, in chunks of similar length.

    Args:
        model: Encodes texts.
        processor: The model's own.
        texts: T texts, at least one.
        batch_size: Texts per chunk.
        device: Where the model is; the CPU when None.

    Returns:
        (T, E) what `model.encode_text` gives for each text, in the order of `texts`.
    """
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids, keep = processor.texts(list(place))  # (U, L) both
    lengths = keep.sum(1)
    padded = processor.text_spec is not None and processor.text_spec.pad_to_context
    # Longest first, so that running out of memory shows at once.
    order = lengths.argsort(descending=True, stable=True)
    out: Tensor | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = ids.shape[1] if padded else int(lengths[rows[0]])
        embedded = model.encode_text(ids[rows, :width].to(device), keep[rows, :width].to(device))
        if out is None:
            out = embedded.new_empty(len(order), *embedded.shape[1:])
        out[rows.to(out.device)] = embedded
    assert out is not None, "no texts"
    if len(place) == len(texts):
        return out
    return out[torch.tensor([place[text] for text in texts], device=out.device)]


@torch.no_grad()
def build_classifier(
    model: EncodesText,
    processor: TokenizesText,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Build a zero-shot classifier from class names by template ensembling (CLIP, section 3.1.4).

    Every template's embedding is scaled to unit length, the class is their mean, scaled to unit length again.

    Args:
        model: Encodes texts.
        processor: The model's own.
        names: C class names, as they shall stand in a sentence.
        templates: K texts in which `{}` stands for the name.
        batch_size: Texts per chunk.
        device: Where the model is; the CPU when None.

    Returns:
        (C, E) unit vectors on the model's device: `model.similarity(image, classifier)` gives (B, C) cosines.
    """
    step = max(1, SLAB // len(templates))
    rows = []
    for start in range(0, len(names), step):
        slab = names[start : start + step]
        texts = expand(slab, templates)
        embedded = encode_texts(model, processor, texts, batch_size=batch_size, device=device)
        unit = F.normalize(embedded, dim=-1).reshape(len(slab), len(templates), -1)  # (c, K, E)
        rows.append(F.normalize(unit.mean(1), dim=-1))
    return torch.cat(rows)
