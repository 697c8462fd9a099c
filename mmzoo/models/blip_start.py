"""How BLIP's models start from one another.

    BLIP:   a model that reads and writes, from one that does only one of the two: what both faces share is there, and
            the self-attention of the new face starts as the old one's; the other way round, it is left behind
    VQA:    encoder and decoder part; what projects image tokens there projects the question in the decoder, and starts
            at random where their widths differ
    NLVR2:  both cross-attentions of a layer start as the one; what joins them is new

Heads that both models have are kept. salesforce/BLIP renames or drops tensors of its checkpoints to this effect when it
loads them.
"""

from __future__ import annotations

from typing import Any

from mmzoo.growth import Grows, Growth

__all__ = ["GROWS"]

_HEADS = ("vision_proj", "text_proj", "logit_scale", "match_head", "lm", "compare_head")
_SHARED = ("cross", "cross_norm", "mlp", "mlp_norm")
_OWN = ("attn", "attn_norm")

Moves = tuple[tuple[str, str], ...]


def _blocks(source: str, target: str, depth: int, parts: tuple[str, ...]) -> Moves:
    return tuple(
        (f"{source}.blocks.{i}.{part}", f"{target}.blocks.{i}.{part}") for i in range(depth) for part in parts
    )


def _encoder(source: Any) -> Moves:
    """The encoder out of a model that may only write."""
    return () if source.reads else (("decoder", "text"),)


def _decoder(source: Any) -> Moves:
    """A decoder that stands alone, out of a model that keeps what is shared under the encoder's name."""
    if not source.reads:
        return ()
    depth, own = source.text.depth, "decoder" if source.writes else "text"
    return (
        ("text.embed", "decoder.embed"),
        *_blocks("text", "decoder", depth, _SHARED),
        *_blocks(own, "decoder", depth, _OWN),
    )


def _faces(source: Any, config: Any) -> Growth:
    left = ("decoder",) if not config.writes else ("text",) if not config.reads else ()
    if not config.reads:
        return Growth(_decoder(source), (*_HEADS, *left))
    moves = _encoder(source)
    if config.writes and not source.writes:
        moves += _blocks("text", "decoder", source.text.depth, _OWN)
    return Growth(moves, (*_HEADS, *left))


def _answers(source: Any, config: Any) -> Growth:
    alike = config.decoder.cross_width == source.text.cross_width
    fresh = () if alike else tuple(f"decoder.blocks.{i}.cross.kv" for i in range(config.decoder.depth))
    return Growth((*_encoder(source), *_decoder(source)), _HEADS, fresh)


def _twins(source: Any, config: Any) -> Growth:
    old = "text" if source.reads else "decoder"
    moves = tuple(
        (f"{old}.blocks.{i}.cross", f"text.blocks.{i}.cross.{place}")
        for i in range(config.text.depth)
        for place in ("first", "second")
    )
    merges = range(config.merge_from, config.text.depth)
    fresh = tuple(f"text.blocks.{i}.cross.merge" for i in merges)
    return Growth((*_encoder(source), *moves), (*_HEADS, "decoder"), fresh)


GROWS: Grows = {
    ("BLIPConfig", "BLIPConfig"): _faces,
    ("BLIPConfig", "BLIPVQAConfig"): _answers,
    ("BLIPConfig", "BLIPNLVR2Config"): _twins,
}
