"""Run by test_fusion_ranks.py, once a rank: `python fusion_ranks.py RANK FOLDER`. Writes to FOLDER what it saw."""

import itertools
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mmzoo.lit.momentum import EmbeddingQueue, MomentumCopy
from mmzoo.losses.alignment import alignment_loss
from mmzoo.losses.answers import answer_loss
from mmzoo.losses.matching import choice_loss, match_loss
from mmzoo.losses.queued import queued_contrast
from mmzoo.losses.words import SoftWords, word_loss

ROWS = 8
SPLITS = {"even": (4, 4), "uneven": (3, 5), "lopsided": (7, 1), "empty": (0, 8)}
# Several ids an image, padded to another width on each rank; an image and two texts that have no partner.
IMAGE_IDS = torch.tensor(
    [[5, 9, -1], [6, -1, -1], [6, 9, 8], [7, -1, -1], [40, -1, -1], [8, 9, -1], [2, 3, -1], [3, -1, -1]]
)
TEXT_IDS = torch.tensor([9, 5, 6, 7, 50, 8, 2, -1])
CONTRASTS = list(itertools.product(SPLITS, ["ids", "order"], ["taught", "alone"], ["queue", "no queue"]))
MEANS = list(itertools.product(SPLITS, ["words", "taught words", "match", "choice", "answers", "alignment"]))
STEPS = {"even": [(2, 2)] * 4, "uneven": [(3, 1), (1, 2), (0, 3), (7, 6), (2, 1)]}
QUEUE = 5
# Labels of which the second rank has none in some splits, and rows that do not count.
LABELS = torch.tensor([3, -100, 0, 4, -100, 1, 2, -100])
VALID = torch.tensor([1, 0, 1, 1, 1, 1, 0, 0]).bool()
MATCH = torch.tensor([1, 1, 0, 1, 0, 0, 0, 1]).bool()


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Towers(nn.Module):
    """Something linear for every loss to send gradients into."""

    def __init__(self, mean=False):
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.log_scale = None if mean else nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.zeros(1))  # so that DDP has something to broadcast
        self.double()
        with torch.no_grad():
            for seed, p in enumerate((*self.image.parameters(), *self.text.parameters())):
                p.copy_(draw(*p.shape, seed=seed))

    def embed(self, images, texts):
        return F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)

    def forward(self, loss_of, images, texts):
        return loss_of(self, images, texts)


def inputs(seed=40, rows=ROWS):
    return draw(rows, 6, seed=seed), draw(rows, 5, seed=seed + 1)


def contrast(case, mine, gather):
    """A loss of this rank's rows `mine` for one of CONTRASTS."""
    split, ids, taught, queued = case
    options = {"gather": gather, "tile": 3}
    if ids == "ids":
        # in the even split rank 1 has narrower ids, which hold all that its rows have
        narrow = split == "even" and mine.start == 4
        options |= {"image_ids": IMAGE_IDS[mine][:, : 2 if narrow else 3], "text_ids": TEXT_IDS[mine]}
    if taught == "taught":
        teacher = [F.normalize(draw(ROWS, 4, seed=seed), dim=1)[mine] for seed in (20, 21)]
        options |= {"teacher_image": teacher[0], "teacher_text": teacher[1], "alpha": 0.4}
    if queued == "queue":
        queue = EmbeddingQueue(QUEUE, 4).double()
        past = [F.normalize(draw(7, 4, seed=seed), dim=1) for seed in (30, 31)]
        queue._write(queue.image, past[0]), queue._write(queue.text, past[1])
        queue.image_ids[:, 0] = torch.tensor([9, 70, 8, 3, 71])
        queue.text_ids[:] = torch.tensor([9, 6, 70, 2, -1])
        queue.pushed = 7
        options["queue"] = queue.view()

    def loss_of(towers, images, texts):
        return queued_contrast(*towers.embed(images, texts), towers.log_scale.exp(), **options)

    return loss_of


