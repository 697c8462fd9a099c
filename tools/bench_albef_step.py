"""One pre-training step of ALBEF: `LitALBEF` against a straight port of the reference, the same weights in both.

    python tools/bench_albef_step.py --json docs/benchmarks/albef_step.json
    python tools/bench_albef_step.py --size base --peers written --rounds 3 --json docs/benchmarks/albef_step_base.json

A step is masking, all three losses, backward, optimizer, teacher and queue. The port is `tools/albef_port.py`; what it
draws is replaced by the draws of ours, on either side after they have been made and paid for. A first duel runs the
port as ALBEF is written; a second gives it fused attention and the fused AdamW, which its user could have by two flags.
Both have timm's fused attention in the image tower and no dropout, and texts padded to the longest of the batch.

Before anything is timed, two steps at half the size are compared in float64: losses, and the gradient of every
parameter (the second step sees what optimizer, teacher and queue did in the first).
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import benchlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

ALPHA, MOMENTUM, MASK = 0.4, 0.995, 103
# [CLS] and WordPieces of captions as long as COCO's. The longest is what a batch of 64, the published one, holds: there
# the reference would pad all to it, as it does here.
LENGTHS = (12, 9, 14, 10, 22, 11, 13, 10, 12, 9, 11, 16, 10, 12, 11, 13)


class Size(NamedTuple):
    """Sizes of one comparison."""

    pixels: int
    width: int
    depth: int  # of the image tower; the text transformer's halves have `half` layers each
    half: int
    words: int
    embed: int
    queue: int
    batch: int


# "small" keeps published proportions where width is halved and depth a third: so many words and queued pairs that word
# head and contrast have about their share of a published step
SIZES = {
    "small": Size(224, 384, 4, 2, 5120, 128, 16384, 16),
    "base": Size(224, 768, 12, 6, 30522, 256, 65536, 4),
    "gate": Size(112, 192, 2, 2, 1024, 64, 256, 8),
}


class Contest(NamedTuple):
    """Both contenders, at the same weights."""

    ours: Any  # a LitALBEF
    optimizer: Any
    port: Any  # an albef_port.Training
    batch: Any  # a CaptionBatch
    drawn: Any  # an albef_port.Drawn

    def our_step(self) -> list[Any]:
        """What `LitALBEF.training_step` and Lightning do around it; the three losses."""
        # pairs of a later step are others: of the same id, they would be positives of what the queue holds
        self.batch.text_ids.add_(len(self.batch.keys))
        self.batch.image_ids.copy_(self.batch.text_ids[:, None])
        losses, taught = self.ours.losses(self.batch, ALPHA)
        self.ours.queue.push(taught.image, taught.text, self.batch.image_ids, self.batch.text_ids)
        self.optimizer.zero_grad()
        (losses.contrast.loss + losses.match.loss + losses.words.loss).backward()
        self.optimizer.step()
        self.ours.after_step()
        return [part.loss.detach() for part in losses]

    def their_step(self) -> list[Any]:
        """The same of the port."""
        return self.port.step(self.batch.images, self.batch.ids, self.batch.keep, self.drawn)

    def told(self, losses: list[Any], gradients: bool = False) -> dict[str, Any]:
        """The losses of ours beside some gradients' norms, or all gradients."""
        m = self.ours.model
        some = m.vision.patch.proj, m.text.embed.tok, m.text.blocks[-1].cross.kv, m.text.blocks[0].mlp.fc1
        found = {"losses": losses, "norms": [x.weight.grad.norm() for x in some]}
        return found | ({n: p.grad for n, p in m.named_parameters()} if gradients else {})

    def told_of_theirs(self, losses: list[Any], gradients: bool = False) -> dict[str, Any]:
        """The same of the port, under our names."""
        import torch

        p = self.port.model
        attend = p.text_encoder.layer[-1].crossattention.self
        some = [
            p.visual_encoder.patch_embed.proj.weight.grad,
            p.text_encoder.embeddings.word_embeddings.weight.grad,
            torch.cat([attend.key.weight.grad, attend.value.weight.grad]),
            p.text_encoder.layer[0].intermediate.dense.weight.grad,
        ]
        found = {"losses": losses, "norms": [x.norm() for x in some]}
        if not gradients:
            return found
        carrier, into = copy.deepcopy(p), copy.deepcopy(self.ours.model)
        for a, b in zip(carrier.parameters(), p.parameters(), strict=True):
            a.data = b.grad
        copy_port(into, carrier)
        return found | dict(into.named_parameters())


