"""The U-Net: it knows the sphere, keeps members apart, fits any grid, starts silent and listens to its noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from models.backbones.unet import UNet


def net(shape: tuple[int, int], is_global: bool, *, seed: int = 0, **changes: Any) -> UNet:
    """A network with all weights random: the last convolution of an untrained one is zero."""
    torch.manual_seed(seed)
    sizes = {"widths": (8, 16), "blocks": 1, "patch": 2, "noise": 4, "local_noise": 2, "position": 2}
    made = UNet(3, 2, shape, is_global=is_global, **{**sizes, **changes}).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return made


def inputs(made: UNet, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(batch, 3, *made.shape), torch.randn(batch, made.noise), torch.randn(batch, *made.local_shape)


@torch.no_grad()
@pytest.mark.parametrize("rows", [8, 13])
@pytest.mark.parametrize("patch", [1, 2])
def test_turning_the_globe_turns_the_answer(rows: int, patch: int) -> None:
    """By whole cells of the coarsest level, once the learned position planes, which alone know where they are, are silent."""
    made = net((rows, 16), True, patch=patch, polar_rows=rows % 2 == 1, pole_signs=torch.tensor([1.0, -1.0, 1.0]))
    x, noise, local = inputs(made)
    turned = x.roll(4, -1), noise, local.roll(4 // patch, -1)
    assert not torch.allclose(made(*turned), made(x, noise, local).roll(4, -1), atol=1e-3)
    made.position.zero_()
    torch.testing.assert_close(made(*turned), made(x, noise, local).roll(4, -1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "is_global"), [((21, 24), False), ((9, 10), False), ((13, 24), True), ((8, 16), True), ((5, 7), False)]
)
@pytest.mark.parametrize("changes", [{"patch": 1}, {"patch": 2}, {"patch": 2, "widths": (8, 8, 16)}, {"local_noise": 0}])
def test_any_grid_comes_out_as_it_went_in(shape: tuple[int, int], is_global: bool, changes: dict[str, Any]) -> None:
    made = net(shape, is_global, polar_rows=is_global and shape[0] % 2 == 1, **changes)
    out = made(*inputs(made))
    assert out.shape == (2, 2, *shape)
    assert torch.isfinite(out).all()


def test_a_circle_that_cannot_be_halved_is_refused_rather_than_cut() -> None:
    with pytest.raises(InputError, match="18 longitudes around the globe are not a multiple of 4"):
        net((8, 18), True)


@torch.no_grad()
def test_untrained_it_says_nothing() -> None:
    torch.manual_seed(0)
    made = UNet(3, 2, (8, 16), widths=(8, 16), blocks=2, patch=2, noise=4, local_noise=2, is_global=True)
    assert not made(*inputs(made)).any()


@torch.no_grad()
def test_a_row_of_the_batch_does_not_see_the_others() -> None:
    made = net((8, 16), True)
    x, noise, local = inputs(made, batch=4)
    before = made(x, noise, local)
    x[1:], noise[1:], local[1:] = 5.0, -3.0, 2.0
    assert torch.equal(made(x, noise, local)[0], before[0])


@torch.no_grad()
@pytest.mark.parametrize("which", [1, 2])
def test_global_and_local_noise_both_reach_the_output_everywhere(which: int) -> None:
    made = net((8, 16), True)
    arguments = list(inputs(made))
    before = made(*arguments)
    arguments[which] = -arguments[which]
    assert ((made(*arguments) - before).abs() > 1e-6).float().mean() > 0.99


@torch.no_grad()
@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 8, 16), (8, 8, 8, 16)])
def test_local_noise_has_unit_variance_at_every_level(widths: tuple[int, ...]) -> None:
    made = net((32, 64), True, widths=widths, local_noise=40)
    torch.manual_seed(2)
    pyramid = made._local_pyramid(torch.randn(6, *made.local_shape))
    assert [field.shape[-1] for field in pyramid] == [32 // 2**i for i in range(len(widths))]
    for field in pyramid:
        assert float(field.std()) == pytest.approx(1, abs=0.04)


@torch.no_grad()
def test_the_sign_of_a_wind_matters_at_the_poles_only() -> None:
    plain, signed = (
        net((16, 16), True, patch=1, widths=(8,)),
        net((16, 16), True, patch=1, widths=(8,), pole_signs=-torch.ones(3)),
    )
    x, _, _ = inputs(plain)
    position = plain.position.expand(2, -1, -1, -1)
    difference = (plain.stem(torch.cat([x, position], 1)) - signed.stem(torch.cat([x, position], 1))).abs().amax((0, 1, 3))
    assert (difference[[0, -1]] > 1e-3).all()
    assert not difference[1:-1].any()


def test_rows_beyond_the_pole_know_winds_and_polar_rows() -> None:
    signs = torch.tensor([1.0, -1.0, -1.0])
    made = net((13, 16), True, polar_rows=True, pole_signs=signs)
    x = torch.cat([inputs(made)[0], made.position.detach().expand(2, -1, -1, -1)], 1)
    tall = made._extended(x)
    assert tall.shape[-2:] == (16, 16)
    for row in (1, 2, 3):
        across = x[:, :, 12 - row].roll(8, -1)
        torch.testing.assert_close(tall[:, :, 12 + row], across * torch.cat([signs, torch.ones(2)])[:, None])
    for conv in (made.stem, made.head):
        torch.testing.assert_close(conv.pad(x, None)[:, :, 0, 1:-1], x[:, :, 1].roll(8, -1))
