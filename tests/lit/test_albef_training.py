"""ALBEF's pre-training step against the reference's, written with other libraries' layers; resuming; any batch size."""

import copy
from types import SimpleNamespace

import albef_oracle as o
import pytest
import torch
from hand_copy import shake
from lightning.pytorch import Callback
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, IterableDataset

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit import Checkpoints, LitALBEF, Recipe
from mmzoo.lit.albef import LOG_SCALES
from mmzoo.lit.pairs import LossWeights
from mmzoo.losses.masking import NO_LABEL
from mmzoo.losses.negatives import Negatives
from mmzoo.models.albef import ALBEF, ALBEFConfig, ALBEFVEConfig

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
RATE, MOMENTUM, ALPHA = 0.05, 0.9, 0.4


def words():
    special = {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]"}
    return [special.get(i, f"w{i}") for i in range(o.VOCAB)]


def config(**changes):
    return ALBEFConfig(**o.towers(dropout=changes.pop("dropout", 0.0)), embed=o.EMBED, **changes)


class _Words:
    """A vocabulary as small as the model's, since the carried one has 3,072 words."""

    mask_id, vocabulary = 4, staticmethod(words)


def lit(model=None, **settings):
    settings = {"queue": 7, "momentum": MOMENTUM, "alpha": ALPHA, "mask": 0.4} | settings
    settings.setdefault("optimizer", lambda params: SGD(params, lr=RATE))
    module = LitALBEF(model or config(), recipe=Recipe(warmup_steps=0, floor=1.0), **settings)
    module.__dict__["processor"] = SimpleNamespace(tokenizer=_Words())
    return module


def batch(seed, count=4, length=6, ids=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, o.IMAGE, o.IMAGE, generator=generator)
    text = torch.randint(5, o.VOCAB, (count, length), generator=generator)
    text[:, 0] = 2
    keep = torch.arange(length) < (2 + torch.arange(count) % (length - 1))[:, None]
    text[~keep] = 0
    ids = torch.arange(count) + 100 * seed if ids is None else torch.tensor(ids)
    return CaptionBatch(images, text, keep, ids[:, None], ids, None, [f"{seed}-{i}" for i in range(count)])


def loader(batches):
    """As they are: Lightning takes a bare list of tuples for a tree of loaders."""
    return DataLoader(batches, batch_size=None)


class Notes(Callback):
    """What each step drew and lost, and the teacher that it saw."""

    def __init__(self, module):
        self.steps = []
        for name in ("_hide", "_negatives", "losses"):
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
    """A student, a teacher and a queue of the oracle's layers, trained as salesforce/ALBEF trains."""

    def __init__(self):
        torch.manual_seed(0)
        self.student = shake(o.Oracle().double())
        self.student.log_scale = torch.nn.Parameter(-self.student.temp.detach().log())
        del self.student.temp
        self.teacher = copy.deepcopy(self.student)
        self.images, self.texts = torch.zeros(2, 0, o.EMBED, dtype=torch.float64)
        self.optimizer = SGD(self.student.parameters(), lr=RATE)

    def model(self, which):
        """The weights as our model has them."""
        ours = ALBEF(config()).double()
        whole = getattr(self, which)
        whole.temp = torch.nn.Parameter((-whole.log_scale.detach()).exp())
        o.copy_oracle(ours, whole)
        del whole.temp
        return ours.state_dict()

    def losses(self, batch, alpha, negatives, masked):
        s, t, keep = self.student, self.teacher, batch.keep
        scale, count = s.log_scale.exp(), len(batch.ids)
        tokens = s.tokens(batch.images.double())
        states = s.text_encoder.text(batch.ids, keep)
        image, text = s.image_feat(tokens), s.text_feat(states)
        with torch.no_grad():
            tokens_m = t.tokens(batch.images.double())
            image_m, text_m = t.image_feat(tokens_m), t.text_feat(t.text_encoder.text(batch.ids, keep))
            all_images, all_texts = torch.cat([image_m, self.images]), torch.cat([text_m, self.texts])
            one_hot = torch.eye(count, len(all_texts), dtype=torch.float64)
            target_i = alpha * (scale * image_m @ all_texts.T).softmax(1) + (1 - alpha) * one_hot
            target_t = alpha * (scale * text_m @ all_images.T).softmax(1) + (1 - alpha) * one_hot
        loss_i = -((scale * image @ all_texts.T).log_softmax(1) * target_i).sum(1).mean()
        loss_t = -((scale * text @ all_images.T).log_softmax(1) * target_t).sum(1).mean()

        fuse = s.text_encoder.fusion
        first = [fuse(states, o.additive(keep), tokens)[:, 0]]
        first.append(fuse(states, o.additive(keep), tokens[negatives.image])[:, 0])
        first.append(fuse(states[negatives.text], o.additive(keep[negatives.text]), tokens)[:, 0])
        truth = torch.tensor([1] * count + [0] * 2 * count)
        itm = F.cross_entropy(s.itm_head(torch.cat(first)), truth)

        logits = s.text_encoder.logits(s.text_encoder.multimodal(masked.ids, keep, tokens))
        with torch.no_grad():
            soft = t.text_encoder.logits(t.text_encoder.multimodal(masked.ids, keep, tokens_m)).softmax(-1)
        hard = F.cross_entropy(logits.flatten(0, 1), masked.labels.flatten(), ignore_index=NO_LABEL)
        distilled = -(logits.log_softmax(-1) * soft).sum(-1)[masked.labels != NO_LABEL].mean()
        mlm = (1 - alpha) * hard + alpha * distilled
        return (loss_i + loss_t) / 2, itm, mlm, image_m, text_m

    def step(self, batch, alpha, negatives, masked):
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.data = old.data * MOMENTUM + new.data * (1 - MOMENTUM)  # at the start of each forward pass
        itc, itm, mlm, image_m, text_m = self.losses(batch, alpha, negatives, masked)
        self.optimizer.zero_grad()
        (itc + itm + mlm).backward()
        self.optimizer.step()
        self.images, self.texts = torch.cat([self.images, image_m])[-7:], torch.cat([self.texts, text_m])[-7:]
        return itc.detach(), itm.detach(), mlm.detach()


