"""BLIP's fine-tuning: captions by likelihood and by reward, answers, pairs of images."""

import copy
from types import SimpleNamespace

import blip_train_oracle as o
import pytest
import torch
from hand_copy import shake
from lightning.pytorch import LightningDataModule
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import mmzoo
from mmzoo.data.batch import CaptionBatch, Captions, PairBatch, QuestionBatch
from mmzoo.errors import UsageError
from mmzoo.generation import GenerationConfig
from mmzoo.lit import LitBLIPCaption, LitBLIPNLVR2, LitBLIPVQA, Recipe, blip_tasks
from mmzoo.lit.rewards import Rewards, advantages
from mmzoo.lit.writing import next_words, prompted
from mmzoo.metrics.caption import score_captions
from mmzoo.models.blip import BLIP, BLIPNLVR2, BLIPVQA, BLIPWriter
from mmzoo.processing.processor import Processor
from mmzoo.processing.text import Texts

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
RATE, PROMPT = 0.05, torch.tensor([7, 8])
SAID = [("w9 w10", "w9"), ("w11 w12 w13",), ("w14",), ("w9 w15", "w9")]


def settings(**changes):
    return {"optimizer": lambda params: SGD(params, lr=RATE), "recipe": Recipe(floor=1.0)} | changes


class Words:
    """A tokenizer whose word for id 12 is w12."""

    answers = None

    def framed(self, texts):
        rows = [[2, *(int(word[1:]) for word in text.split()), o.END] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [o.PAD] * (longest - len(row)) for row in rows])
        return Texts(ids, ids != o.PAD)

    def decode(self, ids):
        rows = [row[: row.index(o.END)] if o.END in row else row for row in ids.tolist()]
        return [" ".join(f"w{i}" for i in row if i > 4) for row in rows]


def caption(config=None, prompt="w7 w8", **changes):
    changes.setdefault("writing", GenerationConfig(max_new_tokens=4))
    module = LitBLIPCaption(config or o.config(reads=False), prompt=prompt, **settings(**changes))
    module.__dict__["processor"] = Words()
    return module


def captions(said=SAID):
    images = torch.randn(4, 3, o.IMAGE, o.IMAGE, generator=torch.Generator().manual_seed(1))
    ids, keep = Words().framed([texts[0] for texts in said])
    own = torch.arange(4)
    return CaptionBatch(images, ids, keep, own[:, None], own, None, list("abcd"), Captions(list(said)))


class Data(LightningDataModule):
    """Batches to train on and to hold out, with the source that they come from."""

    def __init__(self, batches, said=SAID):
        super().__init__()
        self.batches, self.val_sources = batches, {"held": SimpleNamespace(classes=None)}
        self.train_source = [SimpleNamespace(texts=texts) for texts in said]

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return [DataLoader(self.batches, batch_size=None)]


def fit(module, folder, toys, batches, **changes):
    changes = {"max_steps": len(batches), "precision": "64-true", "limit_val_batches": 0} | changes
    trainer = toys.trainer(folder, **changes)
    trainer.fit(module, datamodule=Data(batches))
    return trainer


def validate(module, toys, folder, batches):
    trainer = toys.trainer(folder)
    trainer.validate(module, datamodule=Data(batches), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# -- captions -------------------------------------------------------------------------------------------------------


def test_captions_are_learnt_as_in_the_reference(toys, tmp_path):
    """The prompt is read and not asked for, labels are smoothed, padding costs nothing."""
    module, batch = caption().double(), captions()
    oracle = shake(o.Oracle().double())
    o.copy_oracle(module.model, oracle)
    ids = torch.cat([batch.ids[:, :1], PROMPT.expand(4, -1), batch.ids[:, 1:]], 1)
    loss = oracle.lm_loss(ids, ids != o.PAD, oracle.tokens(batch.images.double()), given=2)
    optimizer = SGD(oracle.parameters(), lr=RATE)
    loss.backward()
    optimizer.step()
    wanted = copy.deepcopy(module.model)
    trainer = fit(module, tmp_path, toys, [batch])
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    o.copy_oracle(wanted, oracle)
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor, **TIGHT)


def test_a_prompt_that_leaves_too_little_room_cuts_the_caption():
    ids = torch.tensor([[2, 21, 22, 23, 3], [2, 21, 3, 0, 0]])
    found, keep = prompted(ids, ids > 0, PROMPT, most=6, end=3)
    assert found.tolist() == [[2, 7, 8, 21, 22, 3], [2, 7, 8, 21, 3, 0]]
    assert keep.tolist() == [[True] * 6, [True] * 5 + [False]]
    whole, _ = prompted(ids, ids > 0, PROMPT, most=7, end=3)
    assert whole.tolist() == [[2, 7, 8, 21, 22, 23, 3], [2, 7, 8, 21, 3, 0, 0]]


