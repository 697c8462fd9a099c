"""A second, closer look at the best few: image-text matching of pairs, each picture encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from mmzoo.apps.opening import Opened, Progress, finite
from mmzoo.data.reader import Broken
from mmzoo.models.capabilities import SharesImages
from mmzoo.processing.image import BadImage

__all__ = ["match_pairs", "probability"]


def probability(odds: float) -> float:
    """Turn log-odds into a probability."""
    return float(torch.tensor(odds, dtype=torch.float64).sigmoid())


def match_pairs(
    opened: Opened,
    pairs: Sequence[tuple[int, int]],
    picture: Callable[[int], Image.Image],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int,
    broken: list[Broken],
    progress: Progress | None = None,
) -> dict[tuple[int, int], float]:
    """Say for pairs of picture and text how sure the model is that they match.

    Args:
        opened: A model that `ScoresPairs`. Where it `SharesImages` too, each picture's keys and values are made once.
        pairs: Indices of picture and text.
        picture: Reads a picture.
        names: Keys of the pictures, for messages.
        texts: The texts.
        batch_size: Pictures, and pairs, per forward pass.
        broken: Grows by each picture that cannot be read.
        progress: Called with the number of pairs done and of all.

    Returns:
        For each pair the log-odds of a match, the logit of column 1 less that of column 0; pairs whose picture cannot
        be read are left out.
    """
    texts_of: dict[int, list[int]] = {}
    for image, text in dict.fromkeys(pairs):
        texts_of.setdefault(image, []).append(text)
    wanted = sorted(texts_of)
    odds: dict[tuple[int, int], float] = {}
    for start in range(0, len(wanted), batch_size):
        images, there = [], []
        for place in wanted[start : start + batch_size]:
            try:
                images.append(picture(place))
                there.append(place)
            except OSError as error:
                broken.append(Broken(names[place], error.strerror or str(error)))
            except BadImage as error:
                broken.append(Broken(names[place], str(error).removeprefix("the image ").rstrip(".")))
        if not images:
            continue
        shared = opened.processor.images(images).to(opened.device)
        if isinstance(opened.model, SharesImages):
            shared = opened.model.project_images(shared)
        rows = [(row, place, text) for row, place in enumerate(there) for text in texts_of[place]]
        for part in (rows[i : i + batch_size] for i in range(0, len(rows), batch_size)):
            ids, keep = opened.processor.texts([texts[text] for _, _, text in part])
            index = torch.tensor([row for row, _, _ in part], device=opened.device)
            logits = opened.model.match(
                shared, ids.to(opened.device), keep.to(opened.device), index
            )  # (T, 2)
            margin = finite(logits, opened).double().diff(dim=1).flatten().tolist()
            odds |= {(place, text): value for (_, place, text), value in zip(part, margin, strict=True)}
            if progress is not None:
                progress(len(odds), sum(map(len, texts_of.values())))
    return odds
