"""ViLT's training: what is drawn, that losses fall, that weights scale, resuming to the bit, every fine-tuning."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

import mmzoo
from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.errors import UsageError
from mmzoo.lit import Checkpoints, LitViLT, LitViLTNLVR2, LitViLTRetrieval, LitViLTVQA, Recipe
from mmzoo.losses.masking import NO_LABEL
from mmzoo.models.vilt import VARIANTS, ViLT, ViLTConfig, ViLTVQAConfig

ANSWERS = ("yes", "no", "red", "blue")


def config(kind=ViLTConfig, **changes):
    c = VARIANTS["vilt-tiny"]
    vision = replace(c.vision, image_size=16, width=16, depth=2, heads=2, hidden=32, dropout=0.1)
    text = replace(c.text, width=16, heads=2, hidden=32, context=8, dropout=0.1)
    image = replace(c.image, size=16, longest=32)
    return kind(vision, text, image, replace(c.text_input, context=8), **changes)


def fast(params):
    return torch.optim.AdamW(params, lr=3e-3)


def captions(count=6, ids=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, 24, 32)
    for i, image in enumerate(images):
        h, w = ((16, 16), (16, 32), (24, 16))[i % 3]
        image[:, :h, :w] = torch.randn(3, h, w, generator=draw)
    words = torch.randint(100, 500, (count, 7), generator=draw)
    keep = torch.arange(7) < torch.tensor([7, 5, 4])[torch.arange(count) % 3][:, None]
    words[:, 0] = 2
    words[torch.arange(count), keep.sum(1) - 1] = 3
    own = torch.arange(count) if ids is None else torch.tensor(ids)
    return CaptionBatch(images, words * keep, keep, own[:, None], own, None, [str(i) for i in range(count)])


def questions(count=6):
    c = captions(count)
    right = torch.arange(count) % len(ANSWERS)
    targets = torch.nn.functional.one_hot(right, len(ANSWERS)).float() * 0.9
    said = [(ANSWERS[i],) * 10 for i in right.tolist()]
    kinds = ["yes/no" if i < 2 else "other" for i in right.tolist()]
    return QuestionBatch(
        c.images, c.ids, c.keep, targets, None, None, None, torch.arange(count), said, kinds, c.keys
    )


def pairs(count=6):
    c, second = captions(count), captions(count, seed=1).images
    labels = torch.arange(count) % 2
    labels[-1] = -1
    return PairBatch(c.images, second, c.ids, c.keep, labels, torch.arange(count) // 2, c.keys)


def quiet(module):
    """A module outside a trainer: what it logs is kept."""
    module.logged = {}
    module.log_step = lambda loss, **told: module.logged.update(told) or loss
    module.generator.manual_seed(0)
    return module


def descend(module, batch, steps=60):
    """First and last loss of so many steps on one batch."""
    module.train()
    optimizer = module._make_optimizer(module.model.parameters())
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        module.generator.manual_seed(0)
        optimizer.zero_grad()
        loss = module.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


MODULES = {
    "pretrain": (lambda: LitViLT(config(), optimizer=fast), captions),
    "retrieval": (lambda: LitViLTRetrieval(config(), others=3, optimizer=fast), captions),
    "vqa": (lambda: LitViLTVQA(config(ViLTVQAConfig, answers=4), optimizer=fast), questions),
    "nlvr2": (lambda: LitViLTNLVR2(config(), optimizer=fast), pairs),
}


@pytest.mark.parametrize("task", MODULES)
def test_the_loss_falls(task):
    make, batch = MODULES[task]
    first, last = descend(quiet(make()), batch())
    assert last < 0.8 * first


@pytest.mark.parametrize("task", MODULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_batch_size_has_a_finite_loss(task, count):
    make, batch = MODULES[task]
    module = quiet(make())
    loss = module.training_step(batch(count), 0)
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_half_of_the_texts_have_their_own_image_and_the_others_none_that_fits():
    module = quiet(LitViLT(config()))
    batch = captions(9, ids=[0, 0, 1, 1, 2, 2, 3, 4, 5])
    seen = []
    forward = ViLT.forward

    def spy(self, images, ids, keep, index=None, **settings):
        seen.append(index[: len(batch.ids)])
        return forward(self, images, ids, keep, index, **settings)

    own, partners = batch.text_ids, set()
    for turn in range(50):
        module.generator.manual_seed(turn)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ViLT, "forward", spy)
            read = module.read(batch)
        assert read.valid.all()
        assert int(read.match.sum()) == 4
        index = seen[-1]
        assert torch.equal(index[read.match], torch.arange(9)[read.match])
        assert (own[index[~read.match]] != own[~read.match]).all()
        partners |= set(zip(range(9), index.tolist(), strict=True))
    # every image that does not fit is drawn at some time
    assert len([1 for i, j in partners if own[i] != own[j]]) > 50


def test_captions_of_one_image_leave_matching_out_and_nothing_breaks():
    """One caption for all images: there is no valid negative, so only the matching half counts."""
    module = quiet(LitViLT(config()))
    read = module.read(captions(4, ids=[7, 7, 7, 7]))
    assert torch.equal(read.valid, read.match)
    assert module.training_step(captions(4, ids=[7, 7, 7, 7]), 0).isfinite()
    choosing = quiet(LitViLTRetrieval(config(), others=3))
    logits, _, valid = choosing.choose(captions(4, ids=[7, 7, 7, 7]))
    assert not valid.any()
    assert logits.isfinite().sum() == 4
    assert choosing.training_step(captions(4, ids=[7, 7, 7, 7]), 0) == 0


def test_weights_scale_their_losses():
    """The reference's weights only switch losses on (T28)."""
    batch, parts = captions(), {}
    for name in ("itm", "mlm", "alignment"):
        weights = dict.fromkeys(("itm", "mlm", "alignment"), 0.0)
        for weight in (1.0, 3.0):
            torch.manual_seed(0)
            module = quiet(LitViLT(config(), **weights | {name: weight})).eval()
            parts[name, weight] = module.training_step(batch, 0).detach()
        torch.testing.assert_close(parts[name, 3.0], 3 * parts[name, 1.0])
    torch.manual_seed(0)
    both = quiet(LitViLT(config(), itm=0.5, mlm=2.0, alignment=0.0)).eval().training_step(batch, 0)
    torch.testing.assert_close(both, 0.5 * parts["itm", 1.0] + 2 * parts["mlm", 1.0])
    with pytest.raises(UsageError, match="weights from 0"):
        LitViLT(config(), itm=0, mlm=0, alignment=0)
    with pytest.raises(UsageError, match="weights from 0"):
        LitViLT(config(), itm=-1)
    with pytest.raises(UsageError, match="no head for match and words"):
        LitViLT(config(match=False, words=False, rank=True))