def test_the_prompt_is_the_models_own_unless_said_otherwise():
    own = LitBLIPCaption("blip-tiny", **settings())
    assert own.processor.decode([own._prompt.tolist()]) == ["a picture of"]
    none = LitBLIPCaption("blip-tiny", prompt="", **settings())
    assert none._prompt.tolist() == []
    assert none.model.config.prompt == ""  # so that the exported model writes as it was taught


def test_held_out_captions_are_read_and_written(toys, tmp_path):
    torch.manual_seed(0)
    module, batch = caption(), captions()
    numbers = validate(module, toys, tmp_path, [batch])
    written = module.predict_step(batch, 0)
    assert written["keys"] == list("abcd")
    decoder = module.model.caption_decoder(batch.images)
    rows = mmzoo.generation.generate(decoder, PROMPT, GenerationConfig(max_new_tokens=4)).rows
    assert written["caption"] == Words().decode(rows)
    references = dict(zip("abcd", SAID, strict=True))
    for key, text in (("", dict(zip("abcd", written["caption"]))), (".chance", dict.fromkeys("abcd", "w9"))):
        report = score_captions(text, references).numbers
        for name in ("exact", "cider_d", "bleu4"):
            assert numbers[f"held/{name}{key}"] == pytest.approx(report[name], abs=1e-6)
    assert numbers["held/exact.chance"] == 0.5
    assert numbers["val/score"] == pytest.approx(numbers["held/cider_d"])
    ids = torch.cat([batch.ids[:, :1], PROMPT.expand(4, -1), batch.ids[:, 1:]], 1)
    logits = module.model.lm.logits(module.model.write_states(module.model.project_images(batch.images), ids))
    labels = ids[:, 3:].masked_fill(ids[:, 3:] == 0, -100)
    logits = logits[:, 2:-1]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert numbers["held/loss"] == pytest.approx(float(loss), rel=1e-5)
    right = (logits.argmax(-1) == labels)[labels >= 0].double().mean()
    assert numbers["held/token_accuracy"] == pytest.approx(float(right))
    counts = labels[labels >= 0].bincount().double()
    shares = counts[counts > 0] / counts.sum()
    assert numbers["held/loss.chance"] == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)
    assert numbers["held/token_accuracy.chance"] == pytest.approx(float(shares.max()))


def test_uneven_batches_of_a_split_are_averaged_by_their_words(toys, tmp_path):
    torch.manual_seed(0)
    module, whole = caption(), captions()
    parts = [
        CaptionBatch(*(x[some] for x in whole[:5]), None, whole.keys[some], Captions(SAID[some]))
        for some in (slice(0, 3), slice(3, 4))
    ]
    one, two = (validate(module, toys, tmp_path / str(len(batches)), batches) for batches in ([whole], parts))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("start", ["blip", "reader", "writer"])
def test_a_captioner_grows_out_of_any_blip(start, tmp_path):
    config = o.config(reads=start != "writer", writes=start != "reader")
    torch.manual_seed(3)
    old = shake(BLIP.of(config)(config))
    mmzoo.zoo.save(old, tmp_path / "old", processor=Processor(None))
    module = LitBLIPCaption(config, pretrained=str(tmp_path / "old"), **settings())
    assert type(module.model) is BLIPWriter
    source = old.text if start == "reader" else old.decoder
    for name, tensor in source.state_dict().items():
        assert torch.equal(module.model.decoder.state_dict()[name], tensor), name


# -- captions by reward ---------------------------------------------------------------------------------------------


def test_rewards_are_cider_d_with_the_training_sets_frequencies():
    rewards = Rewards(SAID)
    found = rewards(["w9 w10", "w9", "w14"], [0, 1, 0], [SAID[0], SAID[2]])
    assert found[0] > 0
    assert found[1:].tolist() == [0, 0]
    # of these two pictures alone, w9 would be as rare as w10
    both = rewards(["w9", "w10"], [0, 0], [SAID[0]])
    assert both[1] != both[0]


