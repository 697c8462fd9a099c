"""The two towers' switches, the guests, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.towers import TextBackbone, TimmConfig, VisionConfig, VisionTower, build_vision
from mmzoo.towers.text import bert_text, clip_text, llama_text

TINY = VisionConfig(
    image_size=16, patch=4, width=24, depth=2, heads=3, hidden=48, norm_eps=1e-6, act="gelu", init="timm"
)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _text(**changes) -> TextBackbone:
    base = {"vocab": 30, "context": 12, "width": 24, "depth": 2, "heads": 3, "hidden": 48}
    torch.manual_seed(0)
    return TextBackbone(clip_text(**base | changes)).double().eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "mean"},
        {"cls_token": False, "pool": "mean"},
        {"registers": 3},
        {"positions": "sincos"},
        {"positions": "rope", "width": 24, "heads": 3},
        {"positions": "none"},
        {"positions": "rope", "registers": 2, "patch_drop": 0.5},
        {"pre_norm": True, "patch_bias": False, "init": "clip", "act": "quick_gelu"},
        {"norm_kind": "rms", "act": "swiglu", "bias": False},
        {"final_norm": False, "init": "google"},
        {"dropout": 0.1, "attn_dropout": 0.1, "drop_path": 0.1, "patch_drop": 0.25},
        {"kv_heads": 1},
        {"head_dim": 16},
        {"layer_scale": 0.1},
    ],
    ids=str,
)
def test_vision_switches_run_and_learn(changes):
    tower = VisionTower(replace(TINY, **changes))
    out = tower.train()(IMAGES)
    assert out.pooled.shape == (2, 24)
    patches = round(16 * (1 - changes.get("patch_drop", 0)))
    assert out.tokens.shape == (2, patches + tower.config.prefix, 24)
    assert out.grid == (4, 4)
    out.tokens.square().sum().backward()
    idle = [name for name, p in tower.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a residual sum before a final norm leaves no gradient only where a weight is unused
    assert idle == []
    assert torch.equal(tower.eval()(IMAGES).pooled, tower.eval()(IMAGES).pooled)


def test_rotary_vision_sees_only_relative_places():
    """With rotary positions alone and no class token, rolling the patches rolls the tokens' neighbourhoods, while
    shuffling them changes the result; with no positions at all a shuffle changes nothing but the order."""
    shuffle = torch.randperm(16, generator=torch.Generator().manual_seed(1))

    def mean_of(positions: str, order: torch.Tensor | None) -> torch.Tensor:
        torch.manual_seed(0)
        tower = VisionTower(replace(TINY, positions=positions, cls_token=False, pool="mean")).double().eval()
        images = IMAGES.double()
        if order is not None:
            blocks = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, order].unflatten(2, (4, 4))
            images = blocks.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 16, 16)
        return tower(images).pooled

    torch.testing.assert_close(mean_of("none", None), mean_of("none", shuffle), rtol=0, atol=1e-10)
    assert (mean_of("rope", None) - mean_of("rope", shuffle)).abs().max() > 1e-6


def test_patch_drop_only_in_training():
    tower = VisionTower(replace(TINY, patch_drop=0.5))
    assert tower.train()(IMAGES).tokens.shape[1] == 9
    assert tower.eval()(IMAGES).tokens.shape[1] == 17


def test_position_table_follows_the_image_size():
    small, large = VisionTower(TINY), VisionTower(replace(TINY, image_size=24))
    with pytest.raises(ZooError, match="reads images of 16 pixels"):
        small(torch.randn(1, 3, 24, 24))
    state = small.state_dict()
    fitted = large.fit_state(state)
    assert fitted["pos"].shape == (1, 37, 24)
    assert torch.equal(fitted["pos"][:, :1], state["pos"][:, :1])
    large.load_state_dict(fitted)
    assert small.fit_state(state) is state
    odd = state | {"pos": torch.randn(1, 15, 24)}
    assert large.fit_state(odd) is odd  # not a square grid: strict loading will refuse it


def test_recipe_decides_the_resampling():
    state = VisionTower(TINY).state_dict()
    tables = {
        recipe: VisionTower(replace(TINY, image_size=24, resample=recipe)).fit_state(state)["pos"]
        for recipe in ("timm", "albef", "lavis_clip", "vilt", "google")
    }
    names = list(tables)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if {a, b} == {"vilt", "google"}:  # both are corner-aligned linear interpolation
                continue
            assert not torch.allclose(tables[a], tables[b]), (a, b)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_guests(name):
    tower = build_vision(TimmConfig(name, image_size=64)).eval()
    out = tower(torch.randn(2, 3, 64, 64))
    assert out.pooled.shape == (2, tower.width)
    assert out.tokens.shape[0] == 2
    assert out.tokens.shape[2] == tower.width
    assert out.grid[0] * out.grid[1] == out.tokens.shape[1]


def test_timm_unknown_name():
    with pytest.raises(ZooError, match="resnet18"):
        build_vision(TimmConfig("resnet_18", image_size=64))


# --- text ---------------------------------------------------------------------------------------------------------

IDS = torch.randint(1, 30, (3, 12), generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(12) < torch.tensor([12, 5, 7])[:, None]


@pytest.mark.parametrize("preset", [bert_text, clip_text, llama_text])
def test_padding_changes_nothing(preset):
    torch.manual_seed(0)
    sizes = {"vocab": 30, "context": 12, "width": 24, "depth": 2, "heads": 3, "hidden": 48}
    text = TextBackbone(preset(**sizes)).double().eval()
    out = text(IDS, keep=KEEP)
    for row, length in enumerate((12, 5, 7)):
        alone = text(IDS[row : row + 1, :length])
        torch.testing.assert_close(out.tokens[row, :length], alone.tokens[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(out.pooled[row], alone.pooled[0], rtol=0, atol=1e-12)
    other = torch.where(KEEP, IDS, 7)
    torch.testing.assert_close(text(other, keep=KEEP).pooled, out.pooled, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "sincos", "rope"])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_equals_padded(positions, causal):
    text = _text(positions=positions, causal=causal)
    padded, packed = text(IDS, keep=KEEP), text(IDS, keep=KEEP, packed=True)
    torch.testing.assert_close(packed.tokens[KEEP], padded.tokens[KEEP], rtol=0, atol=1e-11)
    torch.testing.assert_close(packed.pooled, padded.pooled, rtol=0, atol=1e-11)
    bare = _text(positions=positions, causal=causal, final_norm=False)
    assert not bare(IDS, keep=KEEP, packed=True).tokens[~KEEP].any()


def test_right_padded_promise_needs_no_mask():
    text = _text()
    a, b = text(IDS, keep=KEEP), text(IDS, keep=KEEP, right_padded=True)
    torch.testing.assert_close(a.pooled, b.pooled, rtol=0, atol=1e-12)


def test_causal_rows_do_not_see_ahead():
    text = _text()
    changed = IDS.clone()
    changed[:, 6:] = 3
    a, b = text(IDS).tokens, text(changed).tokens
    torch.testing.assert_close(a[:, :6], b[:, :6], rtol=0, atol=1e-12)
    assert (a[:, 6:] - b[:, 6:]).abs().max() > 1e-6


def test_layer_slices_compose():
    """ALBEF's two halves: layers 0..k, then the rest on their states, equal the whole."""
    torch.manual_seed(0)
    sizes = {"vocab": 30, "context": 12, "width": 24, "depth": 4, "heads": 3, "hidden": 48}
    text = TextBackbone(bert_text(**sizes, cross_layers=(2, 3), cross_width=10)).double().eval()
    image = torch.randn(3, 5, 10, dtype=torch.float64)
    half = text(IDS, keep=KEEP, layers=slice(0, 2))
    whole = text(IDS, keep=KEEP, context=image)
    rest = text(embeds=half.tokens, keep=KEEP, context=image, layers=slice(2, 4))
    torch.testing.assert_close(rest.tokens, whole.tokens, rtol=0, atol=1e-12)
    shared = text(IDS, keep=KEEP, context=text.project_context(image))
    torch.testing.assert_close(shared.tokens, whole.tokens, rtol=0, atol=1e-12)
    assert [hasattr(b, "cross") for b in text.blocks] == [False, False, True, True]


