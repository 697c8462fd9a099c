"""Which models a run takes, looked at once before any work begins."""

from __future__ import annotations

from mmzoo.apps.capfilt.settings import Captioning, Scoring, Which
from mmzoo.apps.opening import ModelLike, Opened, open_model, require
from mmzoo.apps.writing import prompt_ids
from mmzoo.errors import UsageError
from mmzoo.generation import GenerationConfig

__all__ = ["Models"]

Choice = tuple[ModelLike | None, str | None]
"""A model and its weights, as a caller names them."""


class Models:
    """Opens models to check what they can do and to hash their weights; the same one only once.

    Args:
        device: Where to.
    """

    def __init__(self, device: str | None) -> None:
        self.device = device
        self._opened: list[tuple[Choice, Opened, Which]] = []

    def captioning(self, choice: Choice, prompt: str | None, settings: GenerationConfig) -> Captioning:
        """How captions are written.

        Raises:
            UsageError: No model is named, or the prompt is too long for it.
            ZooError: It writes no captions.
        """
        if choice[0] is None:
            raise UsageError("the stage caption needs --captioner (or --model): what is to write captions?")
        opened, which = self._open(choice)
        require(opened, "writes captions", "write captions")
        text = opened.model.caption_prompt if prompt is None else prompt
        return Captioning(which, tuple(prompt_ids(opened, prompt)), text, settings)

    def scoring(self, judge: Choice, clip: Choice) -> Scoring:
        """What judges.

        Raises:
            UsageError: No model is named.
            ZooError: The filter matches no pairs, or the CLIP embeds none.
        """
        if judge[0] is None and clip[0] is None:
            raise UsageError("the stage score needs --filter (or --model), --clip or both: what is to judge?")
        one = two = None
        if judge[0] is not None:
            opened, one = self._open(judge)
            require(opened, "scores pairs", "judge whether texts and pictures match")
        if clip[0] is not None:
            opened, two = self._open(clip)
            require(opened, "embeds pairs", "give cosines")
        return Scoring(one, two)

    def _open(self, choice: Choice) -> tuple[Opened, Which]:
        for known, opened, which in self._opened:
            if known == choice:
                return opened, which
        model, pretrained = choice
        assert model is not None
        opened = open_model(model, pretrained=pretrained, device=self.device)
        which = Which(model, pretrained, opened.name, opened.digest())
        self._opened.append((choice, opened, which))
        return opened, which