def test_advantages():
    reward = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    torch.testing.assert_close(
        advantages(reward, None), torch.tensor([[1 - 4, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]])
    )
    torch.testing.assert_close(
        advantages(reward, torch.tensor([2.0, 5.0])), torch.tensor([[-1.0, 0.0, 4.0], [-1.0, -1.0, -1.0]])
    )


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_a_caption_becomes_likelier_by_what_it_has_above_the_baseline(baseline, toys, tmp_path, monkeypatch):
    """The step against the sum of log-probabilities, written out."""
    torch.manual_seed(0)
    module = caption(
        objective="scst", samples=3, baseline=baseline, writing=GenerationConfig(max_new_tokens=4)
    ).double()
    batch, written, inner = captions(), [], blip_tasks.generate
    monkeypatch.setattr(blip_tasks, "generate", lambda *args: (written.append(inner(*args)), written[-1])[1])
    monkeypatch.setattr(
        Rewards, "__call__", lambda self, texts, pictures, said: torch.tensor([float(len(t)) for t in texts])
    )
    model = copy.deepcopy(module.model)
    trainer = fit(module, tmp_path, toys, [batch])
    drawn = written[0]
    assert drawn.context.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({tuple(row) for row in drawn.rows.tolist()}) > 4
    texts = Words().decode(drawn.rows)
    reward = torch.tensor([float(len(t)) for t in texts]).double().view(4, 3)
    greedy = None
    if baseline == "greedy":
        greedy = torch.tensor([float(len(t)) for t in Words().decode(written[1].rows)])
    better = advantages(reward, greedy).flatten()
    assert bool((better != 0).any())
    loss, kv = 0, model.project_images(batch.images.double())
    for row, length, context, weight in zip(drawn.rows, drawn.lengths.tolist(), drawn.context, better):
        ids = torch.cat([torch.tensor([o.BEGIN]), PROMPT, row[:length].clone()])[None]
        log_p = model.lm.logits(model.write_states(kv[int(context)], ids))[0].log_softmax(-1)
        loss = loss - weight * log_p[2:-1].gather(1, ids[0, 3:, None]).sum() / 12
    optimizer = SGD(model.parameters(), lr=RATE)
    loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor, **TIGHT)
    assert float(trainer.callback_metrics["train/reward"]) == pytest.approx(float(reward.mean()))


def test_rewarded_captions_are_written_more_often(toys, tmp_path):
    """From a model that knows the words a little, what it draws comes to have more CIDEr-D than before."""
    torch.manual_seed(0)
    batch, adam = captions(), torch.optim.Adam
    first = caption(prompt="", label_smoothing=0.3, optimizer=lambda params: adam(params, lr=1e-2))
    fit(first, tmp_path / "a", toys, [batch] * 12, precision="32-true")
    module = caption(prompt="", objective="scst", samples=16, optimizer=lambda params: adam(params, lr=3e-3))
    module.model.load_state_dict(first.model.state_dict())
    rewards, inner = [], module.log_step
    module.log_step = lambda loss, **told: (rewards.append(float(told["reward"])), inner(loss, **told))[1]
    fit(module, tmp_path / "b", toys, [batch] * 30, precision="32-true")
    before, after = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert after > 1.3 * before + 0.2, rewards


def test_drawing_again_draws_the_same(toys, tmp_path):
    def run(folder):
        torch.manual_seed(0)
        module = caption(
            o.config(reads=False, dropout=0.1), objective="scst", samples=2,
        )  # fmt: skip
        fit(module, folder, toys, [captions()] * 2, precision="32-true")
        return module.model.state_dict()

    one, two = run(tmp_path / "a"), run(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_captioning_refuses(toys, tmp_path):
    for changes, said in (
        ({"samples": 1}, "samples is 1"),
        ({"samples": 0, "baseline": "greedy"}, "samples is 0"),
        ({"label_smoothing": -1.0}, r"label_smoothing is -1\.0"),
        ({"writing": GenerationConfig(beams=2, per_context=2)}, "one held-out caption"),
    ):
        with pytest.raises(UsageError, match=said):
            caption(**changes)
    with pytest.raises(UsageError, match="BLIPWriter is trained here, not a BLIPVQA"):
        LitBLIPCaption(vqa_config())
    with pytest.raises(UsageError, match="the prompt has 19 tokens"):
        caption(prompt=" ".join(["w9"] * 19)).predict_step(captions(), 0)
    with pytest.raises(UsageError, match="no captions of their pictures"):
        validate(caption(), toys, tmp_path, [captions()._replace(captions=None)])
    module = caption(objective="scst")
    with pytest.raises(UsageError, match="and no stream"):
        toys.trainer(tmp_path, max_steps=1).fit(module, DataLoader([captions()], batch_size=None))


# -- answers and pairs ----------------------------------------------------------------------------------------------


def vqa_config():
    return blip_tasks._vqa(o.config())


def test_answers_are_learnt_with_smoothed_labels(toys, tmp_path):
    torch.manual_seed(0)
    module = LitBLIPVQA(vqa_config(), **settings()).double()
    assert module.teacher is None
    whole = captions()
    answers = torch.tensor([[2, 11, 3, 0], [2, 12, 3, 0], [2, 13, 14, 3], [2, 12, 3, 0]])
    rows, weights = torch.tensor([0, 0, 1, 3]), torch.tensor([0.6, 0.4, 1.0, 0.2])
    batch = QuestionBatch(
        whole.images, whole.ids, whole.keep, answers, weights, answers > 0, rows, torch.arange(4),
        [("w11",), ("w12",), ("w11",), ("w13",)], [""] * 4, list("abcd"),
    )  # fmt: skip
    model = copy.deepcopy(module.model)
    question = model.read_question(batch.images.double(), batch.ids, batch.keep)
    logits = model.lm.logits(model.answer_states(question, answers, rows))[:, :-1]
    labels = answers[:, 1:].masked_fill(answers[:, 1:] == 0, -100)
    each = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=0.1
    ).view_as(labels)
    loss = (weights * each.sum(1)).sum() / 4
    optimizer = SGD(model.parameters(), lr=RATE)
    loss.backward()
    optimizer.step()
    trainer = fit(module, tmp_path, toys, [batch])
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor, **TIGHT)
    listed = Words().framed(["w11", "w12"])
    module.__dict__["processor"] = SimpleNamespace(answers=("w11", "w12"), framed=lambda words: listed)
    numbers = validate(module.float(), toys, tmp_path, [batch])
    assert numbers["held/accuracy.chance"] == 0.5
    assert {"held/accuracy", "val/score"} <= numbers.keys()


