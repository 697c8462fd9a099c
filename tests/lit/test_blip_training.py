"""BLIP's pre-training step against the reference's, written with other libraries' layers; resuming; any batch size."""

import copy

import blip_train_oracle as o
import pytest
import torch
from hand_copy import shake
from lightning.pytorch import Callback
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit import Checkpoints, LitBLIP, Recipe
from mmzoo.lit.everywhere import draw_everywhere
from mmzoo.lit.fusion import HeldOutFusion
from mmzoo.lit.pairs import LOG_SCALES, Taught
from mmzoo.models.blip import BLIP
from mmzoo.towers import TextBackbone

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
RATE, MOMENTUM, ALPHA = 0.05, 0.9, 0.4


def lit(model=None, **settings):
    settings = {"queue": 7, "momentum": MOMENTUM, "alpha": ALPHA} | settings
    settings.setdefault("optimizer", lambda params: SGD(params, lr=RATE))
    return LitBLIP(model or o.config(), recipe=Recipe(warmup_steps=0, floor=1.0), **settings)


def batch(seed, count=4, length=6, ids=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, o.IMAGE, o.IMAGE, generator=generator)
    text = torch.randint(5, o.BEGIN, (count, length), generator=generator)
    text[:, 0] = 2
    keep = torch.arange(length) < (2 + torch.arange(count) % (length - 1))[:, None]
    text[~keep] = o.PAD
    ids = torch.arange(count) + 100 * seed if ids is None else torch.tensor(ids)
    return CaptionBatch(images, text, keep, ids[:, None], ids, None, [f"{seed}-{i}" for i in range(count)])


def fit(module, batches, folder, toys, notes=None, **settings):
    """Train on batches as they are: Lightning takes a bare list of tuples for a tree of loaders."""
    settings = {"max_steps": len(batches), "limit_val_batches": 0} | settings
    trainer = toys.trainer(folder, callbacks=[notes] if notes else [], **settings)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


class Notes(Callback):
    """What each step drew and lost, and the teacher that it saw."""

    def __init__(self, module):
        self.steps = []
        for name in ("_negatives", "losses"):
            self._wrap(module, name)

    def _wrap(self, module, name):
        inner = getattr(module, name)

        def outer(*args):
            found = inner(*args)
            self.now[name] = found
            return found

        setattr(module, name, outer)

    def on_train_batch_start(self, trainer, module, batch, index):
        self.now = {"teacher": copy.deepcopy(module.teacher.model.state_dict())}

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.steps.append(self.now)


class Reference:
    """A student, a teacher and a queue of the oracle's layers, trained as salesforce/BLIP trains."""

    def __init__(self):
        torch.manual_seed(0)
        self.student = shake(o.Oracle().double())
        self.teacher = copy.deepcopy(self.student)
        self.images, self.texts = torch.zeros(2, 0, o.EMBED, dtype=torch.float64)
        self.optimizer = SGD(self.student.parameters(), lr=RATE)

    def model(self, which):
        """The weights as our model has them."""
        ours = BLIP(o.config()).double()
        o.copy_oracle(ours, getattr(self, which))
        return ours.state_dict()

    def losses(self, batch, alpha, negatives):
        s, t, ids, keep, count = self.student, self.teacher, batch.ids, batch.keep, len(batch.ids)
        scale = s.log_scale.exp()
        tokens = s.tokens(batch.images.double())
        image, text = s.image_feat(tokens), s.text_feat(ids, keep)
        with torch.no_grad():
            image_m, text_m = t.image_feat(t.tokens(batch.images.double())), t.text_feat(ids, keep)
            all_images, all_texts = torch.cat([image_m, self.images]), torch.cat([text_m, self.texts])
            one_hot = torch.eye(count, len(all_texts), dtype=torch.float64)
            target_i = alpha * (scale * image_m @ all_texts.T).softmax(1) + (1 - alpha) * one_hot
            target_t = alpha * (scale * text_m @ all_images.T).softmax(1) + (1 - alpha) * one_hot
        loss_i = -((scale * image @ all_texts.T).log_softmax(1) * target_i).sum(1).mean()
        loss_t = -((scale * text @ all_images.T).log_softmax(1) * target_t).sum(1).mean()
        logits = [
            s.match(ids, keep, tokens),
            s.match(ids, keep, tokens[negatives.image]),
            s.match(ids[negatives.text], keep[negatives.text], tokens),
        ]
        itm = F.cross_entropy(torch.cat(logits), torch.tensor([1] * count + [0] * 2 * count))
        return (loss_i + loss_t) / 2, itm, s.lm_loss(ids, keep, tokens), image_m, text_m

    def step(self, batch, alpha, negatives):
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.data = old.data * MOMENTUM + new.data * (1 - MOMENTUM)  # at the start of each forward pass
        itc, itm, lm, image_m, text_m = self.losses(batch, alpha, negatives)
        self.optimizer.zero_grad()
        (itc + itm + lm).backward()
        self.optimizer.step()
        self.images, self.texts = torch.cat([self.images, image_m])[-7:], torch.cat([self.texts, text_m])[-7:]
        return itc.detach(), itm.detach(), lm.detach()


