"""ALBEF's fine-tuning steps against the reference's losses, written with other libraries' layers."""

import copy
import dataclasses
from types import SimpleNamespace

import albef_oracle as o
import pytest
import torch
from hand_copy import shake
from lightning.pytorch import LightningDataModule
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import mmzoo
from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.errors import UsageError
from mmzoo.lit import Recipe
from mmzoo.lit.albef_tasks import LitALBEFAssign, LitALBEFNLVR2, LitALBEFVE, LitALBEFVQA, Teaching
from mmzoo.losses.assignment import draw_assignment
from mmzoo.models.albef import ALBEF, ALBEFConfig, ALBEFNLVR2Config, ALBEFVEConfig, ALBEFVQAConfig
from mmzoo.processing.processor import Processor
from mmzoo.processing.text import Texts

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
RATE, ALPHA, MOMENTUM, BEGIN, END = 0.05, 0.4, 0.9, 2, 3
WORDS = ("yes", "no", "two dogs")
LISTED = torch.tensor([[BEGIN, 11, END, 0], [BEGIN, 12, END, 0], [BEGIN, 13, 14, END]])
SETTINGS = {
    "optimizer": lambda params: SGD(params, lr=RATE), "recipe": Recipe(floor=1.0),
}  # fmt: skip
AT_ONCE = Teaching(alpha=ALPHA, alpha_epochs=0.0, momentum=MOMENTUM)


def inputs(count=4, length=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, o.IMAGE, o.IMAGE, generator=generator)
    ids = torch.randint(5, o.VOCAB, (count, length), generator=generator)
    keep = torch.arange(length) < (2 + torch.arange(count) % (length - 1))[:, None]
    return images, ids.masked_fill(~keep, 0), keep


def fit(module, folder, toys, batches, **settings):
    settings = {"max_steps": len(batches), "precision": "64-true", "limit_val_batches": 0} | settings
    trainer = toys.trainer(folder, **settings)
    trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))
    return trainer


def paired(module, **switches):
    """A student and another teacher, of the oracle's layers and in the module, which starts from them."""
    torch.manual_seed(0)
    student, teacher = (shake(o.Oracle(**switches).double(), seed=seed) for seed in (0, 7))
    module.double()
    o.copy_oracle(module.model, student)
    if module.teacher is not None:
        o.copy_oracle(module.teacher.model, teacher)
    return student, teacher


def after(module, student, loss):
    """The module's model with the student's weights, one step of the loss later."""
    optimizer = SGD(student.parameters(), lr=RATE)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    wanted = copy.deepcopy(module.model)
    o.copy_oracle(wanted, student)
    return wanted.state_dict()


def check(module, trainer, loss, wanted, before):
    """Loss, weights and teacher."""
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    moved = module.model.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(moved[name], tensor, **TIGHT)
    if module.teacher is not None:
        for name, tensor in module.teacher.model.state_dict().items():
            torch.testing.assert_close(
                tensor, MOMENTUM * before[name] + (1 - MOMENTUM) * moved[name], **TIGHT
            )


def mixed(logits, labels, soft, alpha):
    """The reference's loss of its classifying heads."""
    hard = F.cross_entropy(logits, labels)
    return (1 - alpha) * hard - alpha * (logits.log_softmax(1) * soft.softmax(1)).sum(1).mean()


# -- answers --------------------------------------------------------------------------------------------------------


def vqa(teaching=AT_ONCE, **settings):
    module = LitALBEFVQA(
        ALBEFVQAConfig(**o.towers(), decoder=o.decoder_config()), teaching=teaching, **SETTINGS | settings
    )
    framed = Texts(LISTED, LISTED > 0)
    module.__dict__["processor"] = SimpleNamespace(answers=WORDS, framed=lambda words: framed)
    return module