def copy_port(ours: Any, port: Any) -> None:
    """The port's weights into our model."""
    from albef_oracle import copy_vision, copy_words

    copy_vision(ours.vision, port.visual_encoder)
    copy_words(ours.text, port.text_encoder, ours.mlm)
    for mine, theirs in (
        ("vision_proj", "vision_proj"),
        ("text_proj", "text_proj"),
        ("match_head", "itm_head"),
    ):
        getattr(ours, mine).load_state_dict(getattr(port, theirs).state_dict())
    ours.logit_scale.data.copy_(port.log_scale)


def captions(size: Size, dtype: Any) -> tuple[Any, Any]:
    """A batch, and what shall be drawn for it."""
    import torch
    from albef_port import Drawn, hide

    from mmzoo.data.batch import CaptionBatch

    count = size.batch
    lengths = torch.tensor(LENGTHS[:count])
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(104, size.words, keep.shape) * keep  # [PAD] is 0, [CLS] 101 and the others lie below
    ids[:, 0] = 101
    own = torch.arange(count)
    images, texts = ((own + torch.randint(1, count, (count,))) % count for _ in range(2))
    pixels = torch.randn(count, 3, size.pixels, size.pixels, dtype=dtype)
    batch = CaptionBatch(
        pixels, ids, keep, own[:, None].clone(), own.clone(), None, [str(i) for i in range(count)]
    )
    return batch, Drawn(images, texts, *hide(ids, keep, size.words))


# attention of the text transformer, and AdamW's `fused`
PEERS = {"written": ("eager", None), "flags": ("sdpa", True)}


def build(size: Size, attention: str, fused: bool | None, dtype: Any) -> Contest:
    """Prepare both contenders."""
    from types import SimpleNamespace

    import torch
    from albef_port import Port, Training, Words
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn
    from torch.nn import functional as F
    from torch.optim import AdamW

    from mmzoo.lit import LitALBEF
    from mmzoo.lit.optim import build_optimizer
    from mmzoo.losses.masking import Masked
    from mmzoo.losses.negatives import Negatives
    from mmzoo.models.albef import ALBEFConfig
    from mmzoo.spec import BERT_VOCAB, ImageSpec, TextSpec
    from mmzoo.towers import VisionConfig
    from mmzoo.towers.text import bert_text

    torch.manual_seed(0)
    w, heads, fusion = size.width, size.width // 64, tuple(range(size.half, 2 * size.half))
    config = ALBEFConfig(
        VisionConfig(image_size=size.pixels, patch=16, width=w, depth=size.depth, heads=heads, hidden=4 * w,
                     norm_eps=1e-6, act="gelu", init="timm", resample="albef"),
        bert_text(vocab=size.words, width=w, depth=2 * size.half, heads=heads, hidden=4 * w, cross_layers=fusion,
                  cross_width=w, dropout=0.0, attn_dropout=0.0),
        ImageSpec(size.pixels, fit="squash"), TextSpec("bert", 30, size.words, sep=False, clean="albef"),
        embed=size.embed,
    )  # fmt: skip
    ours = (
        LitALBEF(config, queue=size.queue, alpha=ALPHA, alpha_epochs=0, momentum=MOMENTUM).train().to(dtype)
    )
    tower = VisionTransformer(
        img_size=size.pixels, patch_size=16, embed_dim=w, depth=size.depth, num_heads=heads, num_classes=0,
        norm_layer=lambda width, **_: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    words = Words(
        attention, first=size.half, cross_width=w, vocab_size=size.words, hidden_size=w, num_attention_heads=heads,
        num_hidden_layers=2 * size.half, intermediate_size=4 * w,
    )  # fmt: skip
    port = Port(words, tower, size.embed).train().to(dtype)
    with torch.no_grad():
        for p in port.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape))  # or all biases would be equal, and none be compared
        for table in port.text_encoder.embeddings.modules():
            if isinstance(table, nn.Embedding):
                table.weight.mul_(0.02)  # BERT's start; torch's is a unit normal
    copy_port(ours.model, port)
    start = ours.model.state_dict()
    ours.teacher.model.load_state_dict({name: start[name] for name in ours.teacher.model.state_dict()})
    batch, drawn = captions(size, dtype)
    past = [F.normalize(torch.randn(size.queue, size.embed, dtype=dtype), dim=1) for _ in range(2)]
    ours.queue.push(*past)
    if size.words != BERT_VOCAB:
        special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", MASK: "[MASK]"}
        names = [special.get(i, f"w{i}") for i in range(size.words)]
        tokenizer = SimpleNamespace(mask_id=MASK, vocabulary=lambda: names)
        ours.__dict__["processor"] = SimpleNamespace(tokenizer=tokenizer)
    found = torch.ones(size.batch, dtype=torch.bool)
    replace(ours, "_hide", Masked(drawn.ids, drawn.labels))
    replace(ours, "_negatives", Negatives(drawn.image, found, drawn.text, found))
    optimizer = build_optimizer(ours.model, lambda groups: AdamW(groups, lr=1e-4, weight_decay=0.02))
    training = Training(port, (past[0], past[1]), alpha=ALPHA, momentum=MOMENTUM, fused=fused)
    return Contest(ours, optimizer, training, batch, drawn)