def test_consecutive_steps_equal_the_references(toys, tmp_path):
    """Losses, weights, teacher and queue of three steps; the queue wraps, and alpha ramps over an epoch."""
    reference = Reference()
    module = lit(alpha_epochs=1.0).double()
    for model in (module.model, module.teacher.model):
        model.load_state_dict(
            {k: v for k, v in reference.model("student").items() if k in model.state_dict()}
        )
    notes, batches = Notes(module), [batch(seed) for seed in (1, 2, 3)]
    trainer = toys.trainer(tmp_path, callbacks=[notes], max_steps=3, precision="64-true", limit_val_batches=0)
    trainer.fit(module, loader(batches))
    assert len(notes.steps) == 3
    for i, (some, noted) in enumerate(zip(batches, notes.steps, strict=True)):
        negatives, masked = noted["_negatives"], noted["_hide"]
        assert isinstance(negatives, Negatives)
        assert bool(negatives.image_found.all() and negatives.text_found.all())
        assert bool((negatives.image != torch.arange(4)).all() and (negatives.text != torch.arange(4)).all())
        assert bool((masked.labels != NO_LABEL).any())
        found = noted["losses"][0]
        wanted = reference.step(some, ALPHA * i / 3, negatives, masked)
        for ours, theirs in zip((found.contrast, found.match, found.words), wanted, strict=True):
            torch.testing.assert_close(ours.loss.detach(), theirs, **TIGHT)
        seen = reference.model("teacher")
        for name, tensor in noted["teacher"].items():
            torch.testing.assert_close(tensor, seen[name], **TIGHT)
    for name, tensor in reference.model("student").items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor, **TIGHT)
    queue = module.queue.view()
    assert queue.count == 7
    assert module.queue.pushed == 12
    order = torch.arange(5, 12) % 7  # the oldest that is left lies at 5
    torch.testing.assert_close(queue.image[order], reference.images, **TIGHT)
    torch.testing.assert_close(queue.text[order], reference.texts, **TIGHT)
    assert queue.text_ids[order].tolist() == [201, 202, 203, 300, 301, 302, 303]


def test_the_teacher_follows_once_per_optimizer_step(toys, tmp_path):
    """With two batches a step, the teacher moves once, and alpha's ramp is counted in steps."""
    module = lit(alpha_epochs=1.0)
    start = copy.deepcopy(module.teacher.model.state_dict())
    trainer = toys.trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(module, loader([batch(1), batch(2)]))
    student = module.model.state_dict()
    assert not torch.equal(student["vision.cls"], start["vision.cls"])
    for name, tensor in module.teacher.model.state_dict().items():
        torch.testing.assert_close(tensor, MOMENTUM * start[name] + (1 - MOMENTUM) * student[name])
    assert module.queue.pushed == 8
    assert all(not p.requires_grad for p in module.teacher.parameters())
    assert not module.teacher.model.training
    assert module.teacher.model.mlm.weight is module.teacher.model.text.embed.tok.weight


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("queue", [0, 4])
def test_any_batch_size(count, queue, toys, tmp_path):
    module = lit(queue=queue)
    batches = [batch(seed, count) for seed in (1, 2, 3)]
    trainer = toys.trainer(tmp_path, max_steps=3, limit_val_batches=0)
    trainer.fit(module, loader(batches))
    assert bool(torch.isfinite(trainer.callback_metrics["train/loss"]))
    assert queue == 0 or module.queue.count == min(4, 3 * count)