def mean(name, mine, over_ranks):
    """A loss of this rank's rows for one of MEANS; both towers get a gradient."""

    def loss_of(towers, images, texts):
        image, text = towers.image(images), towers.text(texts)
        both = image * text
        if name in ("words", "taught words"):
            soft = {"soft": SoftWords(draw(ROWS, 3, seed=50)[mine], draw(5, 3, seed=51)), "alpha": 0.4}
            options = soft if name == "taught words" else {}
            weight = draw(5, 4, seed=52)
            return word_loss(both, weight, None, LABELS[mine], chunk=2, over_ranks=over_ranks, **options)
        if name == "match":
            return match_loss(both[:, :2], MATCH[mine], valid=VALID[mine], over_ranks=over_ranks)
        if name == "choice":
            options = {"teacher": draw(ROWS, 4, seed=53)[mine], "alpha": 0.4}
            return choice_loss(both, LABELS[mine].clamp(0, 3), over_ranks=over_ranks, **options)
        if name == "answers":
            return answer_loss(both, draw(ROWS, 4, seed=56)[mine].sigmoid(), over_ranks=over_ranks)
        words = text[:, None] + draw(3, 4, seed=54)
        patches = image[:, None] + draw(5, 4, seed=55)
        keep = torch.ones(len(text), 3, dtype=torch.bool), torch.ones(len(text), 5, dtype=torch.bool)
        keep[0][VALID[mine].logical_not()] = False
        return alignment_loss(words, patches, *keep, MATCH[mine], over_ranks=over_ranks)

    return loss_of


def run(loss_of, mine, is_mean, wrap):
    towers = Towers(mean=is_mean)
    model = wrap(towers)  # kept until the backward pass, since DDP's hooks die with it
    result = model(loss_of, *(x[mine] for x in inputs()))
    result[0].backward()
    gradients = {key: p.grad for key, p in towers.named_parameters()}
    return [x.detach() for x in result], gradients


def train(split, rank, wrap):
    """Steps of a student with teacher and queue; rank None holds the rows of both ranks."""
    towers, queue = Towers(), EmbeddingQueue(QUEUE, 4).double()
    model, teacher = wrap(towers), MomentumCopy(towers, decay=0.8)
    optimizer = torch.optim.SGD(towers.parameters(), lr=0.1)
    losses = []
    for step, sizes in enumerate(STEPS[split]):
        first = sum(sizes[:rank]) if rank else 0
        mine = slice(first, first + (sum(sizes) if rank is None else sizes[rank]))
        images, texts = (x[mine] for x in inputs(60 + 2 * step, sum(sizes)))
        ids = (100 * step + torch.arange(sum(sizes)) // 2)[mine]
        if step == 2:
            ids = ids - 100  # as if images of the step before came again
        with torch.no_grad():
            image_m, text_m = teacher.model.embed(images, texts)

        def loss_of(towers, images, texts, ids=ids, taught=(image_m, text_m)):
            return queued_contrast(
                *towers.embed(images, texts), towers.log_scale.exp(), image_ids=ids, text_ids=ids,
                teacher_image=taught[0], teacher_text=taught[1], queue=queue.view(), alpha=0.4, gather="local",
            )  # fmt: skip

        optimizer.zero_grad()
        loss = model(loss_of, images, texts).loss
        loss.backward()
        optimizer.step()
        teacher.update()
        queue.push(image_m, text_m, ids, ids)
        losses.append(loss.detach())
    return {"losses": losses, "teacher": teacher.state_dict(), "queue": queue.state_dict()}


def not_broadcast(rank):
    """Fill the queue and a buffer differently on every rank, run DDP forward, and see what became of them."""

    class Both(Towers):
        def __init__(self):
            super().__init__()
            self.queue = EmbeddingQueue(QUEUE, 4)

    both = Both()
    model = DistributedDataParallel(both)
    both.queue.image.fill_(rank), both.steps.fill_(rank)
    for _ in range(2):
        model(
            lambda towers, i, t: towers.image(i).sum() + towers.text(t).sum() + towers.log_scale, *inputs()
        ).backward()
    return both.queue.image.unique().tolist(), both.steps.tolist()


def mine_of(split, rank):
    sizes = SPLITS[split]
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def main(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ddp = DistributedDataParallel
    torch.save(
        {
            "contrasts": {
                case: run(contrast(case, mine_of(case[0], rank), "local"), mine_of(case[0], rank), False, ddp)
                for case in CONTRASTS
            },
            "means": {
                case: run(mean(case[1], mine_of(case[0], rank), True), mine_of(case[0], rank), True, ddp)
                for case in MEANS
            },
            "training": {split: train(split, rank, ddp) for split in STEPS},
            "not_broadcast": not_broadcast(rank),
        },
        folder / f"rank{rank}.pt",
    )
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
