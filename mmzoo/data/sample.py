"""What a data source yields: one picture, undecoded, with its texts and what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Sample", "Source"]


class Sample(NamedTuple):
    """One picture and the texts that belong to it.

    Text j fits image i exactly if `text_ids[j]` is among the image's `image_ids`. The ids are any integers >=
    0 that are consistent within one source: two captions of one picture share the picture's id; a caption
    that only names a group carries the group's id, which every picture of the group lists as well.

    Attributes:
        key: Unique in its source and readable: a path, `"noto/red-apple"`.
        image: The file's undecoded bytes; a PIL image only where the source holds no file per picture.
        texts: Captions, the plainest first (evaluation reads that one); empty where the source has only
            labels.
        text_ids: What each text is about, one id per text.
        image_ids: Everything the picture is an instance of, its own id first.
        label: Index into the source's `classes`, or None.
    """

    key: str
    image: bytes | Image.Image
    texts: tuple[str, ...]
    text_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    label: int | None = None


@runtime_checkable
class Source(Protocol):
    """A sized, indexable collection of samples.

    Reading an item does no decoding and raises nothing for a broken picture: that is found out, counted and
    named where pictures are decoded. Sources are picklable, since loader workers receive a copy.
    """

    @property
    def name(self) -> str:
        """Short name for messages, for example the folder's."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names that `Sample.label` indexes, or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