def replace(module: Any, name: str, given: Any) -> None:
    """Let a method do its work and give something else."""
    inner = getattr(module, name)

    def outer(*args: Any) -> Any:
        inner(*args)
        return given

    setattr(module, name, outer)


def gate() -> float:
    """The largest relative difference of two steps' losses and gradients in float64."""
    import torch

    contest, worst = build(SIZES["gate"], "eager", None, torch.float64), 0.0
    for _ in range(2):
        mine, theirs = contest.our_step(), contest.their_step()
        worst = max(
            worst, benchlib.relative_error(contest.told(mine, True), contest.told_of_theirs(theirs, True))
        )
    return worst


def work(call: Any) -> float:
    """Billions of floating-point operations of one call, by attention's plain kernel, which the counter can count."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=("small", "base"), default="small", help="see SIZES (small)")
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=list(PEERS), help="see above (both)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--bar", type=float, default=1.25, help="exit with 1 below this ratio (1.25)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    import torch

    benchlib.fix_threads()
    error = gate()
    if not error <= 1e-9:
        raise SystemExit(f"two steps in float64 differ by {error:.1e}; no ratio is given")
    size = SIZES[args.size]
    rows: list[Any] = [
        benchlib.Fact("two steps in float64, losses and all gradients", error, "relative difference")
    ]
    for peer in args.peers:
        contest = build(size, *PEERS[peer], torch.float32)
        if not rows[1:]:
            rows += [benchlib.Fact(f"work of a step, {who}", work(call), "GFLOP") for who, call in
                     (("ours", contest.our_step), ("theirs", contest.their_step))]  # fmt: skip
        lengths = contest.batch.keep.sum(1)
        rows.append(
            benchlib.duel(
                f"pre-training step of ALBEF ({args.size}), batch {size.batch}, against the reference "
                + {"written": "as written", "flags": "with fused attention and AdamW"}[peer],
                lambda contest=contest: contest.told(contest.our_step()),
                lambda contest=contest: contest.told_of_theirs(contest.their_step()),
                # after a step of each, so that optimizers, teachers and queues are compared as well
                tolerance=1e-3,
                rounds=args.rounds,
                note=f"{size}; texts of {lengths.float().mean():.1f} tokens on average, {lengths.max()} at most",
            )
        )
        del contest
    status = benchlib.report(rows, args.json, packages=["transformers", "timm"])
    return status or int(rows[3].ratio < args.bar)  # of the first peer


if __name__ == "__main__":
    sys.exit(main())
