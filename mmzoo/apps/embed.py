"""`mmzoo embed`: pictures and texts to vectors in one file, safetensors or Parquet."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.apps.embeddings import NO_PYARROW, SUFFIXES, write_embeddings
from mmzoo.apps.opening import ModelLike, Progress, finite, open_model, require
from mmzoo.apps.pictures import Files, find_pictures, read_batches
from mmzoo.data.open import open_source
from mmzoo.data.reader import Broken
from mmzoo.data.sample import Source
from mmzoo.errors import UsageError
from mmzoo.metrics.zeroshot import encode_texts
from mmzoo.models.capabilities import EmbedsPairs

__all__ = ["Embedded", "embed"]


class Embedded(NamedTuple):
    """What was written.

    Attributes:
        out: The file.
        images: Number of pictures in it.
        texts: Number of texts in it.
        width: Width of the vectors.
        broken: Pictures that could not be read, and why.
    """

    out: Path
    images: int
    texts: int
    width: int
    broken: list[Broken]


def embed(
    model: ModelLike,
    images: Sequence[str | Path] = (),
    *,
    out: str | Path,
    texts: Sequence[str] = (),
    data: str | Path | None = None,
    split: str | None = None,
    pretrained: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embedded:
    """Embed pictures and texts and write the vectors to a file.

    A model that embeds pairs (CLIP) gives unit vectors in the space that pictures and texts share. A classifier
    (ViT) gives its pooled features, for pictures only, at the length they have.

    - `out.safetensors`: tensors `image` (B, E) and `text` (T, E), float32, whichever there are. The file's
      metadata holds `image_keys` and `texts` as JSON lists in the order of the rows, and the model's name and
      weights hash: `json.loads(safe_open(out, "pt").metadata()["image_keys"])`. A header takes 100 MB at most, so a
      list of more than 50 MB is a uint8 tensor of that name instead.
    - `out.parquet` (extra `parquet`): columns `kind` (`"image"` or `"text"`), `key` (the picture's key or the text
      itself) and `embedding`, a list of E float32.

    The file appears whole or not at all, and one that exists is not replaced unless that is asked for.

    Args:
        model: A name of the zoo, a folder written by `mmzoo.save`, or a pair of model and processor.
        images: Picture files, folders of them, shell patterns.
        out: The file to write; its ending says the format.
        texts: Texts.
        data: A data set to embed, pictures and texts; anything that `open_source` takes.
        split: Its split.
        pretrained: Weights for a model given by name.
        batch_size: Pictures, and texts, per forward pass.
        device: Where to compute; a CUDA device if there is one.
        overwrite: Replace `out` if it exists.
        progress: Called with the number of pictures done and of all.

    Returns:
        What was written.

    Raises:
        UsageError: Nothing to embed, unknown ending, or `out` exists.
        ZooError: The model cannot do it, or no picture could be read.
    """
    target = _target(Path(out), overwrite)
    if data is not None and images:
        raise UsageError("give pictures or --data, not both.")
    if data is None and not images and not texts:
        raise UsageError("nothing to embed: give pictures, --texts or --data.")
    opened = open_model(model, pretrained=pretrained, device=device)
    source: Source = open_source(data, split=split) if data is not None else Files(find_pictures(images))
    paired = isinstance(opened.model, EmbedsPairs)
    if texts:
        require(opened, "embeds pairs", "embed texts")
    elif not paired:
        require(opened, "classifies", "embed pictures")
    words = list(texts)
    keys: list[str] = []
    rows: list[Tensor] = []
    broken: list[Broken] = []
    with torch.inference_mode():
        for batch in read_batches(source, batch_size, broken) if len(source) else ():
            pixels = opened.processor.images(batch.images).to(opened.device)
            vectors = opened.model.encode_image(pixels) if paired else opened.model.features(pixels)[1]
            rows.append(finite(vectors, opened).float().cpu())
            keys += [sample.key for sample in batch.samples]
            if paired:
                words += [text for sample in batch.samples for text in sample.texts]
            if progress is not None:
                progress(batch.places[-1] + 1, len(source))
        words = list(dict.fromkeys(words))
        tensors = {"image": torch.cat(rows)} if rows else {}
        if words:
            embedded = encode_texts(
                opened.model, opened.processor, words, batch_size=batch_size, device=opened.device
            )
            tensors["text"] = finite(embedded, opened).float().cpu()
    write_embeddings(
        target,
        tensors,
        {"image": keys, "text": words},
        model=opened.name,
        weights_sha256=opened.digest(),
    )
    width = next(iter(tensors.values())).shape[-1]
    return Embedded(target, len(keys), len(words), width, broken)


def _target(out: Path, overwrite: bool) -> Path:
    """Refuse what could not be written, before hours of computing."""
    if out.suffix not in SUFFIXES:
        raise UsageError(
            f"{out}: embeddings are written as .safetensors or .parquet; choose one of the endings."
        )
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(NO_PYARROW)
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file.")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; --overwrite replaces it.")
    return out