def test_pairs_are_learnt(toys, tmp_path):
    torch.manual_seed(0)
    module = LitBLIPNLVR2(blip_tasks._nlvr2(o.config()), **settings()).double()
    whole, labels = captions(), torch.tensor([1, 0, 1, -1])
    batch = PairBatch(
        whole.images,
        whole.images.flip(0),
        whole.ids,
        whole.keep,
        labels,
        torch.tensor([0, 0, 1, 1]),
        whole.keys,
    )
    model = copy.deepcopy(module.model)
    logits = model.compare(batch.first.double(), batch.second.double(), batch.ids, batch.keep)
    loss = F.cross_entropy(logits[:3], labels[:3])
    optimizer = SGD(model.parameters(), lr=RATE)
    loss.backward()
    optimizer.step()
    trainer = fit(module, tmp_path, toys, [batch])
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor, **TIGHT)
    assert validate(module.float(), toys, tmp_path, [batch])["held/accuracy.chance"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", [LitBLIPVQA, LitBLIPNLVR2])
def test_a_task_grows_out_of_a_blip(kind, tmp_path):
    torch.manual_seed(3)
    blip = shake(BLIP(o.config()))
    mmzoo.zoo.save(blip, tmp_path / "blip", processor=Processor(None))
    module = kind(blip.config, pretrained=str(tmp_path / "blip"))
    assert isinstance(module.model, BLIPVQA if kind is LitBLIPVQA else BLIPNLVR2)
    assert module.model.config.tokens == blip.config.tokens
    old, new = (m.text.blocks[2].mlp.state_dict() for m in (blip, module.model))
    assert all(torch.equal(old[name], new[name]) for name in old)
    if kind is LitBLIPNLVR2:
        assert module.model.config.merge_from == 1
        twin, alone = module.model.text.blocks[1].cross, blip.text.blocks[1].cross
        assert torch.equal(twin.first.kv.weight, alone.kv.weight)
        assert torch.equal(twin.second.q.weight, alone.q.weight)
    else:
        assert torch.equal(
            module.model.decoder.blocks[1].attn.qkv.weight, blip.decoder.blocks[1].attn.qkv.weight
        )
    zoo = (
        mmzoo.get_config("blip-base"),
        mmzoo.get_config(f"blip-base-{'vqa' if kind is LitBLIPVQA else 'nlvr2'}"),
    )
    made = (blip_tasks._vqa if kind is LitBLIPVQA else blip_tasks._nlvr2)(zoo[0])
    same = ("text", "tokens", "decoder" if kind is LitBLIPVQA else "merge_from")
    assert all(getattr(made, name) == getattr(zoo[1], name) for name in same)


def test_next_words_needs_no_label(toys):
    """A caption of nothing but its begin token costs nothing and gives no NaN."""
    model = BLIPWriter(o.config(reads=False))
    kv = model.project_images(captions().images[:1])
    ids = torch.tensor([[2, 0, 0]])
    words = next_words(model, kv, ids, ids == 2)
    words.loss.backward()
    assert float(words.loss.detach()) == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
