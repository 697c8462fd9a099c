"""What a data source yields: pictures, undecoded, with what is said or asked about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Annotation",
    "AnySource",
    "Broken",
    "EntailSample",
    "EntailSource",
    "PairSample",
    "PairSource",
    "Picture",
    "Pictured",
    "QuestionSample",
    "QuestionSource",
    "Sample",
    "Source",
]

Picture: TypeAlias = "bytes | Image.Image"
"""A file's undecoded bytes; a PIL image only where the source holds no file per picture."""


class Broken(NamedTuple):
    """A sample that could not be used, and why."""

    key: str
    reason: str


class Pictured(Protocol):
    """What reading needs to know of a sample, whatever its task."""

    @property
    def key(self) -> str:
        """Unique in its source and readable: a path, `"noto/red-apple"`."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its pictures; as many for every sample of a source."""

    @property
    def picture_keys(self) -> tuple[str, ...]:
        """A name for each picture, the same wherever the source holds the same picture."""

    def bare(self) -> Self:
        """The sample without its pictures."""


class Annotation(Pictured, Protocol):
    """A sample out of an annotation file, which names pictures."""

    def holding(self, *pictures: Picture) -> Self:
        """The sample with its pictures."""


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
    image: Picture
    texts: tuple[str, ...]
    text_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    label: int | None = None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The one picture."""
        return (self.image,)

    @property
    def picture_keys(self) -> tuple[str, ...]:
        """The sample's key: no two samples share a picture."""
        return (self.key,)

    def bare(self) -> Self:
        """The sample without its picture."""
        return self._replace(image=b"")


class QuestionSample(NamedTuple):
    """One question about one picture, with what was answered.

    Attributes:
        key: Unique in its source and readable.
        image: As in `Sample`.
        question: The question, as written.
        answers: The different answers, as written; empty where none are published (test splits).
        votes: How many annotators gave each answer.
        weights: What each answer counts in training a generated answer: its share of the votes, times what the
            whole set counts (ALBEF: 1 for VQA, 0.5 for Visual Genome).
        question_id: The question's number in the published files.
        image_key: The picture's name, the same for all questions about it.
        kind: The published type of answer (`"yes/no"`, `"number"`, `"other"`), or an empty string.
    """

    key: str
    image: Picture
    question: str
    answers: tuple[str, ...]
    votes: tuple[int, ...]
    weights: tuple[float, ...]
    question_id: int
    image_key: str
    kind: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The one picture."""
        return (self.image,)

    @property
    def picture_keys(self) -> tuple[str, ...]:
        """The picture's name."""
        return (self.image_key,)

    def bare(self) -> Self:
        """The sample without its picture."""
        return self._replace(image=b"")

    def holding(self, *pictures: Picture) -> Self:
        """The sample with its picture."""
        return self._replace(image=pictures[0])

    @property
    def said(self) -> tuple[str, ...]:
        """Every annotator's answer, repeats included."""
        return tuple(a for a, n in zip(self.answers, self.votes, strict=True) for _ in range(n))


class PairSample(NamedTuple):
    """A sentence about two pictures, true or false (NLVR2).

    Attributes:
        key: Unique in its source and readable.
        first: The left picture, as in `Sample`.
        second: The right one.
        sentence: As written.
        label: 1 true, 0 false, None where it is not published.
        group: Names the sentence across the pairs that it was written for: NLVR2's consistency counts a sentence as
            right where all its pairs are.
        image_keys: Names of the two pictures.
    """

    key: str
    first: Picture
    second: Picture
    sentence: str
    label: int | None
    group: str
    image_keys: tuple[str, str]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Left and right."""
        return (self.first, self.second)

    @property
    def picture_keys(self) -> tuple[str, ...]:
        """Their names."""
        return self.image_keys

    def bare(self) -> Self:
        """The sample without its pictures."""
        return self._replace(first=b"", second=b"")

    def holding(self, *pictures: Picture) -> Self:
        """The sample with its pictures, the left one first."""
        return self._replace(first=pictures[0], second=pictures[1])


class EntailSample(NamedTuple):
    """A sentence that a picture entails, contradicts or leaves open (SNLI-VE).

    Attributes:
        key: Unique in its source and readable.
        image: As in `Sample`.
        sentence: As written.
        label: Index into the source's classes, or None where it is not published.
        image_key: The picture's name, the same for all sentences about it.
    """

    key: str
    image: Picture
    sentence: str
    label: int | None
    image_key: str

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The one picture."""
        return (self.image,)

    @property
    def picture_keys(self) -> tuple[str, ...]:
        """The picture's name."""
        return (self.image_key,)

    def bare(self) -> Self:
        """The sample without its picture."""
        return self._replace(image=b"")

    def holding(self, *pictures: Picture) -> Self:
        """The sample with its picture."""
        return self._replace(image=pictures[0])


class AnySource(Protocol):
    """A sized, indexable collection of samples.

    Reading an item does no decoding and raises nothing for a broken picture: that is found out, counted and
    named where pictures are decoded. A file that is not there raises the `OSError` that opening it gives. Sources are
    picklable, since loader workers receive a copy.
    """

    @property
    def name(self) -> str:
        """Short name for messages, for example the folder's."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names that labels index, or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pictured: ...


@runtime_checkable
class Source(AnySource, Protocol):
    """Pictures with captions, classes or both."""

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class QuestionSource(AnySource, Protocol):
    """Questions about pictures; `classes` are all answers there are, where the set knows them."""

    def __getitem__(self, index: int) -> QuestionSample: ...

    def told(self, index: int) -> QuestionSample:
        """A sample without its picture, which is not read."""


class PairSource(AnySource, Protocol):
    """Sentences about two pictures."""

    def __getitem__(self, index: int) -> PairSample: ...

    def told(self, index: int) -> PairSample:
        """A sample without its pictures, which are not read."""


class EntailSource(AnySource, Protocol):
    """Sentences about one picture, with what it says to them."""

    def __getitem__(self, index: int) -> EntailSample: ...

    def told(self, index: int) -> EntailSample:
        """A sample without its picture, which is not read."""