def test_one_caption_for_all_images_has_no_negatives(toys, tmp_path):
    """Every text fits every image: matching learns from the true pairs alone, and nothing is NaN."""
    module = lit()
    trainer = toys.trainer(tmp_path, max_steps=1, limit_val_batches=0)
    notes = Notes(module)
    trainer.callbacks.insert(0, notes)
    trainer.fit(module, loader([batch(1, ids=[7, 7, 7, 7])]))
    negatives = notes.steps[0]["_negatives"]
    assert not bool(negatives.image_found.any() or negatives.text_found.any())
    assert bool(torch.isfinite(trainer.callback_metrics["train/loss"]))


def test_negatives_share_no_id(toys, tmp_path):
    module = lit()
    notes = Notes(module)
    trainer = toys.trainer(tmp_path, callbacks=[notes], max_steps=1, limit_val_batches=0)
    trainer.fit(module, loader([batch(1, count=6, ids=[1, 1, 1, 2, 2, 3])]))
    negatives, ids = notes.steps[0]["_negatives"], torch.tensor([1, 1, 1, 2, 2, 3])
    assert bool((ids[negatives.image] != ids).all() and (ids[negatives.text] != ids).all())


def test_a_model_without_a_word_head_learns_without_hiding_words(toys, tmp_path):
    module = lit(config(words=False))
    trainer = toys.trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, loader([batch(1)]))
    assert "train/mlm" not in trainer.callback_metrics
    assert "train/itm" in trainer.callback_metrics


def test_temperature_stays_within_the_references_bounds(toys, tmp_path):
    for start, end in zip((-9.0, 9.0), LOG_SCALES, strict=True):
        module = lit(config(logit_scale=start), optimizer=lambda params: SGD(params, lr=1e-12))
        trainer = toys.trainer(tmp_path, max_steps=1, limit_val_batches=0)
        trainer.fit(module, loader([batch(1)]))
        assert float(module.model.logit_scale.detach()) == pytest.approx(end)


