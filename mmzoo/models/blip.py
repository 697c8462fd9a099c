"""BLIP (Li et al. 2022): one text transformer with three faces.

    image -> ViT -> tokens -- keys and values of every layer, projected once --.
                      |                          |                             |
    [CLS] text -> text alone                [ENC] text -> text               [DEC] text -> decoder
             |  (cross-attention skipped)    |                                |  (causal)
      unit vectors -> cosine x exp(scale)    match?                           which word is next?

Encoder and decoder share everything but self-attention, by identity. `BLIPReader` has the first two faces (retrieval
files), `BLIPWriter` the third (caption files), `BLIP` all (pre-training); `BLIP.of` says which a config builds.
`BLIPVQA` answers with an encoder and a decoder of their own; `BLIPNLVR2` reads a sentence with two images.

Texts come as the tokenizer makes them, [CLS] first; each face puts its own token there. Without [ENC], as transformers
runs its retrieval and VQA models, matching was never trained (huggingface/transformers issue 22732).

Sizes and epsilons are those of salesforce/BLIP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.layers.block import TransformerBlock
from mmzoo.layers.heads import Classifier
from mmzoo.layers.image_kv import ImageKV
from mmzoo.layers.tying import copy_self_attention, save_once, tie_except_self_attention
from mmzoo.models.blip_start import GROWS
from mmzoo.models.blip_twin import TwinCross, pair_up
from mmzoo.models.pairing import PairComparer, PairConfig, PairReader
from mmzoo.models.ranking import AnswersByDecoder
from mmzoo.models.writing import (
    BERT_TOKENS,
    TINY_TOKENS,
    BackboneDecoder,
    SpecialTokens,
    WritesByDecoder,
    led_by,
    word_head,
)
from mmzoo.spec import BERT_VOCAB, HALF, TINY_VOCAB, ImageSpec, TextSpec
from mmzoo.towers import TextBackbone, TextConfig, VisionConfig
from mmzoo.towers.reader import Reader, ReaderConfig
from mmzoo.towers.text import bert_text

__all__ = [
    "BLIP",
    "BLIPNLVR2",
    "BLIPVQA",
    "GROWS",
    "VARIANTS",
    "BLIPConfig",
    "BLIPNLVR2Config",
    "BLIPReader",
    "BLIPVQAConfig",
    "BLIPWriter",
]


@dataclass(frozen=True)
class BLIPConfig(PairConfig):
    """Towers and heads of the model for pre-training, retrieval and captions.

    Attributes:
        tokens: The special tokens.
        reads: Whether texts can be embedded and matched (caption files cannot).
        writes: Whether there is a decoder (retrieval files have none).
        prompt: What captions begin with unless told otherwise; in fine-tuning on captions it stands before each.
    """

    tokens: SpecialTokens = BERT_TOKENS
    reads: bool = field(default=True, metadata={"free": "match_head.weight"})
    writes: bool = field(default=True, metadata={"free": "lm.bias"})
    prompt: str = field(default="a picture of ", metadata=UNKEPT)

    def __post_init__(self) -> None:
        if not (self.reads or self.writes):
            raise ZooError("a BLIP reads, writes or does both: set one of the two.")


@dataclass(frozen=True)
class BLIPVQAConfig(ReaderConfig):
    """Towers and answer decoder.

    Attributes:
        decoder: A causal transformer over answers, whose every layer attends to the question's states.
        tokens: The special tokens.
    """

    decoder: TextConfig
    tokens: SpecialTokens = BERT_TOKENS


@dataclass(frozen=True)
class BLIPNLVR2Config(ReaderConfig):
    """Towers and head for two images and a sentence.

    Attributes:
        tokens: The special tokens.
        merge_from: The first layer in which a linear map joins what is found in the two images; before, their mean.
    """

    tokens: SpecialTokens = BERT_TOKENS
    merge_from: int = 6


def _vit(size: int, *, large: bool, drop_path: float = 0.0) -> VisionConfig:
    """DeiT-B/16's shape, or ViT-L/16's, of which a tenth of the last residual branches is dropped."""
    width, depth, heads = (1024, 24, 16) if large else (768, 12, 12)
    return VisionConfig(
        image_size=size, patch=16, width=width, depth=depth, heads=heads, hidden=4 * width, norm_eps=1e-6, act="gelu",
        init="timm", resample="albef", drop_path=0.1 if large else drop_path,
    )  # fmt: skip


def _text(cross_width: int, **changes: bool) -> TextConfig:
    return bert_text(
        vocab=BERT_VOCAB + 2, token_types=0, cross_layers=tuple(range(12)), cross_width=cross_width, **changes
    )


def _caption(context: int) -> TextSpec:
    return TextSpec("bert", context=context, vocab=BERT_VOCAB + 2, clean="blip")


def _variants(name: str, *, large: bool) -> dict[str, ReaderConfig]:
    text = _text(1024 if large else 768)
    question = replace(_caption(35), clean="blip_question")
    vqa, nlvr2 = (_vit(size, large=large, drop_path=0.1) for size in (480, 384))
    return {
        name: BLIPConfig(_vit(224, large=large), text, ImageSpec(224, fit="squash"), _caption(40)),
        f"{name}-vqa": BLIPVQAConfig(
            vqa, text, ImageSpec(480, fit="squash"), question, decoder=_text(768, causal=True)
        ),
        # the reference cuts these sentences nowhere
        f"{name}-nlvr2": BLIPNLVR2Config(nlvr2, text, ImageSpec(384, fit="squash"), _caption(512)),
    }


# as of ALBEF's tiny model; every layer of the text has cross-attention, so two do
_TINY_VISION = VisionConfig(
    image_size=24, patch=6, width=128, depth=3, heads=4, hidden=512, norm_eps=1e-6, act="gelu", init="google",
    resample="albef", pool="mean", cls_token=False,
)  # fmt: skip
_TINY_TEXT = bert_text(
    vocab=TINY_VOCAB, context=32, width=128, depth=2, heads=4, hidden=512, token_types=0, cross_layers=(0, 1),
    cross_width=128, dropout=0.0, attn_dropout=0.0,
)  # fmt: skip

VARIANTS: dict[str, ReaderConfig] = {
    **_variants("blip-base", large=False),
    **_variants("blip-large", large=True),
    "blip-tiny": BLIPConfig(
        _TINY_VISION,
        _TINY_TEXT,
        ImageSpec(24, HALF, HALF, fit="squash"),
        TextSpec("tiny", context=32, vocab=TINY_VOCAB),
        embed=128,
        tokens=TINY_TOKENS,
    ),
}


class _ReadsWithEnc(Reader):
    """A `Reader` whose texts are read with images from the first layer on, and begin with [ENC] then."""

    config: BLIPConfig | BLIPVQAConfig | BLIPNLVR2Config

    def __init__(self, config: BLIPConfig | BLIPVQAConfig | BLIPNLVR2Config):
        super().__init__(config)
        if self.first_fusion:
            raise ZooError(
                f"every layer of BLIP's text transformer attends to the image; {self.first_fusion} do not."
            )

    def text_states(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Embed texts (T, L) for `fuse`: (T, L, D), the first token exchanged for [ENC]. There is nothing to pack."""
        return super().text_states(led_by(self.config.tokens.encode, ids), keep)


