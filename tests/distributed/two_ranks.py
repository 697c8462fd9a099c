"""Run by test_two_ranks.py, once a rank: `python two_ranks.py RANK FOLDER`. Writes what this rank saw to FOLDER."""

import itertools
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mmzoo import dist
from mmzoo.losses.accumulate import cached_step
from mmzoo.losses.contrastive import clip_loss
from mmzoo.losses.sigmoid import siglip_loss

SPLITS = {"even": (4, 4), "uneven": (3, 5), "lopsided": (7, 1), "empty": (0, 8)}
# Several ids an image, padded to another width on each rank; an image and two texts that have no partner.
IMAGE_IDS = torch.tensor(
    [[5, 9, -1], [6, -1, -1], [6, 9, 8], [7, -1, -1], [40, -1, -1], [8, 9, -1], [2, 3, -1], [3, -1, -1]]
)
TEXT_IDS = torch.tensor([9, 5, 6, 7, 50, 8, 2, -1])
CASES = [
    *itertools.product(["softmax", "sigmoid"], ["global", "local"], [*SPLITS], [False, True], [False]),
    *itertools.product(["softmax", "sigmoid"], ["global", "local"], ["uneven"], [True], [True]),
    *itertools.product(["softmax", "sigmoid"], ["auto"], ["uneven"], [True], [False]),
]
"""Loss, gather, split, with ids, with exact accumulation."""


class Towers(nn.Module):
    def __init__(self, name):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-3.0)) if name == "sigmoid" else None
        self.double()
        with torch.no_grad():
            for parameter in (*self.image.parameters(), *self.text.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def embed(self, images, texts):
        return F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)

    def loss_of(self, image, text, **options):
        if self.bias is None:
            return clip_loss(image, text, self.log_scale.exp(), tile=3, **options)
        return siglip_loss(image, text, self.log_scale.exp(), self.bias, tile=3, **options)

    def forward(self, images, texts, **options):
        return self.loss_of(*self.embed(images, texts), **options)


def batch():
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (6, 5))


def run_case(case, rank):
    name, gather, split, with_ids, accumulated = case
    sizes = SPLITS[split]
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    images, texts = (x[mine] for x in batch())
    options = {"gather": gather}
    if with_ids:
        width = 3 - rank if split == "even" else 3
        options |= {"image_ids": IMAGE_IDS[mine][:, :width], "text_ids": TEXT_IDS[mine]}
    towers = Towers(name)
    if accumulated:
        chunks = [(images[rows], texts[rows]) for rows in (slice(0, 2), slice(2, None))]
        result = cached_step(
            lambda chunk: towers.embed(*chunk), chunks, lambda *embedded: towers.loss_of(*embedded, **options)
        )
        for parameter in towers.parameters():  # what DDP does after the last backward
            distributed.all_reduce(parameter.grad.div_(2))
    else:
        model = DistributedDataParallel(towers)
        result = model(images, texts, **options)
        result.loss.backward()
    gradients = {key: parameter.grad for key, parameter in towers.named_parameters()}
    return tuple(x.detach() for x in result), gradients


def run_gathers(rank):
    x = torch.arange(2.0 + rank).add_(10 * rank)[:, None].requires_grad_()
    gathered = dist.gather_with_grad(x)
    weights = torch.arange(1.0, 6.0)[:, None] * (rank + 1)
    (gathered * weights).sum().backward()
    even = torch.full((2, 3), float(rank), requires_grad=True)
    dist.gather_with_grad(even)[1:3].mul(rank + 1).sum().backward()
    return {
        "identity": (dist.rank(), dist.world()),
        "sizes": dist.gather_sizes(2 + rank),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "even_gradient": even.grad,
        "integers": dist.gather_no_grad(torch.full((1 - rank, 2), 2**40 + rank)),
        "booleans": dist.gather_no_grad(torch.tensor([True, rank == 1])),
        "sum": dist.sum_over_ranks(torch.tensor([1, rank])),
        "max": dist.max_over_ranks(torch.tensor([1.0, rank])),
    }


if __name__ == "__main__":
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    torch.save(
        {"cases": {case: run_case(case, number) for case in CASES}, "gathers": run_gathers(number)},
        folder / f"rank{number}.pt",
    )
    distributed.barrier()
    distributed.destroy_process_group()