class Kill(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_resumes_exactly(toys, tmp_path, accumulate):
    """Weights, teacher, queue with its pointer, alpha and the draws, in the middle of the second epoch."""

    def run(folder, *, kill=None, resume=None, seed=0):
        torch.manual_seed(seed)
        vocab = 3072
        towers = o.towers(dropout=0.1)
        towers["text"] = towers["text"].__class__(**{**vars(towers["text"]), "vocab": vocab})
        towers["text_input"] = towers["text_input"].__class__("tiny", 8, vocab, sep=False, clean="albef")
        module = LitALBEF(
            ALBEFConfig(**towers, embed=o.EMBED), queue=9, momentum=MOMENTUM, alpha_epochs=2.0, mask=0.4, rerank=3,
            optimizer=lambda params: AdamW(params, lr=3e-3), recipe=Recipe(warmup_steps=2, ema_decay=0.9),
        )  # fmt: skip
        alphas = []
        inner = module.losses
        module.losses = lambda batch, alpha: (alphas.append(alpha), inner(batch, alpha))[1]
        trainer = toys.trainer(
            folder, Checkpoints(every_n_steps=1 if kill else 0), callbacks=[kill] if kill else [], max_steps=6,
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
        try:
            trainer.fit(module, datamodule=toys.data(size=22), ckpt_path=resume)
        except (KeyboardInterrupt, SystemExit):
            assert kill
        return module, alphas, dict(trainer.callback_metrics)

    whole, alphas, numbers = run(tmp_path / "whole")
    run(tmp_path / "part", kill=Kill())
    again, later, resumed = run(tmp_path / "part", resume=tmp_path / "part/checkpoints/last.ckpt", seed=9)
    one, two = whole.state_dict(), again.state_dict()
    assert one.keys() == two.keys()
    assert {"teacher.model.vision.cls", "queue.image", "queue.pushed"} <= one.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert later == alphas[-len(later) :]
    assert len(later) == {1: 2, 2: 3}[accumulate]  # an epoch of five batches ends with a step of one
    assert whole.queue.pushed == again.queue.pushed == 4 * len(alphas)
    assert {k: float(v) for k, v in numbers.items()} == {k: float(v) for k, v in resumed.items()}
    assert {"held/reranked_i2t_r1", "held/itm_top1", "held/mlm_top1", "held/mlm_top1.chance"} <= set(numbers)


def test_alpha_cannot_ramp_over_an_epoch_without_end(toys, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([batch(1), batch(2)])

    def fit(epochs):
        module = lit(alpha_epochs=epochs)
        trainer = toys.trainer(tmp_path, max_steps=1, limit_val_batches=0)
        trainer.fit(module, train_dataloaders=DataLoader(Stream(), batch_size=None))
        return trainer.callback_metrics

    with pytest.raises(UsageError, match="alpha_epochs"):
        fit(1.0)
    assert float(fit(0.0)["train/alpha"]) == pytest.approx(ALPHA)


def test_what_cannot_be_trained():
    with pytest.raises(UsageError, match=r"alpha is 1\.5"):
        lit(alpha=1.5)
    with pytest.raises(UsageError, match="numbers from 0"):
        lit(queue=-1)
    with pytest.raises(UsageError, match="is an ALBEFVE"):
        LitALBEF(ALBEFVEConfig(**o.towers()))


def test_without_a_teacher_the_batch_contrasts_with_itself(toys, tmp_path):
    module, one = lit(momentum=None, queue=0, alpha=0.0), batch(1)
    assert module.teacher is None
    assert not any(name.startswith("teacher") for name in module.state_dict())
    losses, taught = module.losses(one, 0.0)
    assert taught is None
    m = module.model
    image, text = m.encode_image(one.images), m.encode_text(one.ids, one.keep)
    logits, own = m.scale * image @ text.T, torch.arange(len(one.ids))
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(losses.contrast.loss, expected)
    # both sides learn from every pair, where a teacher's columns would have no gradient
    losses.contrast.loss.backward()
    taken = {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}
    m.zero_grad()
    expected.backward()
    for name, p in m.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(taken[name], p.grad, msg=name)
    before = copy.deepcopy(m.state_dict())
    toys.trainer(tmp_path, max_steps=2).fit(module, loader([batch(1), batch(2)]))
    assert not torch.equal(before["text.embed.tok.weight"], m.state_dict()["text.embed.tok.weight"])


@pytest.mark.parametrize("settings", [{"alpha": 0.4, "queue": 0}, {"alpha": 0.0, "queue": 7}])
def test_what_only_a_teacher_can_give_is_refused_without_one(settings):
    with pytest.raises(UsageError, match="without a teacher"):
        lit(momentum=None, **settings)


def test_more_hard_negatives_are_further_rows_of_the_same_loss(toys, tmp_path):
    module, one, drawn = lit(hard_negatives=3), batch(1), []
    draw = module._negatives
    module._negatives = lambda *args: drawn.append(draw(*args)) or drawn[-1]
    with torch.no_grad():
        found = module.losses(one, 0.0)[0].match
    m, own = module.model, torch.arange(len(one.ids))
    assert len(drawn) == 3
    rows = [(own, own), *((own, d.image) for d in drawn), *((d.text, own) for d in drawn)]
    texts, images = (torch.cat(side) for side in zip(*rows, strict=True))
    with torch.no_grad():
        logits = m.match(one.images[images], one.ids[texts], one.keep[texts])
    labels = (torch.arange(len(logits)) < len(own)).long()
    torch.testing.assert_close(found.loss, F.cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [MOMENTUM, None])
def test_steps_that_align_contrast_alone(momentum, toys, tmp_path):
    settings = {} if momentum else {"alpha": 0.0, "queue": 0}
    module = lit(momentum=momentum, align_steps=1, **settings)
    before = copy.deepcopy(module.model.state_dict())
    run = toys.trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(module, loader([batch(1)]))
    after = module.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    last = f"text.blocks.{module.model.first_fusion}"
    fused = {n for n in after if n.startswith(("match_head", "mlm", last))}
    assert fused
    assert not fused & moved
    assert {"vision_proj.weight", "text_proj.weight"} <= moved
    assert all(p.grad is not None for p in module.model.parameters())  # DDP waits for every one of them
    assert "train/itm" not in run.callback_metrics
    assert momentum is None or module.queue.count == 4
    module = lit(momentum=momentum, align_steps=1, **settings)
    run = toys.trainer(tmp_path / "on", max_steps=2, limit_val_batches=0)
    run.fit(module, loader([batch(1), batch(2)]))
    assert "train/itm" in run.callback_metrics


def test_losses_are_weighed(toys, tmp_path):
    def total(**weights):
        torch.manual_seed(0)
        module = lit(momentum=None, alpha=0.0, queue=0, weights=LossWeights(**weights))
        run = toys.trainer(tmp_path / str(weights), max_steps=1, limit_val_batches=0)
        run.fit(module, loader([batch(1)]))
        return {name: float(run.callback_metrics[f"train/{name}"]) for name in ("loss", "itc", "itm", "mlm")}

    found = total(contrast=2.0, match=0.5, words=0.25)
    assert found["loss"] == pytest.approx(
        2 * found["itc"] + 0.5 * found["itm"] + 0.25 * found["mlm"], rel=1e-5
    )


@pytest.mark.parametrize("settings", [{"hard_negatives": 0}, {"align_steps": -1}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        lit(**settings)
    with pytest.raises(UsageError, match="0 or more"):
        LossWeights(match=-1.0)