def test_consecutive_steps_equal_the_references(toys, tmp_path, monkeypatch):
    """Losses, weights, teacher and queue of three steps; the queue wraps, and alpha ramps over two epochs.

    The reference projects an image's keys and values four times a step, our model once.
    """
    projected, inner = [], TextBackbone.project_context
    monkeypatch.setattr(
        TextBackbone, "project_context", lambda *args, **kw: (projected.append(1), inner(*args, **kw))[1]
    )
    reference = Reference()
    module = lit(alpha_epochs=2.0).double()
    for model in (module.model, module.teacher.model):
        weights = reference.model("student")
        model.load_state_dict({k: v for k, v in weights.items() if k in model.state_dict()})
    notes, batches = Notes(module), [batch(seed) for seed in (1, 2, 3)]
    fit(module, batches, tmp_path, toys, notes, precision="64-true")
    assert len(notes.steps) == len(projected) == 3
    for i, (some, noted) in enumerate(zip(batches, notes.steps, strict=True)):
        negatives = noted["_negatives"]
        assert bool(negatives.image_found.all() and negatives.text_found.all())
        assert bool((negatives.image != torch.arange(4)).all() and (negatives.text != torch.arange(4)).all())
        found = noted["losses"][0]
        wanted = reference.step(some, ALPHA * i / 6, negatives)
        for ours, theirs in zip((found.contrast, found.match, found.words), wanted, strict=True):
            torch.testing.assert_close(ours.loss.detach(), theirs, **TIGHT)
        seen = reference.model("teacher")
        for name, tensor in noted["teacher"].items():
            torch.testing.assert_close(tensor, seen[name], **TIGHT)
    for name, tensor in reference.model("student").items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor, **TIGHT)
    queue = module.queue.view()
    assert (queue.count, module.queue.pushed) == (7, 12)
    order = torch.arange(5, 12) % 7  # the oldest that is left lies at 5
    torch.testing.assert_close(queue.image[order], reference.images, **TIGHT)
    torch.testing.assert_close(queue.text[order], reference.texts, **TIGHT)


def test_the_teacher_has_what_embeds_and_nothing_else(toys, tmp_path):
    module = lit()
    teacher, student = module.teacher.model, module.model
    assert teacher.decoder is None
    assert teacher.lm is None
    assert all(block.cross is None and block.cross_norm is None for block in teacher.text.blocks)
    held = {name.split(".")[0] for name in teacher.state_dict()}
    assert held == {"vision", "text", "vision_proj", "text_proj", "logit_scale"}
    one = batch(1)
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.encode_text(one.ids, one.keep), student.eval().encode_text(one.ids, one.keep)
        )
    again = lit()
    again.load_state_dict(module.state_dict())
    fit(module, [one], tmp_path, toys)
    assert not teacher.training


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("settings", [{"queue": 4}, {"queue": 0}, {"negatives": "ranks"}], ids=str)
def test_any_batch_size(count, settings, toys, tmp_path):
    module = lit(**settings)
    trainer = fit(module, [batch(seed, count) for seed in (1, 2, 3)], tmp_path, toys)
    assert bool(torch.isfinite(trainer.callback_metrics["train/loss"]))
    assert module.queue is None or module.queue.count == min(module.queue.size, 3 * count)