def questions():
    images, ids, keep = inputs(3)
    rows, answers = torch.tensor([0, 0, 0, 1, 2]), LISTED[[0, 1, 2, 1, 2]]
    weights = torch.tensor([0.5, 0.3, 0.2, 1.0, 0.5])
    said = [("yes",) * 5 + ("no",) * 3 + ("two dogs",) * 2, ("no",) * 10, ()]
    return QuestionBatch(
        images, ids, keep, answers, weights, answers > 0, rows, torch.arange(3), said, ["yes/no", "yes/no", "other"],
        ["a", "b", "c"],
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_answers_are_learnt_as_in_the_reference(alpha, toys, tmp_path):
    module = vqa(Teaching(alpha=alpha, alpha_epochs=0.0, momentum=MOMENTUM))
    student, teacher = paired(module)
    batch = questions()
    targets = batch.answers.masked_fill(~batch.answer_keep, -100)[:, 1:]

    def logits(model):
        question = model.text_encoder.multimodal(batch.ids, batch.keep, model.tokens(batch.images.double()))
        rows = batch.answer_rows
        return model.decode(batch.answers, batch.answer_keep, question[rows], batch.keep[rows])[:, :-1]

    mine, soft = logits(student), logits(teacher).detach().softmax(-1)
    hard = F.cross_entropy(mine.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).sum(1)
    distilled = (-(mine.log_softmax(-1) * soft).sum(-1) * (targets != -100)).sum(1)
    loss = (batch.answer_weights * ((1 - alpha) * hard + alpha * distilled)).sum() / 3
    wanted = after(module, student, loss)
    assert (module.teacher is None) == (alpha == 0)
    before = {} if module.teacher is None else copy.deepcopy(module.teacher.model.state_dict())
    check(module, fit(module, tmp_path, toys, [batch]), loss, wanted, before)


class Held(LightningDataModule):
    """One batch, held out."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.val_sources = batch, {"held": SimpleNamespace(classes=None)}

    def val_dataloader(self):
        return [DataLoader([self.batch], batch_size=None)]


def validate(module, toys, folder, batch):
    trainer = toys.trainer(folder)
    trainer.validate(module, datamodule=Held(batch), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_answers_are_ranked_and_counted(toys, tmp_path):
    module = vqa(k=2)
    batch = questions()
    chosen = module.eval().predict_step(batch, 0)
    scores = module.model.rank_answers(batch.images, batch.ids, batch.keep, (LISTED, LISTED > 0), 2)
    assert chosen["answer"] == [WORDS[i] for i in scores.argmax(1).tolist()]
    assert chosen["question_id"].tolist() == [0, 1, 2]
    numbers = validate(module, toys, tmp_path, batch)
    # "no" to everything: three of ten agree at the first question, and all at the second; the third is not published
    assert numbers["held/accuracy.chance"] == pytest.approx((0.9 + 1) / 2)
    assert 0 <= numbers["held/accuracy"] <= 1
    assert {"held/accuracy_yes/no", "held/accuracy_yes/no.chance", "val/score"} <= numbers.keys()


def test_what_vqa_refuses(toys, tmp_path):
    votes = questions()._replace(answer_keep=None, answer_weights=None, answer_rows=None)
    with pytest.raises(UsageError, match=r"set data\.targets to words"):
        fit(vqa(), tmp_path, toys, [votes])
    module = vqa()
    module.processor.answers = None
    with pytest.raises(UsageError, match=r"give data\.answers a file"):
        module.predict_step(questions(), 0)
    with pytest.raises(UsageError, match="k is 0"):
        vqa(k=0)
    with pytest.raises(UsageError, match="an ALBEFVQA is trained here, not an ALBEFVE"):
        LitALBEFVQA(ALBEFVEConfig(**o.towers()))
    with pytest.raises(UsageError, match=r"alpha is 1\.4"):
        vqa(Teaching(alpha=1.4))


# -- two images -----------------------------------------------------------------------------------------------------


def pairs():
    images, ids, keep = inputs()
    labels, groups = torch.tensor([1, 0, 1, -1]), torch.tensor([0, 0, 1, 1])
    return PairBatch(images, images.flip(0), ids, keep, labels, groups, list("abcd"))


def test_two_images_are_learnt_as_in_the_reference(toys, tmp_path):
    module = LitALBEFNLVR2(
        ALBEFNLVR2Config(**o.towers(twin=True), embed=o.EMBED), teaching=AT_ONCE, **SETTINGS
    )
    student, teacher = paired(module, twin=True)
    batch = pairs()

    def logits(model):
        both = [model.tokens(x.double()) for x in (batch.first, batch.second)]
        return model.cls_head(model.text_encoder.multimodal(batch.ids, batch.keep, both)[:3, 0] * 1.0)

    loss = mixed(
        logits(student), batch.labels[:3], logits(teacher).detach(), ALPHA
    )  # the fourth is not published
    wanted, before = after(module, student, loss), copy.deepcopy(module.teacher.model.state_dict())
    check(module, fit(module, tmp_path, toys, [batch]), loss, wanted, before)
    blocks = module.teacher.model.text.blocks
    assert blocks[2].cross.kv is blocks[3].cross.kv  # twins are twins in the teacher too
    numbers = validate(module.float(), toys, tmp_path, batch)
    assert numbers["held/accuracy.chance"] == pytest.approx(2 / 3)
    assert 0 <= numbers["held/consistency"] <= 1


def captions(labels=None, ids=(5, 6, 7, 8)):
    images, words, keep = inputs()
    ids = torch.tensor(ids)
    labels = None if labels is None else torch.tensor(labels)
    return CaptionBatch(images, words, keep, ids[:, None], ids, labels, list("abcd"))


def test_texts_are_assigned_as_in_the_reference(toys, tmp_path, monkeypatch):
    module = LitALBEFAssign(ALBEFNLVR2Config(**o.towers(twin=True), embed=o.EMBED), **SETTINGS)
    assert module.model.config.task == "assign"
    assert module.teacher is None
    student, _ = paired(module, twin=True)
    batch, drawn = captions(), []

    def noted(scores, positives, *, generator):
        drawn.append((scores, draw_assignment(scores, positives, generator=generator)))
        return drawn[-1][1]

    monkeypatch.setattr("mmzoo.lit.albef_tasks.draw_assignment", noted)
    before = copy.deepcopy(module)
    trainer = fit(module, tmp_path, toys, [batch])
    ((scores, (first, second, label, found)),) = drawn
    tokens = student.tokens(batch.images.double())
    image = student.image_feat(tokens).detach()
    torch.testing.assert_close(scores, image @ image.T / 0.07, **TIGHT)
    assert bool(found.all())
    hidden = student.text_encoder.multimodal(batch.ids, batch.keep, [tokens[first], tokens[second]])[:, 0]
    loss = F.cross_entropy(student.ta_head(hidden), label)
    check(module, trainer, loss, after(before, student, loss), {})
    assert {"held/top1", "held/top1.chance"} <= validate(module.float(), toys, tmp_path, batch).keys()


def test_assignment_with_nothing_to_tell_apart(toys, tmp_path):
    module = LitALBEFAssign(ALBEFNLVR2Config(**o.towers(twin=True), embed=o.EMBED), **SETTINGS)
    trainer = fit(module, tmp_path, toys, [captions(ids=(5, 5, 5, 5))])
    assert float(trainer.callback_metrics["train/loss"]) == 0


def test_comparing_and_assigning_are_not_confused():
    config = ALBEFNLVR2Config(**o.towers(twin=True), task="assign", embed=o.EMBED)
    with pytest.raises(UsageError, match='task="compare"'):
        LitALBEFNLVR2(config)


# -- entailment -----------------------------------------------------------------------------------------------------


def test_entailment_is_learnt_as_in_the_reference(toys, tmp_path):
    module = LitALBEFVE(ALBEFVEConfig(**o.towers()), teaching=AT_ONCE, **SETTINGS)
    student, teacher = paired(module)
    batch = captions(labels=[0, 2, 1, -1])

    def logits(model):
        tokens = model.tokens(batch.images.double())
        return model.cls_head(model.text_encoder.multimodal(batch.ids, batch.keep, tokens)[:3, 0])

    loss = mixed(logits(student), batch.labels[:3], logits(teacher).detach(), ALPHA)
    wanted, before = after(module, student, loss), copy.deepcopy(module.teacher.model.state_dict())
    check(module, fit(module, tmp_path, toys, [batch]), loss, wanted, before)
    numbers = validate(module.float(), toys, tmp_path, batch)
    assert numbers["held/top1.chance"] == pytest.approx(1 / 3)


def test_captions_without_labels_cannot_entail(toys, tmp_path):
    module = LitALBEFVE(ALBEFVEConfig(**o.towers()), **SETTINGS)
    with pytest.raises(UsageError, match="EntailmentData"):
        fit(module, tmp_path, toys, [captions()])


@pytest.mark.parametrize("kind", [LitALBEFVQA, LitALBEFNLVR2, LitALBEFVE, LitALBEFAssign])
def test_a_task_grows_out_of_any_albef(kind, tmp_path):
    """Towers as they are there, the decoder as long as the fusion half, twin layers doubled."""
    torch.manual_seed(3)
    albef = shake(ALBEF(ALBEFConfig(**o.towers(), embed=o.EMBED)))
    mmzoo.zoo.save(albef, tmp_path / "albef", processor=Processor(None))
    module = kind(albef.config, pretrained=str(tmp_path / "albef"))
    twin = kind in (LitALBEFNLVR2, LitALBEFAssign)
    reference = o.towers(twin=twin)
    assert {name: getattr(module.model.config, name) for name in reference} == reference
    old, new = albef.text.blocks[3].state_dict(), module.model.text.blocks[5 if twin else 3].state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
    if kind is LitALBEFVQA:
        decoder = dataclasses.replace(o.decoder_config(), dropout=0.0)
        assert module.model.config.decoder == decoder
        assert torch.equal(module.model.decoder.blocks[1].mlp.fc1.weight, albef.text.blocks[3].mlp.fc1.weight)
    # the teacher starts as the student does
    for name, tensor in {} if module.teacher is None else module.teacher.model.state_dict().items():
        assert torch.equal(tensor, module.model.state_dict()[name])


def test_the_teachers_share_grows_over_the_first_epoch(toys, tmp_path):
    module = LitALBEFVE(
        ALBEFVEConfig(**o.towers()), teaching=Teaching(alpha=0.4, alpha_epochs=1.0), **SETTINGS
    )
    shares, inner = [], module.share
    module.share = lambda: (shares.append(inner()), shares[-1])[1]
    fit(module, tmp_path, toys, [captions(labels=[0, 1, 2, 0])] * 4, max_steps=6, max_epochs=2)
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