def test_alignment_reads_words_and_patches_only():
    module = quiet(LitViLT(config()))
    batch = captions()
    read = module.read(batch)
    assert not read.words[:, 0].any()  # [CLS]
    assert not read.words[torch.arange(6), batch.keep.sum(1) - 1].any()  # [SEP]
    assert torch.equal(read.words.sum(1), batch.keep.sum(1) - 2)
    assert read.masked is not None
    assert (read.masked.labels[~read.words] == NO_LABEL).all()


def test_texts_to_choose_from():
    module = quiet(LitViLTRetrieval(config(), others=3)).eval()
    batch = captions(8, ids=[0, 0, 1, 2, 3, 4, 5, 6])
    logits, labels, valid = module.choose(batch)
    assert logits.shape == (8, 4)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert valid.all()
    pair = module.model.match(batch.images, batch.ids, batch.keep)[:, 1]
    torch.testing.assert_close(logits.gather(1, labels[:, None])[:, 0], pair)
    # a text of the same image is no alternative: it scores as the image's own would, and must not occur
    twin = module.model.match(batch.images[:1], batch.ids[1:2], batch.keep[1:2])[0, 1]
    for turn in range(20):
        module.generator.manual_seed(turn)
        logits, labels, _ = module.choose(batch)
        others = torch.cat([logits[0, : labels[0]], logits[0, labels[0] + 1 :]])
        assert ((others - twin).abs() > 1e-6).all()


def test_fine_tuning_grows_out_of_pre_training(tmp_path):
    torch.manual_seed(0)
    pretrained = ViLT(config(max_patches=3))
    mmzoo.save(pretrained, tmp_path / "p")
    ranking = LitViLTRetrieval(config(max_patches=3), pretrained=str(tmp_path / "p"))
    assert torch.equal(ranking.model.rank_head.weight, pretrained.match_head.weight[1:])
    assert ranking.model.match_head is ranking.model.mlm is None
    answering = LitViLTVQA(config(max_patches=3), pretrained=str(tmp_path / "p"), answers=4)
    comparing = LitViLTNLVR2(config(max_patches=3), pretrained=str(tmp_path / "p"))
    started = LitViLTVQA(config(ViLTVQAConfig, answers=4), start={"model": str(tmp_path / "p")})
    for module in (ranking, answering, comparing, started):
        assert module.model.config.max_patches is None  # all patches in fine-tuning
        weight = module.model.vision.blocks[1].mlp.fc1.weight
        assert torch.equal(weight, pretrained.vision.blocks[1].mlp.fc1.weight)
    assert answering.model.config.answers == 4
    with pytest.raises(UsageError, match="at least two"):
        LitViLTVQA("vilt-tiny", answers=1)


