"""Position tables: each resampling recipe against its own source, and fixed sinusoids."""

import math

import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed

from mmzoo.errors import UsageError, ZooError
from mmzoo.ops.grid import resample_grid, sincos_table_1d, sincos_table_2d

RECIPES = ("timm", "albef", "lavis_clip", "vilt", "google", "dinov2")
GRIDS = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((4, 6), (9, 5)), ((5, 3), (5, 8)), ((3, 3), (1, 4))]


def table(old, prefix=1, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(old))
    return torch.randn(1, prefix + old[0] * old[1], width, dtype=torch.float64, generator=generator).to(dtype)


def cells_of(x, grid, prefix):
    return x[0, prefix:].reshape(*grid, -1)


def cubic(t, a=-0.75):
    """The kernel of torch's bicubic interpolation."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def linear(t):
    return max(0.0, 1 - abs(t))


def by_hand(cells, new, *, kernel, aligned):
    """Separable interpolation in plain Python; samples beyond the border repeat it."""

    def matrix(old, new):
        rows = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            if aligned:
                at = i * (old - 1) / (new - 1) if new > 1 else 0.0
            else:
                at = (i + 0.5) * old / new - 0.5
            for j in range(math.floor(at) - 1, math.floor(at) + 3):
                rows[i, min(max(j, 0), old - 1)] += kernel(at - j)
        return rows

    down, across = matrix(cells.shape[0], new[0]), matrix(cells.shape[1], new[1])
    return torch.einsum("ia,jb,abd->ijd", down, across, cells)


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
class TestRecipes:
    def check(self, recipe, old, new, prefix, expected, tolerance):
        x = table(old, prefix)
        out = resample_grid(x, old, new, prefix=prefix, recipe=recipe)
        assert out.shape == (1, prefix + new[0] * new[1], 6)
        assert torch.equal(out[:, :prefix], x[:, :prefix])
        torch.testing.assert_close(
            cells_of(out, new, prefix), expected(cells_of(x, old, prefix)), rtol=0, atol=tolerance
        )

    @pytest.mark.parametrize("recipe", ["albef", "dinov2"])
    def test_albef(self, recipe, old, new, prefix):
        self.check(recipe, old, new, prefix, lambda c: by_hand(c, new, kernel=cubic, aligned=False), 1e-9)

    def test_lavis_clip(self, old, new, prefix):
        self.check(
            "lavis_clip", old, new, prefix, lambda c: by_hand(c, new, kernel=cubic, aligned=True), 1e-9
        )

    def test_vilt(self, old, new, prefix):
        self.check("vilt", old, new, prefix, lambda c: by_hand(c, new, kernel=linear, aligned=True), 1e-9)

    def test_google(self, old, new, prefix):
        def zoom(cells):
            factors = (new[0] / old[0], new[1] / old[1], 1)
            return torch.from_numpy(scipy.ndimage.zoom(cells.numpy(), factors, order=1))

        self.check("google", old, new, prefix, zoom, 1e-9)

    def test_timm(self, old, new, prefix):
        x = table(old, prefix, dtype=torch.float32)
        ours = resample_grid(x, old, new, prefix=prefix, recipe="timm")
        theirs = resample_abs_pos_embed(x, list(new), list(old), num_prefix_tokens=prefix)
        assert torch.equal(ours, theirs)


def test_timm_antialiases_and_albef_does_not():
    x = table((8, 8))
    timm, albef = (resample_grid(x, (8, 8), (3, 3), prefix=1, recipe=recipe) for recipe in ("timm", "albef"))
    assert (timm - albef).abs().max() > 0.1
    cells = x[:, 1:].reshape(1, 8, 8, 6).permute(0, 3, 1, 2)
    expected = F.interpolate(cells, size=(3, 3), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(cells_of(timm, (3, 3), 1), expected, rtol=0, atol=1e-12)


def test_recipes_differ_where_the_families_do():
    out = {
        recipe: resample_grid(table((4, 4)), (4, 4), (7, 7), prefix=1, recipe=recipe) for recipe in RECIPES
    }
    for one, other in (
        ("timm", "lavis_clip"),
        ("albef", "lavis_clip"),
        ("albef", "vilt"),
        ("timm", "google"),
    ):
        assert (out[one] - out[other]).abs().max() > 0.05


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_size_returns_the_table_itself(recipe):
    x = table((4, 4), dtype=torch.bfloat16)
    assert resample_grid(x, (4, 4), (4, 4), prefix=1, recipe=recipe) is x


@pytest.mark.parametrize("recipe", RECIPES)
def test_dtype_shape_and_gradient(recipe):
    x = table((4, 4), dtype=torch.bfloat16).requires_grad_()
    out = resample_grid(x, (4, 4), (6, 5), prefix=1, recipe=recipe)
    assert out.dtype == torch.bfloat16
    wide = resample_grid(x.float(), (4, 4), (6, 5), prefix=1, recipe=recipe)
    assert torch.equal(out, wide.bfloat16())
    flat = resample_grid(x[0], (4, 4), (6, 5), prefix=1, recipe=recipe)
    assert torch.equal(flat, out[0])
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[:, 0] == 1).all()
    meta = resample_grid(x.to("meta"), (4, 4), (6, 5), prefix=1, recipe=recipe)
    assert meta.shape == (1, 31, 6)


def test_resampling_says_what_does_not_fit():
    x = table((4, 4))
    with pytest.raises(
        ZooError, match=r"a 4 x 5 grid and 1 leading tokens is \(1, 21, D\).*got \(1, 17, 6\)"
    ):
        resample_grid(x, (4, 5), (2, 2), prefix=1, recipe="timm")
    with pytest.raises(ZooError, match="at least one row"):
        resample_grid(x, (4, 4), (0, 2), prefix=1, recipe="timm")
    with pytest.raises(UsageError, match=r"'vlit'. Did you mean vilt\?"):
        resample_grid(x, (4, 4), (2, 2), prefix=1, recipe="vlit")


def test_1d_sinusoids_follow_the_paper():
    out = sincos_table_1d(50, 8)
    assert out.dtype == torch.float32
    for position in (0, 1, 49):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert abs(out[position, 2 * i] - math.sin(angle)) < 1e-6
            assert abs(out[position, 2 * i + 1] - math.cos(angle)) < 1e-6


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_2d_sinusoids_equal_mae(grid, prefix):
    ours = sincos_table_2d(grid, 16, prefix=prefix)
    # timm's order is [sin y, cos y, sin x, cos x]; MAE's published code begins with x (its meshgrid puts w first).
    y, x = build_sincos2d_pos_embed(list(grid), 16, interleave_sin_cos=True).chunk(2, dim=1)
    torch.testing.assert_close(ours[prefix:], torch.cat([x, y], dim=1), rtol=0, atol=1e-6)
    assert ours.shape == (prefix + grid[0] * grid[1], 16)
    assert (ours[:prefix] == 0).all()
    cells = ours[prefix:].view(*grid, 16)
    assert torch.equal(cells[0, 1, :8], cells[1, 1, :8])  # x: the same along a column
    assert torch.equal(cells[1, 0, 8:], cells[1, 1, 8:])  # y: the same along a row


def test_sinusoids_say_what_does_not_fit():
    with pytest.raises(ZooError, match="even width, got 7"):
        sincos_table_1d(3, 7)
    with pytest.raises(ZooError, match="divisible by 4, got 6"):
        sincos_table_2d((2, 2), 6)