class BLIPReader(PairReader, _ReadsWithEnc):
    """A `PairReader` whose encoder reads texts alone (without a context) and with images."""

    config: BLIPConfig

    @property
    def explain_layer(self) -> int:
        """The layer looked at unless another is asked for: 7 of 0 to 11, as in LAVIS's example of localization."""
        depth = self.config.text.depth
        return max(0, min(depth * 7 // 12, depth - 2))

    def encode_text(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Embed texts (T, L) as unit vectors (T, E); `packed` computes no padding."""
        return self.text_proj(self.text(ids, keep=keep, packed=packed).tokens[:, 0])


class BLIPWriter(WritesByDecoder):
    """Writes captions. Capabilities: `SharesImages`, `WritesCaptions`, `ExplainsCaptions`."""

    def __init__(self, config: BLIPConfig):
        super().__init__(config)
        self.decoder = TextBackbone(replace(config.text, causal=True))
        self.lm = word_head(self.decoder)

    def project(self, tokens: Tensor) -> ImageKV:
        """Project image tokens (B, N, D) to the keys and values of every layer, once for all their texts."""
        return self.decoder.project_context(tokens)


class BLIP(BLIPReader, WritesByDecoder):
    """Reads and writes: `BLIPReader` and `BLIPWriter` over one set of weights.

    Attributes:
        decoder: Has the modules of `text`, except each block's `attn` and `attn_norm`. The keys and values that
            `project` makes serve both.
        lm: The head for the next word. Its table is that of the word embeddings.
    """

    def __init__(self, config: BLIPConfig):
        super().__init__(config)
        with torch.device("meta"):
            self.decoder = TextBackbone(replace(config.text, causal=True))
        save_once(self, "text", "decoder", tie_except_self_attention(self.text, self.decoder))
        self.lm = word_head(self.decoder)

    def tower_filled(self, part: str) -> None:
        """Let the decoder's self-attention start as the encoder's, after that was filled from BERT."""
        if part == "text":
            copy_self_attention(self.text, self.decoder)

    @staticmethod
    def of(config: BLIPConfig) -> type[BLIPReader | BLIPWriter]:
        """The class that a config builds: the one that has what `reads` and `writes` ask for, and nothing else."""
        if not config.writes:
            return BLIPReader
        return BLIP if config.reads else BLIPWriter


class BLIPVQA(AnswersByDecoder, _ReadsWithEnc):
    """Ranks and writes answers to questions about images.

    Capabilities: `RanksAnswers`, `WritesAnswers`, `SharesImages`.
    """

    config: BLIPVQAConfig

    def __init__(self, config: BLIPVQAConfig):
        super().__init__(config)
        self.add_decoder(config.decoder)

    def begun(self, ids: Tensor) -> Tensor:
        """Answers begin with [DEC]."""
        return led_by(self.config.tokens.begin, ids)

    def answer_decoder(self, images: Tensor | ImageKV, ids: Tensor, keep: Tensor) -> BackboneDecoder:
        """What `mmzoo.generation.generate` writes answers with; arguments as of `forward`."""
        with torch.no_grad():
            question = self.read_question(images, ids, keep)
        return BackboneDecoder(self.decoder, self.lm, question, self.config.tokens)


class BLIPNLVR2(PairComparer, _ReadsWithEnc):
    """A `PairComparer` with two cross-attentions in every layer, one for each image."""

    config: BLIPNLVR2Config

    def __init__(self, config: BLIPNLVR2Config):
        super().__init__(config)
        for i, block in enumerate(self.text.blocks):
            assert isinstance(block, TransformerBlock)
            block.register_module("cross", TwinCross(block.config, merges=i >= config.merge_from))
        self.compare_head = Classifier(config.text.width, config.text.width, 2, act="relu")

    def project_pairs(self, tokens: Tensor) -> ImageKV:
        """Keys and values of B pairs out of image tokens (2 B, N, D), each image for its own place alone."""
        one, two = tokens.chunk(2)
        return ImageKV({i: cross.project_pair(one, two) for i, cross in self._crosses()})

    def join(self, first: ImageKV, second: ImageKV) -> ImageKV:
        """Of images that were projected for both places, take each for one."""
        return ImageKV({i: pair_up(first.layers[i], second.layers[i]) for i, _ in self._crosses()})

    def fuse(
        self,
        states: Tensor,
        keep: Tensor,
        kv: ImageKV,
        image_index: Tensor | None = None,
        *,
        packed: bool = False,
    ) -> Tensor:
        """As of `Reader`, but padding is always computed: `TwinCross` reads pairs of images row by row."""
        return super().fuse(states, keep, kv, image_index)

    def _crosses(self) -> Iterator[tuple[int, TwinCross]]:
        for i, block in enumerate(self.text.blocks):
            assert isinstance(block, TransformerBlock) and isinstance(block.cross, TwinCross)  # noqa: PT018
            yield i, block.cross
