"""A second, closer look at the best few: image-text matching of pairs, each picture and each text encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmzoo.apps.opening import Opened, Progress, finite
from mmzoo.data.reader import Broken
from mmzoo.models.capabilities import SharesImages, SharesTexts
from mmzoo.processing.image import BadImage

__all__ = ["TextSide", "match_logits", "match_pairs", "probability", "shared_pictures"]

PICTURES, PAIRS = 8, 256
"""Pictures whose keys and values are held at once (21 MB each for ALBEF at 384 pixels), and pairs per forward pass."""
STATES = 2**30
"""Most bytes of texts read in advance; where they would take more, each is read again with every picture."""


def probability(odds: float) -> float:
    """Turn log-odds into a probability."""
    return float(torch.tensor(odds, dtype=torch.float64).sigmoid())


def match_logits(
    opened: Opened,
    image: Tensor,
    text: Tensor,
    picture: Callable[[int], Image.Image],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int,
    broken: list[Broken],
    progress: Progress | None = None,
) -> Tensor:
    """Match pairs of picture and text, picture by picture.

    Where the model `SharesImages`, a picture is encoded and projected once for all its texts; where it `SharesTexts`, a
    text is read once for all its pictures. Nothing is kept of a picture once its pairs are done, so memory does not
    grow with the number of pictures.

    Args:
        opened: A model that `ScoresPairs`.
        image: (P,) int64, the picture of each pair, ascending.
        text: (P,) int64, its text.
        picture: Reads a picture.
        names: Keys of the pictures, for messages.
        texts: The texts.
        batch_size: Most pictures per forward pass; and most pairs, where a model reads the picture again in each.
        broken: Grows by each picture that cannot be read.
        progress: Called with the number of pairs done and of all.

    Returns:
        (P, 2) logits on the CPU, column 1 = match; nan where the picture cannot be read.
    """
    logits = torch.full((len(image), 2), torch.nan, dtype=torch.float64)
    used, place = torch.unique(text.cpu(), return_inverse=True)
    read = TextSide(opened, [texts[i] for i in used.tolist()]) if len(used) else None
    wanted, counts = torch.unique_consecutive(image.cpu(), return_counts=True)
    ends = counts.cumsum(0)
    step = min(batch_size, PICTURES)
    most = PAIRS if isinstance(opened.model, SharesImages) else batch_size  # whole pictures are long
    done = 0
    for start in range(0, len(wanted), step):
        images, rows, pairs = [], [], []
        for index in range(start, min(start + step, len(wanted))):
            which = int(wanted[index])
            try:
                images.append(picture(which))
            except OSError as error:
                broken.append(Broken(names[which], error.strerror or str(error)))
                continue
            except BadImage as error:
                broken.append(Broken(names[which], str(error).removeprefix("the image ").rstrip(".")))
                continue
            count, end = int(counts[index]), int(ends[index])
            rows.append(torch.full((count,), len(images) - 1))
            pairs.append(torch.arange(end - count, end))
        if not images:
            continue
        assert read is not None
        shared = shared_pictures(opened, images)
        for some, row in zip(torch.cat(pairs).split(most), torch.cat(rows).split(most), strict=True):
            found = read.match(shared, place[some], row.to(opened.device))  # (T, 2)
            logits[some] = finite(found, opened).double().cpu()
            done += len(some)
            if progress is not None:
                progress(done, len(image))
        del shared  # or the next pictures' would stand beside them
    return logits


def shared_pictures(opened: Opened, images: Sequence[Image.Image]) -> Any:
    """What the model makes of pictures once for all texts that it reads with them; their pixels if that is nothing."""
    pixels = opened.processor.images(images).to(opened.device)
    return opened.model.project_images(pixels) if isinstance(opened.model, SharesImages) else pixels


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
        opened: A model that `ScoresPairs`.
        pairs: Indices of picture and text.
        picture: Reads a picture.
        names: Keys of the pictures, for messages.
        texts: The texts.
        batch_size: As for `match_logits`.
        broken: Grows by each picture that cannot be read.
        progress: Called with the number of pairs done and of all.

    Returns:
        For each pair the log-odds of a match, the logit of column 1 less that of column 0; pairs whose picture cannot
        be read are left out.
    """
    wanted = sorted(set(pairs))
    image, text = torch.tensor(wanted, dtype=torch.int64).reshape(-1, 2).unbind(1)
    logits = match_logits(
        opened, image, text, picture, names, texts, batch_size=batch_size, broken=broken, progress=progress
    )
    margins = logits.diff(dim=1).flatten().tolist()
    return {pair: margin for pair, margin in zip(wanted, margins, strict=True) if margin == margin}


class TextSide:
    """Texts to be matched: their tokens, and what the model reads of them without a picture, where that is apart.

    Args:
        opened: The model.
        texts: At least one.

    Attributes:
        lengths: (T,) int64, their numbers of tokens.
    """

    def __init__(self, opened: Opened, texts: list[str]) -> None:
        self.model, self.device = opened.model, opened.device
        self.ids, self.keep = opened.processor.texts(texts)  # (T, L)
        spec = opened.processor.text_spec
        self._padded = spec is not None and spec.pad_to_context
        self.lengths = self.keep.sum(1)
        self._ends = self.lengths.cumsum(0)
        apart = isinstance(self.model, SharesTexts) and isinstance(self.model, SharesImages)
        self._states = self._read() if apart and not self._padded else None

    def match(self, shared: Any, which: Tensor, row: Tensor) -> Tensor:
        """Logits (T, 2) of the texts `which` (T,) with rows `row` (T,) of `shared_pictures`."""
        width = self.ids.shape[1] if self._padded else int(self.lengths[which].max())
        keep = self.keep[which, :width].to(self.device)
        if self._states is None:
            return self.model.match(shared, self.ids[which, :width].to(self.device), keep, row)
        first = (self._ends - self.lengths)[which]
        # positions at padding point at some other text's states, which are masked
        places = (first[:, None] + torch.arange(width)).clamp_(max=len(self._states) - 1)
        states = self._states[places.to(self.device)]
        return self.model.match_states(states, keep, shared, row, packed=True)

    def _read(self) -> Tensor | None:
        """States of all real tokens, end to end; None where they take too much memory."""
        parts: list[Tensor] = []
        for ids, keep in zip(self.ids.split(PAIRS), self.keep.split(PAIRS), strict=True):
            width = int(keep.sum(1).max())
            keep = keep[:, :width].to(self.device)
            states = self.model.text_states(ids[:, :width].to(self.device), keep, packed=True)[keep]
            if int(self._ends[-1]) * states.shape[1] * states.element_size() > STATES:
                return None
            parts.append(states)
        return torch.cat(parts)
