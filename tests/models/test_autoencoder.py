"""The autoencoder: principal components that are exact where nothing is lost, the sphere's shape, and what its loss measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from models.autoencoder import Autoencoder, AutoencoderOptions, reconstruction_loss, spectral_ratio
from tests.toys import GLOBE, REGION

POLAR = Grid(np.linspace(-90, 90, 9), np.arange(0, 360, 22.5))
SIGNS = torch.tensor([1.0, -1.0])


def autoencoder(grid: Grid, channels: int = 2, seed: int = 0, **options: object) -> Autoencoder:
    torch.manual_seed(seed)
    sizes = AutoencoderOptions.model_validate({"ae_widths": (8, 8), "ae_blocks": (1, 1), "latents": 8, "bands": 2, **options})
    signs = SIGNS[:channels] if grid.is_global else None
    return Autoencoder(channels, grid, sizes, unit=torch.full((channels, 1, 1), 0.5), pole_signs=signs)


def fields(grid: Grid, count: int = 40, channels: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    climate = 3 * torch.randn(channels, *grid.shape, generator=generator)
    return climate + torch.randn(count, channels, *grid.shape, generator=generator)


@pytest.mark.parametrize("grid", [GLOBE, REGION, POLAR], ids=["globe", "region", "globe with polar rows"])
@torch.no_grad()
def test_untrained_with_as_many_latents_as_numbers_it_loses_nothing_on_any_grid(grid: Grid) -> None:
    model, data = autoencoder(grid, latents=32), fields(grid)
    model.fit(data.split(7))
    latents = model.encode(data)
    assert tuple(latents.shape[1:]) == (32, -(-grid.shape[0] // 4), -(-grid.shape[1] // 4))
    torch.testing.assert_close(model.decode(latents), data, rtol=0, atol=2e-5)


@torch.no_grad()
def test_with_fewer_latents_it_keeps_the_directions_of_the_largest_variance() -> None:
    torch.manual_seed(1)
    patterns = torch.linalg.qr(torch.randn(32, 3))[0]  # cells of two channels that vary in three directions alone
    scores = torch.randn(50, 3, 2, 4)
    data = torch.nn.functional.pixel_shuffle(torch.einsum("nk,bkhw->bnhw", patterns, scores), 4)
    model = autoencoder(GLOBE, latents=3)
    model.fit([data])
    torch.testing.assert_close(model.decode(model.encode(data)), data, rtol=0, atol=1e-5)
    model = autoencoder(GLOBE, latents=2)
    model.fit([data])
    assert (model.decode(model.encode(data)) - data).square().mean() > 0.2 * data.var()


@torch.no_grad()
def test_components_are_orthonormal_and_those_of_the_bands_are_turned_to_the_same_ones() -> None:
    model, data = autoencoder(GLOBE, latents=5), fields(GLOBE)
    model.fit([data])
    for basis in model.basis:
        torch.testing.assert_close(basis.mT @ basis, torch.eye(5), rtol=0, atol=1e-5)
    alike = autoencoder(GLOBE, latents=5, bands=1)
    alike.fit([data])
    twice = autoencoder(GLOBE, latents=5)
    twice.fit([data.unflatten(2, (2, 4))[:, :, :1].expand(-1, -1, 2, -1, -1).flatten(2, 3)])
    torch.testing.assert_close(twice.basis[0], twice.basis[1], rtol=0, atol=2e-3)
    assert len(alike.basis) == 1


@torch.no_grad()
def test_the_components_know_the_units_in_which_channels_count_alike() -> None:
    torch.manual_seed(0)
    sizes = AutoencoderOptions(ae_widths=(8, 8), ae_blocks=(0, 0), latents=16)
    data = fields(GLOBE, 60) * torch.tensor([1.0, 100.0]).view(-1, 1, 1)
    model = Autoencoder(2, GLOBE, sizes, unit=torch.tensor([0.01, 100.0]).view(-1, 1, 1), pole_signs=SIGNS)
    model.fit([data])
    error = (model.decode(model.encode(data)) - data).square().mean((0, 2, 3)).sqrt()
    assert error[0] < 1e-4  # the small channel counts most: its 16 numbers a cell are all kept
    assert error[1] > 50


@torch.no_grad()
def test_it_turns_with_the_globe_where_its_own_map_does_not_depend_on_longitude() -> None:
    model, data = autoencoder(GLOBE), fields(GLOBE)
    model.fit([torch.cat([data.roll(shift, -1) for shift in range(16)])])
    for value in model.parameters():
        value.add_(0.1 * torch.randn_like(value))
    model.position.zero_()
    turned = model.decode(model.encode(data.roll(4, -1)))
    torch.testing.assert_close(turned, model.decode(model.encode(data)).roll(4, -1), rtol=0, atol=1e-4)


@torch.no_grad()
def test_components_of_winds_change_sign_across_the_poles_where_fields_enter() -> None:
    model, data = autoencoder(GLOBE), fields(GLOBE, 3)
    model.fit([data])
    padded = model.fine(data, model.pole_signs)
    torch.testing.assert_close(padded[:, 0, 0, 1:-1], data[:, 0, 0].roll(8, -1))
    torch.testing.assert_close(padded[:, 1, 0, 1:-1], -data[:, 1, 0].roll(8, -1))
    assert autoencoder(REGION).pole_signs is None


@torch.no_grad()
def test_low_precision_keeps_the_digits_of_the_weather() -> None:
    """The convolutions alone are in bfloat16: deviations from the climate lose far less than the fields would."""
    model, data = autoencoder(GLOBE, latents=32), 30 + 0.1 * fields(GLOBE)
    model.fit([data])
    for value in model.parameters():
        value.add_(0.05 * torch.randn_like(value))
    full, low = model.decode(model.encode(data)), model.to(torch.float32)
    weights = {name: value.to(torch.bfloat16) for name, value in low.named_parameters()}
    latents = torch.func.functional_call(
        _Call(low, "encode"), {f"model.{k}": v for k, v in weights.items()}, (data, torch.bfloat16)
    )
    rebuilt = torch.func.functional_call(
        _Call(low, "decode"), {f"model.{k}": v for k, v in weights.items()}, (latents, torch.bfloat16)
    )
    assert rebuilt.dtype == latents.dtype == torch.float32
    assert (rebuilt - full).abs().max() < 0.03 < (data.bfloat16().float() - data).abs().max()


class _Call(torch.nn.Module):
    """A method of a module as the forward of another, for `functional_call`."""

    def __init__(self, model: Autoencoder, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        out: Tensor = getattr(self.model, self.method)(x, dtype)
        return out


def test_every_weight_learns_and_the_loss_falls_below_that_of_the_components() -> None:
    model, data = autoencoder(GLOBE, latents=3, ae_widths=(16, 16)), _waves(24)
    model.fit([data])
    weight = torch.tensor(GLOBE.area_weights, dtype=torch.float32).expand(2, -1, -1)
    start = float(reconstruction_loss(model.decode(model.encode(data)), data, weight).detach())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        reconstruction_loss(model.decode(model.encode(data)), data, weight).backward()
        optimizer.step()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
    assert float(reconstruction_loss(model.decode(model.encode(data)), data, weight).detach()) < 0.9 * start


def _waves(count: int) -> Tensor:
    """Travelling waves: fields that are smooth across the edges of cells, which cells alone cannot know."""
    phase = 2 * torch.pi * torch.rand(count, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    longitude = torch.deg2rad(torch.tensor(GLOBE.longitude, dtype=torch.float32))
    latitude = torch.deg2rad(torch.tensor(GLOBE.latitude, dtype=torch.float32))[:, None]
    return torch.stack([torch.cos(k * longitude + phase[:, k - 2]) * latitude.cos() for k in (2, 3)], 1)


def test_the_loss_of_white_noise_and_of_a_constant_worked_out_by_hand() -> None:
    truth = torch.zeros(2, 1, 32, 64)
    constant = reconstruction_loss(truth + 2, truth, torch.ones(1, 32, 64))
    assert float(constant) == pytest.approx(2 + 2 * 0.1 * 2 + 0.1 * 2 * 8 / 33)  # one wave of 33, sqrt(64) as large
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 1, 32, 64, generator=generator)
    mean = np.sqrt(2 / np.pi)
    waves = (31 * np.sqrt(np.pi) / 2 + 2 * mean) / 33  # Rayleigh but for the first and the last
    expected = mean * (1 + 0.1 / 2 + 0.1 / 4) + 0.1 * waves
    assert float(reconstruction_loss(noise, torch.zeros_like(noise), torch.ones(1, 32, 64))) == pytest.approx(expected, rel=5e-3)


def test_the_spectral_ratio_finds_the_wave_that_was_halved() -> None:
    truth = fields(GLOBE, 3)
    waves = torch.fft.rfft(truth, dim=-1)
    waves[:, 1, :, 4] *= 0.5
    damped = torch.fft.irfft(waves, n=16, dim=-1)
    area = torch.tensor(GLOBE.area_weights)
    expected = torch.ones(2, 9)
    expected[1, 4] = 0.25
    torch.testing.assert_close(spectral_ratio(damped, truth, area), expected, rtol=1e-4, atol=0)
    assert torch.equal(spectral_ratio(0 * truth, 0 * truth, area), torch.ones(2, 9))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="18 longitudes around the globe are not a multiple of 8"):
        autoencoder(Grid(np.linspace(-80, 80, 9), np.arange(0, 360, 20.0)))
    with pytest.raises(InputError, match="a cell of 4x4 points has 32 numbers"):
        autoencoder(GLOBE, latents=33)
    with pytest.raises(InputError, match="no training analyses"):
        autoencoder(GLOBE).fit([])
    with pytest.raises(ValueError, match="expected one for each of the 2 ae_widths"):
        AutoencoderOptions(ae_blocks=(1,))
    with pytest.raises(ValueError, match="at least one positive width"):
        AutoencoderOptions(ae_widths=(), ae_blocks=())
