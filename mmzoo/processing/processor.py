"""Everything between a person's pictures and words and a model's tensors, in one object that can be saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from mmzoo import config
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.image import ImageTransform
from mmzoo.processing.text import Texts, Tokenizer, build_tokenizer
from mmzoo.spec import ImageSpec, TextSpec

__all__ = ["Processor"]


class Processor:
    """A model's preprocessing.

    Args:
        image_spec: How pixels become the model's input; None for a model that reads no images.
        text_spec: How words do; None for a model that reads no text.
        tokenizer: A tokenizer that fits `text_spec`; None builds it when it is first needed.
        answers: The words of a model's closed list, in the order of its logits (`"yes"`, `"entailment"`); None where
            nobody has named them.

    Example:
        >>> from PIL import Image
        >>> processor = Processor(ImageSpec(size=32), TextSpec("clip", 77, 49408))
        >>> processor.images([Image.new("RGB", (40, 60))]).shape
        torch.Size([1, 3, 32, 32])
        >>> processor.texts(["a photo of a cat"]).ids.tolist()
        [[49406, 320, 1125, 539, 320, 2368, 49407]]
    """

    def __init__(
        self,
        image_spec: ImageSpec | None,
        text_spec: TextSpec | None = None,
        tokenizer: Tokenizer | None = None,
        answers: Sequence[str] | None = None,
    ) -> None:
        if tokenizer is not None:
            if text_spec is None:
                text_spec = tokenizer.spec
            elif tokenizer.spec != text_spec:
                raise UsageError(
                    f"the tokenizer was built for {tokenizer.spec}, the processor for {text_spec}."
                )
        self.image_spec = image_spec
        self.text_spec = text_spec
        self._transform = None if image_spec is None else ImageTransform(image_spec)
        self._tokenizer = tokenizer
        self.answers = None if answers is None else tuple(answers)

    def __repr__(self) -> str:
        return f"Processor({self.image_spec}, {self.text_spec})"

    @property
    def transform(self) -> ImageTransform:
        """What is done to pictures.

        Raises:
            ZooError: The model reads no images.
        """
        if self._transform is None:
            raise ZooError("this model reads texts only; its processor takes no images.")
        return self._transform

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, built on first use.

        Raises:
            ZooError: The model reads no text, or its vocabulary is not to be had.
        """
        if self._tokenizer is None:
            if self.text_spec is None:
                raise ZooError("this model reads images only; its processor has no tokenizer.")
            self._tokenizer = build_tokenizer(self.text_spec)
        return self._tokenizer

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Make a model's input of pictures.

        Args:
            images: B pictures of any size and mode.

        Returns:
            `(B, 3, H, W)` float32, normalised.

        Raises:
            UsageError: Not a non-empty list of PIL images.
            ZooError: The model reads no images.
        """
        return self.transform(images)

    def texts(self, texts: Sequence[str]) -> Texts:
        """Make a model's input of strings.

        Args:
            texts: T strings of any length.

        Returns:
            Ids `(T, L)` int64 and keep `(T, L)` bool, L the longest of the call.

        Raises:
            UsageError: Not a non-empty list of strings.
            ZooError: The model reads no text, or its vocabulary is not to be had.
        """
        return self.tokenizer(texts)

    def framed(self, texts: Sequence[str]) -> Texts:
        """Make of strings what a decoder writes or ranks: as `texts`, always with an end token, never cleaned."""
        return self.tokenizer.framed(texts)

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Turn `(T, L)` ids back into T strings without special tokens."""
        return self.tokenizer.decode(ids)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content of `processor.json`, the vocabulary included."""
        content: dict[str, Any] = {
            "image": None if self.image_spec is None else config.to_dict(self.image_spec)
        }
        if self.text_spec is not None:
            content["text"] = config.to_dict(self.text_spec)
            content["tokenizer"] = self.tokenizer.to_dict()
        if self.answers is not None:
            content["answers"] = list(self.answers)
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Processor:
        """Rebuild what `to_dict` wrote.

        Raises:
            ZooError: An entry is unknown, missing or does not fit.
        """
        unknown = set(content) - {"image", "text", "tokenizer", "answers"}
        if unknown or "image" not in content:
            raise ZooError(
                f"processor.json must hold image, text, tokenizer and answers; found {', '.join(content)}."
            )
        answers = content.get("answers")
        if answers is not None and not (
            isinstance(answers, list) and all(isinstance(word, str) for word in answers)
        ):
            raise ZooError("processor.json: answers must be a list of words.")
        told = content["image"]
        image = None if told is None else config.from_dict(ImageSpec, told, "processor.json: image")
        if "text" not in content:
            return cls(image, answers=answers)
        text = config.from_dict(TextSpec, content["text"], "processor.json: text")
        if "tokenizer" not in content:
            raise ZooError("processor.json describes texts but holds no tokenizer.")
        return cls(image, text, Tokenizer.from_dict(content["tokenizer"], text), answers)

    @classmethod
    def of(cls, model_config: Any) -> Processor:
        """The preprocessing that a model's config describes."""
        return cls(getattr(model_config, "image", None), getattr(model_config, "text_input", None))
