"""The teacher that trails behind its student, and the ring of its embeddings."""

import copy

import pytest
import torch
from torch import nn

from mmzoo.errors import UsageError, ZooError
from mmzoo.lit.momentum import EmbeddingQueue, MomentumCopy, ramped


class Toy(nn.Module):
    """Weights tied under two names, a norm with buffers, dropout, a frozen part, a nested one to leave out."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ModuleDict({"extra": nn.Linear(4, 2)}))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.decoder = nn.Linear(4, 5, bias=False)
        self.decoder.weight = self.table.weight

    def forward(self, ids):
        return self.decoder(self.body[1](self.body[0](self.norm(self.frozen(self.table(ids))))))


def move(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator).to(p.dtype))


IDS = torch.tensor([0, 1, 2, 3, 4])


def test_starts_equal_and_follows_the_formula():
    model = Toy().double()
    teacher = MomentumCopy(model, decay=0.9)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
        assert tensor.data_ptr() != model.state_dict()[name].data_ptr()
    for step in range(5):
        move(model, step)
        teacher.update()
        for name, p in model.named_parameters(remove_duplicate=False):
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
    for name, p in teacher.model.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(p, expected[name], rtol=1e-12, atol=1e-12)
    assert torch.equal(teacher.model.frozen.weight, model.frozen.weight), (
        "what is equal stays so, bit for bit"
    )


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_the_ends_of_the_scale(decay):
    model = Toy()
    teacher = MomentumCopy(model, decay=decay)
    before = teacher.model.table.weight.clone()
    move(model, 0)
    teacher.update()
    assert torch.equal(teacher.model.table.weight, before if decay else model.table.weight)
    with pytest.raises(UsageError, match=r"decay is 1\.5"):
        MomentumCopy(model, decay=1.5)


def test_tied_weights_stay_tied_and_move_once():
    model = Toy()
    teacher = MomentumCopy(model, decay=0.5)
    assert teacher.model.decoder.weight is teacher.model.table.weight
    before = teacher.model.table.weight.clone()
    move(model, 0)
    teacher.update()
    torch.testing.assert_close(teacher.model.table.weight.data, (before.data + model.table.weight.data) / 2)


def test_one_pass_over_all_tensors(monkeypatch):
    model, calls = Toy(), []
    inner = torch._foreach_lerp_
    monkeypatch.setattr(
        torch, "_foreach_lerp_", lambda old, new, weight: (calls.append(len(old)), inner(old, new, weight))
    )
    MomentumCopy(model).update()
    assert calls == [len(list(model.parameters()))]


def test_buffers_are_taken_over():
    model = Toy().train()
    teacher = MomentumCopy(model)
    model(IDS)
    assert teacher.model.norm.num_batches_tracked == 0
    teacher.update()
    assert teacher.model.norm.num_batches_tracked == 1
    assert torch.equal(teacher.model.norm.running_var, model.norm.running_var)
    assert teacher.model.norm.running_var.data_ptr() != model.norm.running_var.data_ptr()


def test_left_out_modules_do_not_exist():
    model = Toy()
    teacher = MomentumCopy(model, leave_out=("body.2.extra", "table"))
    assert teacher.model.body[2]["extra"] is None
    assert teacher.model.table is None
    assert teacher.model.decoder.weight is not None, "the tied weight lives on under its other name"
    assert model.body[2]["extra"] is not None
    move(model, 0)
    teacher.update()
    assert not any("extra" in name for name in teacher.state_dict())
    with pytest.raises(UsageError, match=r"no part .tables.*table"):
        MomentumCopy(model, leave_out=("tables",))


@pytest.mark.parametrize("dropout", [False, True])
def test_modes(dropout):
    model = Toy().train()
    teacher = MomentumCopy(model, dropout=dropout)
    holder = nn.ModuleList([model, teacher])
    for mode in (True, False, True):
        holder.train(mode)
        assert model.training is mode
        assert all(m.training is (mode and dropout) for m in teacher.model.modules())
    outputs = [teacher.model(IDS) for _ in range(2)]
    assert torch.equal(*outputs) is not dropout


def test_carries_no_gradient_and_is_no_part_of_the_student():
    model = Toy()
    teacher = MomentumCopy(model)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(name.startswith("model.") for name in teacher.state_dict())
    assert len(teacher.state_dict()) == len(model.state_dict()), "the student is not saved with it"
    assert not any(module is model for module in teacher.modules())
    assert not teacher.model(IDS).requires_grad


def test_a_copy_of_both_follows_its_own_student():
    holder = nn.ModuleList([Toy()])
    holder.append(MomentumCopy(holder[0], decay=0.0))
    other = copy.deepcopy(holder)
    move(other[0], 0)
    other[1].update()
    assert torch.equal(other[1].model.table.weight, other[0].table.weight)
    assert not torch.equal(other[0].table.weight, holder[0].table.weight)


def test_float32_under_a_bfloat16_student():
    model = Toy().bfloat16()
    teacher = MomentumCopy(model, decay=0.999)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    assert teacher.model.decoder.weight is teacher.model.table.weight
    start = teacher.model.body[0].weight.clone()
    with torch.no_grad():
        model.body[0].weight.add_(1)
    for _ in range(10):
        teacher.update()
    moved = (teacher.model.body[0].weight - start) / (model.body[0].weight.float() - start)
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.999**10), rtol=1e-3, atol=0)
    teacher.bfloat16()
    with pytest.raises(ZooError, match="bf16-mixed"):
        teacher.update()


def test_interrupted_equals_uninterrupted(tmp_path):
    model = Toy()
    teacher = MomentumCopy(model, decay=0.9)
    move(model, 0), teacher.update()
    torch.save({"model": model.state_dict(), "teacher": teacher.state_dict()}, tmp_path / "a.ckpt")
    move(model, 1), teacher.update()
    again = Toy()
    follower = MomentumCopy(again, decay=0.9)
    state = torch.load(tmp_path / "a.ckpt")
    again.load_state_dict(state["model"]), follower.load_state_dict(state["teacher"])
    move(again, 1), follower.update()
    assert all(torch.equal(v, follower.state_dict()[k]) for k, v in teacher.state_dict().items())


def test_the_share_grows_evenly():
    assert [ramped(0.4, step, 4) for step in range(6)] == [0.0, 0.1, 0.2, pytest.approx(0.3), 0.4, 0.4]
    assert ramped(0.4, 0, 0) == 0.4


# -- the queue --------------------------------------------------------------------------------------------------------


class Plain:
    """The same ring as a list: (image, text, ids, id), the latest last."""

    def __init__(self, size):
        self.size, self.items, self.pushed = size, [], 0

    def push(self, image, text, image_ids, text_ids):
        for item in zip(image.tolist(), text.tolist(), image_ids.tolist(), text_ids.tolist(), strict=True):
            self.items.append(item)
            self.pushed += 1
        self.items = self.items[-self.size :]


def rows(count, width=3, slots=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, width, generator=generator)
    return (
        image,
        text,
        torch.randint(99, (count, slots), generator=generator),
        torch.randint(99, (count,), generator=generator),
    )


def content(queue):
    """What the queue holds, oldest first."""
    view, start = queue.view(), queue.pushed % queue.size if queue.pushed > queue.size else 0
    order = (torch.arange(view.count) + start) % queue.size
    return [
        (i, t, [x for x in ids if x != -1], n)
        for i, t, ids, n in zip(
            *(x[order].tolist() for x in (view.image, view.text, view.image_ids, view.text_ids)), strict=True
        )
    ]


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize(
    "batches", [[1, 1, 1], [2, 2, 2, 2], [3] * 5, [7, 7], [4, 0, 3], [20], [3, 20, 1], [5, 9, 2]]
)
def test_holds_the_latest_pairs_whatever_the_batch(size, batches):
    queue, plain = EmbeddingQueue(size, 3), Plain(size)
    for seed, count in enumerate(batches):
        new = rows(count, seed=seed)
        queue.push(*new), plain.push(*new)
        assert content(queue) == plain.items
        assert queue.count == len(plain.items)
        assert queue.pushed == plain.pushed
        view = queue.view()
        assert (view.text_ids[view.count :] == -1).all()
        assert not view.image[view.count :].any()


def test_view_is_no_copy():
    queue = EmbeddingQueue(4, 3)
    view = queue.view()
    assert view.image.data_ptr() == queue.image.data_ptr()
    queue.push(*rows(2))
    assert torch.equal(view.image[:2], rows(2)[0])
    assert view.count == 0
    assert queue.view().count == 2


def test_remembers_as_many_ids_as_images_have():
    queue, plain = EmbeddingQueue(5, 3), Plain(5)
    for seed, slots in enumerate((1, 3, 2)):
        new = rows(2, slots=slots, seed=seed)
        queue.push(*new), plain.push(*new)
    assert content(queue) == plain.items
    image, text, _, text_ids = rows(2, seed=4)
    queue.push(image, text, torch.tensor([5, 6]), text_ids)
    assert [ids for _, _, ids, _ in content(queue)][-2:] == [[5], [6]]


def test_without_ids_nothing_is_anyones_positive():
    queue = EmbeddingQueue(4, 3)
    queue.push(*rows(3)[:2])
    assert (queue.view().text_ids == -1).all()
    assert (queue.view().image_ids == -1).all()


def test_keeps_float32_and_no_graph():
    queue = EmbeddingQueue(4, 3)
    image, text = (x.bfloat16().requires_grad_() for x in rows(2)[:2])
    queue.push(image * 2, text)
    assert queue.image.dtype == torch.float32
    assert not queue.image.requires_grad
    assert torch.equal(queue.image[:2], (image * 2).detach().float())


def test_saved_and_resumed_exactly(tmp_path):
    queue = EmbeddingQueue(5, 3)
    queue.push(*rows(4, slots=3, seed=0)), queue.push(*rows(3, seed=1))
    torch.save(nn.ModuleDict({"queue": queue}).state_dict(), tmp_path / "a.ckpt")
    again = nn.ModuleDict({"queue": EmbeddingQueue(5, 3)})
    again.load_state_dict(torch.load(tmp_path / "a.ckpt"))
    for one in (queue, again["queue"]):
        one.push(*rows(2, seed=2))
    assert content(queue) == content(again["queue"])
    assert queue.pushed == again["queue"].pushed == 9


def test_checkpoints_of_other_queues_are_refused():
    state = EmbeddingQueue(5, 3).state_dict()
    with pytest.raises(
        RuntimeError, match=r"image is \(5, 3\) in the checkpoint and \(6, 3\) here: set the same"
    ):
        EmbeddingQueue(6, 3).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Missing key.*"pushed"'):
        EmbeddingQueue(5, 3).load_state_dict({k: v for k, v in state.items() if k != "pushed"})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"other"'):
        EmbeddingQueue(5, 3).load_state_dict(state | {"other": torch.zeros(1)})


def test_moves_with_its_module_but_is_no_buffer():
    holder = nn.ModuleDict({"queue": EmbeddingQueue(4, 3)})
    assert list(holder.buffers()) == list(holder.parameters()) == []
    holder.double()
    assert holder["queue"].image.dtype == torch.float64
    assert holder["queue"].text_ids.dtype == torch.int64
    holder.to("meta")
    assert all(getattr(holder["queue"], name).is_meta for name in ("image", "text", "image_ids", "text_ids"))


def test_errors_say_what_does_not_fit():
    with pytest.raises(UsageError, match="a queue of 0 pairs holds nothing"):
        EmbeddingQueue(0, 3)
    with pytest.raises(ZooError, match=r"width 3 takes .* not \(2, 3\) and \(1, 3\)"):
        EmbeddingQueue(4, 3).push(rows(2)[0], rows(1)[0])
    with pytest.raises(ZooError, match=r"not \(2, 4\) and \(2, 4\)"):
        EmbeddingQueue(4, 3).push(*rows(2, width=4))