@pytest.mark.parametrize("negatives", ["batch", "ranks"])
def test_one_caption_for_all_images_has_no_negatives(negatives, toys, tmp_path):
    """Every text fits every image: matching learns from the true pairs alone, and nothing is NaN."""
    module, one = lit(negatives=negatives), batch(1, ids=[7, 7, 7, 7])
    with torch.no_grad():
        losses, _ = module.losses(one, 0.0)
        logits = module.model.match(one.images, one.ids, one.keep)
    torch.testing.assert_close(losses.match.loss, F.cross_entropy(logits, torch.ones(4).long()))
    assert bool(torch.isfinite(fit(module, [one], tmp_path, toys).callback_metrics["train/loss"]))


def test_negatives_of_all_ranks_share_no_id():
    ids = torch.tensor([1, 1, 1, 2, 2, 3])
    one = batch(1, count=6, ids=ids.tolist())
    unit = [F.normalize(torch.randn(6, 4), dim=1) for _ in range(2)]
    drawn = draw_everywhere(
        one, Taught(*unit), Taught(*unit), torch.tensor(5.0), generator=torch.Generator(), weighting="blip"
    )
    text, image, match, valid = drawn.rows
    assert text.tolist()[:6] == image.tolist()[:6] == list(range(6))
    assert match.tolist() == [True] * 6 + [False] * 12
    assert bool(valid.all())
    assert bool((ids[text[6:]] != ids[image[6:]]).all())
    assert sorted(text[6:12].tolist()) == sorted(image[12:].tolist()) == list(range(6))
    assert torch.equal(drawn.ids, one.ids)


def test_a_model_that_only_reads_learns_retrieval(toys, tmp_path):
    module = lit(o.config(writes=False))
    trainer = fit(module, [batch(1)], tmp_path, toys)
    assert "train/lm" not in trainer.callback_metrics
    assert "train/itm" in trainer.callback_metrics


def test_without_a_teacher_the_batch_contrasts_with_itself(toys, tmp_path):
    module, one = lit(momentum=None, queue=0, alpha=0.0), batch(1)
    losses, taught = module.losses(one, 0.0)
    assert taught is None
    m = module.model
    logits = m.scale * m.encode_image(one.images) @ m.encode_text(one.ids, one.keep).T
    own = torch.arange(4)
    torch.testing.assert_close(
        losses.contrast.loss, (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    )
    assert bool(torch.isfinite(fit(module, [one], tmp_path, toys).callback_metrics["train/loss"]))


def test_temperature_stays_within_the_references_bounds(toys, tmp_path):
    for start, end in zip((-9.0, 9.0), LOG_SCALES, strict=True):
        module = lit(o.config(logit_scale=start), optimizer=lambda params: SGD(params, lr=1e-12))
        fit(module, [batch(1)], tmp_path, toys)
        assert float(module.model.logit_scale.detach()) == pytest.approx(end)


def test_candidates_are_ranked_by_matching_and_cosine():
    """The matching says the third text, less than the cosine says the first."""
    image, ids = F.normalize(torch.tensor([[1.0, 0.0]]), dim=1), torch.tensor([5])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])

    class Model:
        def project(self, tokens):
            return tokens

        def text_states(self, ids, keep):
            return ids

        def match_states(self, states, keep, kv, index):
            return torch.stack([torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, -1.0, 0.1])], 1)

    found = {}
    for ranks_by in ("itm", "itm+itc"):
        split = HeldOutFusion(Model(), 3, ranks_by=ranks_by)
        words = torch.zeros(3, 2).long()
        whole = CaptionBatch(
            torch.zeros(1), words, words == 0, ids[:, None], torch.tensor([5, 6, 7]), None, []
        )
        split._parts.append((image, text, ids[:, None], whole.text_ids, torch.full((3,), -1)))
        split.hold(torch.zeros(1, 1, 2), whole)
        found[ranks_by] = split._reranked()["i2t_r1"]
    assert found == {"itm": 0.0, "itm+itc": 1.0}