def test_the_head_for_answers_learns_ten_times_as_fast():
    def groups_of(module):
        module.__dict__["_trainer"] = SimpleNamespace(estimated_stepping_batches=10)
        return module.configure_optimizers()["optimizer"].param_groups

    # lr_mult is 1 in the reference but for questions
    assert {group["initial_lr"] for group in groups_of(LitViLTNLVR2("vilt-tiny"))} == {1e-4}
    groups = groups_of(LitViLTVQA("vilt-tiny", answers=4))
    rates = {name: group["initial_lr"] for group in groups for name in group["names"]}
    assert rates["answer_head.fc1.weight"] == rates["answer_head.norm.weight"] == 1e-3
    assert rates["vision.blocks.0.mlp.fc1.weight"] == 1e-4
    undecayed = {n for g in groups if g.get("weight_decay") == 0.0 for n in g["names"]}
    assert "answer_head.norm.weight" in undecayed  # T28
    assert {"modality.weight", "vision.pos", "vision.cls"} <= undecayed


def test_layer_decay_counts_words_as_the_stacks_input():
    from mmzoo.lit.optim import layer_factors

    names = [name for name, _ in ViLT(config()).named_parameters()]
    factors = layer_factors(names, 0.5, ViLT.input_parts)
    assert factors["text.embed.tok.weight"] == factors["modality.weight"] == factors["vision.pos"] == 0.5**3
    assert factors["vision.blocks.1.mlp.fc1.weight"] == 0.5
    assert (
        factors["pooler.dense.weight"] == factors["mlm.decoder.weight"] == factors["vision.norm.weight"] == 1
    )


def test_another_list_of_answers_is_refused():
    module = LitViLTVQA("vilt-tiny", answers=4)
    module.processor.answers = ("a", "b", "c")
    with pytest.raises(UsageError, match=r"3 answers and the model's head 4: set model\.answers to 3"):
        module.setup("fit")


def test_heldout_numbers():
    module = quiet(LitViLTVQA(config(ViLTVQAConfig, answers=4))).eval()
    module.processor.answers = ANSWERS
    batch, collector = questions(8), module.heldout(None)
    module.judge(batch, collector)
    numbers = collector.numbers()
    assert numbers.keys() == {"accuracy", "accuracy_yes/no", "accuracy_other"}
    assert numbers["accuracy"][1] == pytest.approx(0.25)
    assert numbers["accuracy_yes/no"][1] == pytest.approx(0.5)
    told = module.predict_step(batch, 0)
    right = sum(a == s[0] for a, s in zip(told["answer"], batch.said, strict=True)) / 8
    assert numbers["accuracy"][0] == pytest.approx(right)

    module = quiet(LitViLTNLVR2(config())).eval()
    collector = module.heldout(None)
    module.judge(pairs(6), collector)
    numbers = collector.numbers()
    assert numbers["accuracy"][1] == pytest.approx(3 / 5)  # one of six is not published
    assert 0 <= numbers["consistency"][0] <= numbers["accuracy"][0]

    module = quiet(LitViLT(config())).eval()
    collector = module.heldout(None)
    module.judge(captions(12), collector)
    numbers = collector.numbers()
    assert numbers["itm_top1"][1] == 0.5
    assert "mlm_top1" in numbers


class Killed(BaseException):
    pass


class Kill(Callback):
    """Ends the run without warning before its sixth step, which is in the second epoch."""

    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == 6:
            raise Killed


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_killed_and_resumed_equals_never_stopped(task, toys, tmp_path):
    """To the bit: partners, hidden words, patches and dropout are drawn as without the stop."""

    def run(folder, *, kill=False, resume=False, seed=5):
        torch.manual_seed(seed)
        kind = LitViLT if task == "pretrain" else LitViLTRetrieval
        module = kind(config(max_patches=2), optimizer=fast, recipe=Recipe(warmup_steps=2))
        trainer = toys.trainer(
            folder, Checkpoints(every_n_steps=1), callbacks=[Kill()] if kill else [], max_steps=9
        )
        with pytest.raises(Killed) if kill else nullcontext():
            trainer.fit(module, toys.data(), ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)
        return module.state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", kill=True)
    again = run(tmp_path / "part", resume=True, seed=99)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
