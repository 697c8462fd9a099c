"""What a model can do, as runtime-checkable protocols. Tools ask `isinstance(model, EmbedsPairs)`, never for a class.

Shapes: B images, T texts, L tokens, E embedding width, N image tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = [
    "CAPABILITIES",
    "AnswersFromList",
    "AnswersQuestions",
    "Classifies",
    "ComparesImages",
    "EmbedsPairs",
    "Explains",
    "ExplainsCaptions",
    "GivesFeatures",
    "HasHead",
    "JudgesEntailment",
    "RanksAnswers",
    "ScoresPairs",
    "SharesImages",
    "SharesTexts",
    "WritesAnswers",
    "WritesCaptions",
    "capabilities_of",
]


@runtime_checkable
class GivesFeatures(Protocol):
    """Describes an image by vectors; without a head, that is all."""

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to tokens (B, N, D) and one pooled vector per image (B, D)."""
        ...


@runtime_checkable
class Classifies(GivesFeatures, Protocol):
    """Assigns an image to one of a closed list of classes."""

    classes: int  # C; a model whose head was left out or taken away has no such attribute

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, C)."""
        ...


@runtime_checkable
class HasHead(Protocol):
    """Has a head of classes that can be replaced. Not for tools, but for fine-tuning: `mmzoo.adapt.replace_head`."""

    def reset_head(self, classes: int) -> None:
        """Put a new head of so many classes on the model, whose config then says so; 0 takes the head away."""
        ...


@runtime_checkable
class EmbedsPairs(Protocol):
    """Embeds images and texts in one space, where the cosine says how well they fit."""

    if TYPE_CHECKING:  # from Python 3.12 on, isinstance() does not find a module's parameters
        logit_scale: Tensor  # the learned log-scale

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to unit vectors (B, E); BLIP-2: one per query, (B, 32, E)."""
        ...

    def encode_text(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Token ids (T, L) int64 with their mask (T, L) bool to unit vectors (T, E)."""
        ...

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Embeddings of B images and T texts to cosines (B, T); BLIP-2: the best query's."""
        ...


@runtime_checkable
class ScoresPairs(Protocol):
    """Reads an image together with a text and says whether they match."""

    def match(self, images: Any, ids: Tensor, keep: Tensor, image_index: Tensor | None = None) -> Tensor:
        """ITM logits (T, 2), column 1 = match, of text t against image `image_index[t]` (default: t)."""
        ...


@runtime_checkable
class SharesImages(Protocol):
    """Projects an image's cross-attention keys and values once, for any number of texts."""

    def project_images(self, images: Tensor) -> Any:
        """Images (B, 3, H, W) to the keys and values of every cross-attention layer."""
        ...


@runtime_checkable
class SharesTexts(Protocol):
    """Reads a text alone before it is matched with images, so that this is done once for all of them (ALBEF)."""

    def text_states(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Texts (T, L) to states (T, L, D); with `packed`, padding is not computed and zero."""
        ...

    def match_states(
        self,
        states: Tensor,
        keep: Tensor,
        kv: Any,
        image_index: Tensor | None = None,
        *,
        packed: bool = True,
    ) -> Tensor:
        """ITM logits (T, 2) of states and what `project_images` made of images, as of `ScoresPairs.match`."""
        ...


@runtime_checkable
class ComparesImages(Protocol):
    """Says whether a sentence is true of two images (NLVR2)."""

    def compare(self, first: Any, second: Any, ids: Tensor, keep: Tensor) -> Tensor:
        """Logits (B, 2) of B sentences with B first and B second images; column 1 = true."""
        ...


@runtime_checkable
class JudgesEntailment(Protocol):
    """Says whether an image entails a sentence, contradicts it or leaves it open (SNLI-VE)."""

    def entail(self, images: Any, ids: Tensor, keep: Tensor) -> Tensor:
        """Logits (B, C) of B sentences with an image each, over the relations that the model was trained on."""
        ...


@runtime_checkable
class Explains(Protocol):
    """Shows for each word where in the picture the model looks for it."""

    @property
    def explain_layers(self) -> Sequence[int]:
        """Numbers of the layers that can be looked at."""
        ...

    @property
    def explain_layer(self) -> int:
        """The layer that is looked at unless another is asked for."""
        ...

    def explain(self, images: Tensor, ids: Tensor, keep: Tensor, layer: int | None = None) -> Tensor:
        """How much each patch speaks for "match" by way of each token.

        Args:
            images: (1, 3, H, W) for all texts, or one for each.
            ids: (T, L) int64.
            keep: (T, L) bool, True at real tokens.
            layer: One of `explain_layers`; None takes `explain_layer`.

        Returns:
            (T, L, h, w) not negative, in the grid of patches; zeros at padding. For a model in eval mode.
        """
        ...


@runtime_checkable
class WritesCaptions(Protocol):
    """Writes text about an image.

    A model may have a string `caption_prompt`, which its captions begin with unless told otherwise ("a picture of ").
    """

    def caption_decoder(self, images: Any) -> Any:
        """Images, or their shared keys and values, to a decoder for `mmzoo.generation.generate`."""
        ...


@runtime_checkable
class ExplainsCaptions(Protocol):
    """Shows for each token of a caption where in the picture the model looked as it wrote it."""

    @property
    def caption_layers(self) -> Sequence[int]:
        """Numbers of the layers that can be looked at."""
        ...

    @property
    def caption_layer(self) -> int:
        """The layer that is looked at unless another is asked for."""
        ...

    def explain_caption(self, images: Tensor, ids: Tensor, keep: Tensor, layer: int | None = None) -> Tensor:
        """How much each patch speaks for each token, at the place where it is written.

        Args:
            images: (1, 3, H, W) for all texts, or one for each.
            ids: (T, L) int64; the first token is exchanged for the one that the decoder begins with.
            keep: (T, L) bool, True at real tokens, which stand before padding.
            layer: One of `caption_layers`; None takes `caption_layer`.

        Returns:
            (T, L, h, w) not negative, in the grid of patches; zeros for the first token, which nobody writes, and at
            padding. For a model in eval mode.
        """
        ...


@runtime_checkable
class AnswersFromList(Protocol):
    """Answers a question about an image from the closed list that its head was trained on (ViLT)."""

    def answer_logits(self, images: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        """Images with one question each to logits (B, A) over the list."""
        ...


@runtime_checkable
class RanksAnswers(Protocol):
    """Ranks any given answers to a question about an image (ALBEF, BLIP)."""

    def rank_answers(self, images: Any, ids: Tensor, keep: Tensor, answers: Any) -> Tensor:
        """Scores (B, A) of the answers."""
        ...


@runtime_checkable
class WritesAnswers(Protocol):
    """Writes an answer to a question about an image in words of its own (BLIP)."""

    def answer_decoder(self, images: Any, ids: Tensor, keep: Tensor) -> Any:
        """Images with one question each to a decoder for `mmzoo.generation.generate`."""
        ...


AnswersQuestions = AnswersFromList | RanksAnswers  # isinstance() takes a union as it takes a protocol


CAPABILITIES: dict[str, Any] = {
    "classifies": Classifies,
    "embeds pairs": EmbedsPairs,
    "scores pairs": ScoresPairs,
    "shares images": SharesImages,
    "explains matches": Explains,
    "writes captions": WritesCaptions,
    "explains captions": ExplainsCaptions,
    "answers questions": AnswersQuestions,
    "writes answers": WritesAnswers,
    "compares images": ComparesImages,
    "judges entailment": JudgesEntailment,
}


def capabilities_of(model: object) -> tuple[str, ...]:
    """Names of what `model` can do, in the order of `CAPABILITIES`."""
    return tuple(name for name, protocol in CAPABILITIES.items() if isinstance(model, protocol))
