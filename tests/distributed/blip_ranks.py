"""Run by test_blip_ranks.py, once a rank: `python blip_ranks.py RANK FOLDER`. Writes to FOLDER what it saw."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import blip_train_oracle as o

from mmzoo.data.batch import CaptionBatch
from mmzoo.lit import everywhere
from mmzoo.lit.blip import LitBLIP
from mmzoo.losses.negatives import Negatives

SPLITS = {"even": (4, 4), "uneven": (3, 5), "lopsided": (7, 1)}
# pairs of one image on both ranks, an image with a further id, and texts of which some fit images elsewhere
IMAGE_IDS = torch.tensor([[1, -1], [2, 3], [1, -1], [4, -1], [3, -1], [5, -1], [6, -1], [2, -1]])
TEXT_IDS = torch.tensor([1, 2, 1, 4, 3, 5, 6, 2])
LENGTHS = torch.tensor([3, 4, 2, 4, 6, 2, 5, 3])  # the longest text is rank 1's


def hardest(scores, positives, *, text_scores=None, **_):
    """In place of a draw, which depends on the rank's generator, the negative that resembles most."""
    scores = scores.detach().clone()
    scores[positives.tile(0, len(scores))] = float("-inf")
    assert text_scores is None
    return Negatives(
        scores.argmax(0), (scores > float("-inf")).any(0), scores.argmax(1), (scores > float("-inf")).any(1)
    )


def batch(step, mine):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, o.IMAGE, o.IMAGE, generator=generator, dtype=torch.float64)[mine]
    ids = torch.randint(5, o.BEGIN, (8, 6), generator=generator)
    lengths = LENGTHS[mine]
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = ids[mine][:, : keep.shape[1]].masked_fill(~keep, o.PAD)
    return CaptionBatch(images, ids, keep, IMAGE_IDS[mine] + 10 * step * (IMAGE_IDS[mine] >= 0),
                        TEXT_IDS[mine] + 10 * step, None, [])  # fmt: skip


class Step(nn.Module):
    """The losses of a `LitBLIP` as a forward pass, which is what DDP wraps."""

    def __init__(self, lit):
        super().__init__()
        self.lit = lit

    def forward(self, some, alpha):
        losses, taught = self.lit.losses(some, alpha)
        return losses.contrast.loss, losses.match.loss, losses.words.loss, losses.match.accuracy, taught


def train(split, rank, wrap):
    """Two steps; rank None holds the pairs of both ranks."""
    torch.manual_seed(0)
    lit = LitBLIP(o.config(), queue=11, momentum=0.8, negatives="ranks").double()
    step = wrap(Step(lit))
    optimizer = torch.optim.SGD(lit.model.parameters(), lr=0.05)
    sizes = SPLITS[split]
    mine = slice(0, 8) if rank is None else slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    seen = []
    for number in range(2):
        some = batch(number, mine)
        *losses, accuracy, taught = step(some, 0.4)
        optimizer.zero_grad()
        sum(losses).backward()
        gradients = {name: p.grad.clone() for name, p in lit.model.named_parameters()}
        optimizer.step()
        lit.after_step()
        lit.queue.push(taught.image, taught.text, some.image_ids, some.text_ids)
        seen.append({"losses": [x.detach() for x in losses], "accuracy": accuracy, "gradients": gradients})
    return {"steps": seen, "teacher": lit.teacher.state_dict(), "queue": lit.queue.state_dict()}


def main(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    everywhere.draw_negatives = hardest
    torch.save(
        {split: train(split, rank, DistributedDataParallel) for split in SPLITS}, folder / f"rank{rank}.pt"
    )
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