class Kill(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_a_killed_run_resumes_exactly(toys, tmp_path):
    """Weights, teacher, queue with its pointer, alpha and the draws, in the middle of the second epoch."""

    def run(folder, *, kill=None, resume=None, seed=0):
        torch.manual_seed(seed)
        module = LitBLIP(
            o.config(vocab=3072, dropout=0.1), queue=9, momentum=MOMENTUM, rerank=3,
            optimizer=lambda params: AdamW(params, lr=3e-3), recipe=Recipe(warmup_steps=2, ema_decay=0.9),
        )  # fmt: skip
        trainer = toys.trainer(
            folder, Checkpoints(every_n_steps=1 if kill else 0), callbacks=[kill] if kill else [], max_steps=5
        )
        try:
            trainer.fit(module, datamodule=toys.data(size=9), ckpt_path=resume)
        except (KeyboardInterrupt, SystemExit):
            assert kill
        return module, dict(trainer.callback_metrics)

    whole, numbers = run(tmp_path / "whole")
    run(tmp_path / "part", kill=Kill())
    again, resumed = run(tmp_path / "part", resume=tmp_path / "part/checkpoints/last.ckpt", seed=9)
    one, two = whole.state_dict(), again.state_dict()
    assert one.keys() == two.keys()
    assert {"teacher.model.vision.cls", "queue.image", "queue.pushed"} <= one.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole.queue.pushed == again.queue.pushed == 20
    assert {k: float(v) for k, v in numbers.items()} == {k: float(v) for k, v in resumed.items()}
    assert {"held/reranked_i2t_r1", "held/itm_top1", "held/lm_top1", "held/lm_top1.chance"} <= set(numbers)


def test_what_cannot_be_trained():
    for settings, said in (
        ({"alpha": 1.5}, r"alpha is 1\.5"),
        ({"queue": -1}, "numbers from 0"),
        ({"label_smoothing": 2.0}, r"label_smoothing is 2\.0"),
        ({"momentum": None}, "without a teacher"),
        ({"model": o.config(reads=False)}, "have LitBLIPCaption"),
        ({"model": "albef-tiny"}, "albef-tiny is a albef model"),
    ):
        with pytest.raises(UsageError, match=said):
            lit(**settings)


def test_a_run_may_align_before_it_fuses(toys, tmp_path):
    """Such a step contrasts as any other and leaves alone what only matching and writing train."""
    module = lit(align_steps=1)
    one, before = batch(1), copy.deepcopy(module.model.state_dict())
    whole = module.losses(one, 0.0)[0].contrast.loss
    torch.testing.assert_close(module.aligned(one, 0.0)[0].contrast.loss, whole)
    trainer = fit(module, [one], tmp_path, toys)
    assert {"train/itm", "train/lm"}.isdisjoint(trainer.callback_metrics)
    moved = {
        name for name, tensor in module.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert {"vision.cls", "text_proj.weight", "logit_scale"} <= moved
    assert not any(n.startswith(("match_head", "lm", "decoder")) or ".cross" in n for n in moved)
    with pytest.raises(UsageError, match="of all ranks one hard negative"):
        lit(hard_negatives=2, negatives="ranks")
    rows = lit(hard_negatives=2).rows_to_match(
        *(F.normalize(torch.randn(4, 3), dim=1) for _ in "it"), None, one
    )
    assert len(rows.text) == 5 * 4
