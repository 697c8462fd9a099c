"""How ALBEF's models for single tasks start from the pre-trained one.

    VQA:    the decoder starts as the fusion half: layers 6-11 become 0-5, with word embeddings and word head; what
            projects image tokens there projects the question here, and starts at random where their widths differ
    NLVR2:  each fusion layer becomes two neighbours: 6 + i becomes 6 + 2i and 7 + 2i
    others: the same layers

Heads that both models have are kept. salesforce/ALBEF renames tensors of its checkpoint to this effect in each
fine-tuning script.
"""

from __future__ import annotations

from typing import Any

from mmzoo.growth import Grows, Growth

__all__ = ["GROWS"]

_HEADS = (
    *("vision_proj", "text_proj", "logit_scale", "match_head", "mlm"),
    *("lm", "compare_head", "assign_head", "entail_head"),
)


def _same_layers(source: Any, config: Any) -> Growth:
    return Growth(heads=_HEADS)


def _answers(source: Any, config: Any) -> Growth:
    first, layers = source.text.cross_layers[0], range(config.decoder.depth)
    blocks = tuple((f"text.blocks.{first + i}", f"decoder.blocks.{i}") for i in layers)
    alike = config.vision.width == config.text.width
    return Growth(
        moves=(("text.embed", "decoder.embed"), ("mlm", "lm"), *blocks),
        heads=_HEADS,
        fresh=() if alike else tuple(f"decoder.blocks.{i}.cross.kv" for i in layers),
    )


def _twins(source: Any, config: Any) -> Growth:
    old, new = source.text.cross_layers[0], config.text.cross_layers
    blocks = tuple((f"text.blocks.{old + i // 2}", f"text.blocks.{layer}") for i, layer in enumerate(new))
    return Growth(moves=blocks, heads=_HEADS)


GROWS: Grows = {
    ("ALBEFConfig", "ALBEFConfig"): _same_layers,
    ("ALBEFConfig", "ALBEFVQAConfig"): _answers,
    ("ALBEFConfig", "ALBEFNLVR2Config"): _twins,
    ("ALBEFNLVR2Config", "ALBEFNLVR2Config"): _same_layers,  # from assigning texts to comparing images
    ("ALBEFConfig", "ALBEFVEConfig"): _same_layers,
    ("ALBEFVEConfig", "ALBEFVEConfig"): _same_layers,  # of other classes
}