def test_final_norm_belongs_to_the_last_block():
    """A slice that leaves the last block out, or runs nothing, gives bare states."""
    text = _text(depth=3)
    states = torch.randn(3, 12, 24, dtype=torch.float64)
    assert torch.equal(text(embeds=states, layers=slice(0, 0)).tokens, states)
    first = text(embeds=states, layers=slice(0, 2)).tokens
    assert not torch.allclose(first, text.norm(first))
    whole = text(embeds=states).tokens
    torch.testing.assert_close(whole, text(embeds=first, layers=slice(2, 3)).tokens, rtol=0, atol=1e-12)


def test_context_mask_hides_tokens():
    torch.manual_seed(0)
    sizes = {"vocab": 30, "context": 12, "width": 24, "depth": 1, "heads": 3, "hidden": 48}
    text = TextBackbone(bert_text(**sizes, cross_layers=(0,), cross_width=10)).double().eval()
    image = torch.randn(3, 5, 10, dtype=torch.float64)
    keep = torch.tensor([True, True, True, False, False]).expand(3, 5)
    torch.testing.assert_close(
        text(IDS, context=image, context_keep=keep).tokens,
        text(IDS, context=image[:, :3]).tokens,
        rtol=0,
        atol=1e-12,
    )


def test_token_types_reach_the_embedding():
    torch.manual_seed(0)
    text = (
        TextBackbone(bert_text(vocab=30, context=12, width=24, depth=1, heads=3, hidden=48)).double().eval()
    )
    types = torch.zeros_like(IDS)
    torch.testing.assert_close(text(IDS, types=types).tokens, text(IDS).tokens)
    types[:, 6:] = 1
    assert (text(IDS, types=types).tokens - text(IDS).tokens).abs().max() > 1e-6


def test_refusals():
    text = _text()
    with pytest.raises(ZooError, match="context of 12"):
        text(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ZooError, match="either ids or embeds"):
        text()
    with pytest.raises(ZooError, match="padding is part"):
        _text(pool="last_slot")(IDS[:, :5])
    with pytest.raises(ZooError, match="packed=True needs keep"):
        text(IDS, packed=True)
    with pytest.raises(ZooError, match="come together"):
        bert_text(cross_layers=(1,))
    with pytest.raises(ZooError, match="not a multiple"):
        replace(TINY, patch=5)


def test_mean_pool_leaves_padding_out():
    texts = _text(pool="mean", causal=False)
    ids = torch.randint(0, 30, (3, 7))
    keep = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    out = texts(ids, keep=keep)
    for row, length in enumerate((7, 3, 5)):
        torch.testing.assert_close(out.pooled[row], out.tokens[row, :length].mean(0), rtol=1e-12, atol=1e-12)
        alone = texts(ids[row : row + 1, :length])
        torch.testing.assert_close(out.pooled[row], alone.pooled[0], rtol=1e-10, atol=1e-10)
    assert not texts(
        ids, keep=torch.zeros_like(keep)
    ).pooled.any()  # nothing kept: zeros, not a division by zero
