"""Spectra: known answers, sums that equal the mean square, harmonics of scipy, offsets, missing values, dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import (
    area_weights,
    log_spectral_distance,
    power_spectrum,
    spectral_divergence,
    spectral_residual,
    spectral_variance_ratio,
)
from verification.spectra import spherical_power, zonal_power

PLANE = ("latitude", "longitude")
MEASURES = (spectral_divergence, spectral_residual, log_spectral_distance, spectral_variance_ratio)


def on(grid: Grid, values: np.ndarray, *dims: str) -> xr.DataArray:
    values = np.broadcast_to(values, (*values.shape[: len(dims)], *grid.shape))
    return xr.DataArray(values, dims=(*dims, *PLANE), coords=grid.coords(), attrs={"units": "m"})


def powers(*values: float) -> xr.DataArray:
    return xr.DataArray(np.array(values, float), dims="wavenumber", coords={"wavenumber": np.arange(len(values))})


def harmonics(grid: Grid, largest: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random field of scipy's harmonics up to a degree, and its power by degree from the coefficients."""
    rng = np.random.default_rng(seed)
    colatitude, longitude = np.deg2rad(90 - grid.latitude)[:, None], np.deg2rad(grid.longitude)
    field, power = np.zeros(grid.shape), np.zeros(largest + 1)
    for degree in range(largest + 1):
        for order in range(degree + 1):
            # orthonormal complex harmonics x sqrt(4 pi); sqrt(2) makes the real ones of mean square 1
            wave = scipy.special.sph_harm_y(degree, order, colatitude, longitude) * np.sqrt(4 * np.pi)
            a, b = rng.normal(size=2)
            field += a * wave.real if order == 0 else np.sqrt(2) * (a * wave.real + b * wave.imag)
            power[degree] += a**2 if order == 0 else a**2 + b**2
    return field, power


def test_zonal_power_known_answer() -> None:
    grid = Grid(np.array([-45.0, 0, 45]), np.arange(0, 360, 45.0))
    j = np.arange(8)
    found = power_spectrum(on(grid, 1 + 2 * np.cos(2 * np.pi * j / 8) + (-1.0) ** j))
    np.testing.assert_allclose(found, [1, 2, 0, 0, 1], atol=1e-14)
    np.testing.assert_array_equal(found["wavenumber"], np.arange(5))


def test_spherical_power_known_answer() -> None:
    grid = Grid.named("36x19")
    sine, cosine = np.sin(np.deg2rad(90 - grid.latitude))[:, None], np.cos(np.deg2rad(90 - grid.latitude))[:, None]
    found = power_spectrum(on(grid, sine**2 * cosine * np.cos(2 * np.deg2rad(grid.longitude))), kind="spherical")
    expected = np.zeros(10)
    expected[3] = 4 / 105
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("name", ["36x19", "36x18", "20x31", "9x5", "64x32"])
def test_harmonics_of_scipy_are_found_by_both_quadratures(name: str) -> None:
    grid = Grid.named(name)
    largest = (min(grid.shape) - 1) // 2
    field, expected = harmonics(grid, largest)
    found = power_spectrum(on(grid, field), kind="spherical")
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def area_mean(values: np.ndarray, grid: Grid) -> float:
    return float(np.average(values, weights=grid.areas))


def test_a_field_on_a_fine_grid_has_the_mean_square_of_its_area() -> None:
    grid = Grid.named("240x121")
    field, expected = harmonics(grid, 8)
    found = power_spectrum(on(grid, field), kind="spherical")
    assert found.sizes["wavenumber"] == 61
    np.testing.assert_allclose(found[:9], expected, rtol=1e-10)
    np.testing.assert_allclose(found[9:], 0, atol=1e-24)
    assert float(found.sum()) == pytest.approx(area_mean(field**2, grid), rel=1e-3)  # cell areas are not a quadrature


def test_rotating_the_sphere_keeps_the_spectrum() -> None:
    grid = Grid.named("36x18")
    rng = np.random.default_rng(1)
    latitude, longitude = np.meshgrid(np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij")
    point = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = np.tensordot(rotation, point, axes=1)
    spectra = [spherical_power(np.stack([2 + x * y**3 - 3 * z**5 + x * z]), grid) for x, y, z in (point, turned)]
    np.testing.assert_allclose(spectra[0], spectra[1], atol=1e-14)


@given(st.integers(4, 25), st.integers(2, 12), st.integers(0, 10**6))
def test_zonal_power_sums_to_the_mean_square(columns: int, rows: int, seed: int) -> None:
    grid = Grid.named(f"{columns}x{rows}")
    field = np.random.default_rng(seed).normal(3, 2, size=grid.shape)
    found = power_spectrum(on(grid, field))
    assert found.sizes["wavenumber"] == columns // 2 + 1
    assert float(found.sum()) == pytest.approx(area_mean(field**2, grid), rel=1e-12)


@pytest.mark.parametrize("columns", [8, 9])
def test_zonal_power_equals_the_transform_written_out(columns: int) -> None:
    grid = Grid.named(f"{columns}x6")
    field = np.random.default_rng(2).normal(size=(3, *grid.shape))
    expected = np.zeros((3, columns // 2 + 1))
    rows = [2, 3, 4]
    for index, k, row in np.ndindex(3, columns // 2 + 1, 6):
        if row in rows:
            angles = 2 * np.pi * k * np.arange(columns) / columns
            wave = np.mean(field[index, row] * np.cos(angles)) ** 2 + np.mean(field[index, row] * np.sin(angles)) ** 2
            share = grid.areas[row, 0] / grid.areas[rows, 0].sum()
            expected[index, k] += wave * share * (1 if k == 0 or 2 * k == columns else 2)
    found = power_spectrum(on(grid, field, "time"), latitudes=(-15, 60))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    southward = on(grid, field, "time").isel(latitude=slice(None, None, -1))
    np.testing.assert_allclose(power_spectrum(southward, latitudes=(-15, 60)), expected, rtol=1e-12, atol=1e-14)


def test_the_order_of_latitudes_does_not_matter() -> None:
    grid = Grid.named("36x19")
    field = on(grid, np.random.default_rng(3).normal(size=grid.shape))
    for kind in ("zonal", "spherical"):
        southward = power_spectrum(field.isel(latitude=slice(None, None, -1)), kind=kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(southward, power_spectrum(field, kind=kind), rtol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["zonal", "spherical"])
def test_a_constant_leaks_into_no_scale(kind: Any) -> None:
    found = power_spectrum(on(Grid.named("240x121"), np.array(5.5e4)), kind=kind)
    assert float(found[0]) == pytest.approx(5.5e4**2)
    assert float(found[1:].max()) < 1e-16


@pytest.mark.parametrize("kind", ["zonal", "spherical"])
def test_float32_fields_near_1e5_have_the_power_of_their_float64_values(kind: Any) -> None:
    grid = Grid.named("64x32")
    field = (np.random.default_rng(4).normal(size=grid.shape) * 50 + 101325).astype(np.float32)
    single = power_spectrum(on(grid, field), kind=kind)
    np.testing.assert_allclose(single, power_spectrum(on(grid, field.astype(float)), kind=kind), rtol=1e-12)
    shifted = power_spectrum(on(grid, field.astype(float) - 101325), kind=kind)
    np.testing.assert_allclose(single[1:], shifted[1:], rtol=1e-9)


def test_power_first_then_the_mean_of_members() -> None:
    grid = Grid.named("64x32")
    members = on(grid, np.random.default_rng(5).normal(size=(8, *grid.shape)), "number")
    for kind in ("zonal", "spherical"):
        found = power_spectrum(members, kind=kind)  # type: ignore[arg-type]
        assert found.dims == ("number", "wavenumber")
        blurred = power_spectrum(members.mean("number"), kind=kind)  # type: ignore[arg-type]
        assert float(blurred.sum() / found.mean("number").sum()) == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("kind", ["zonal", "spherical"])
def test_a_missing_value_makes_its_field_missing(kind: Any) -> None:
    grid = Grid.named("16x8")
    field = np.random.default_rng(6).normal(size=(3, *grid.shape))
    whole = power_spectrum(on(grid, field, "time"), kind=kind)
    field[1, 0, 3] = np.nan
    found = power_spectrum(on(grid, field, "time"), kind=kind)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], whole[[0, 2]], rtol=1e-12)
    assert np.isfinite(power_spectrum(on(grid, field, "time"), latitudes=(-60, 90))).all()
    field[1, 0, 3] = np.inf
    with pytest.raises(InputError, match="1 infinite values"):
        power_spectrum(on(grid, field, "time"), kind=kind)


@pytest.mark.parametrize("kind", ["zonal", "spherical"])
def test_dask_input_stays_lazy_and_gives_the_same_bits(kind: Any) -> None:
    grid = Grid.named("16x8")
    field = on(grid, np.random.default_rng(7).normal(size=(5, *grid.shape)), "time")
    lazy = power_spectrum(field.chunk(time=2, latitude=3), kind=kind)
    assert lazy.chunks is not None
    expected = power_spectrum(field, kind=kind)
    xr.testing.assert_allclose(lazy.compute(), expected, rtol=1e-13)
    for measure in MEASURES:
        found = measure(lazy, expected.mean("time"))
        assert found.chunks is not None
        xr.testing.assert_allclose(found.compute(), measure(expected, expected.mean("time")), rtol=1e-10)


def test_a_band_of_a_global_grid_and_plain_blocks_agree() -> None:
    grid = Grid.named("16x8")
    field = np.random.default_rng(8).normal(size=(2, 3, *grid.shape))
    inside = np.abs(grid.latitude) < 40
    band = Grid(grid.latitude[inside], grid.longitude)
    expected = power_spectrum(on(grid, field, "time", "number"), latitudes=(-40, 40))
    np.testing.assert_allclose(zonal_power(field, grid.areas[:, 0] * inside), expected, rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(on(band, field[:, :, inside], "time", "number")), expected, rtol=1e-12)
    assert spherical_power(field, grid).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("latitude", "longitude", "arguments", "message"),
    [
        (np.arange(40, 61.0), np.arange(-20, 15.0), {}, "does not go round the Earth"),
        (np.arange(40, 61.0), np.arange(-20, 15.0), {"kind": "spherical"}, "not a global grid"),
        (np.arange(-60, 61.0, 10), np.arange(0, 360.0, 10), {"kind": "spherical"}, "not a global grid"),
        (np.arange(-86, 91.0, 8), np.arange(0, 360.0, 10), {"kind": "spherical"}, "not a global grid"),
        (np.arange(-90, 91.0, 10), np.arange(0, 360.0, 10), {"kind": "spherical", "latitudes": (0, 90)}, "the whole sphere"),
        (np.arange(-90, 91.0, 10), np.arange(0, 360.0, 10), {"latitudes": (1, 9)}, "hold no row"),
        (np.arange(-90, 91.0, 10), np.arange(0, 360.0, 10), {"kind": "radial"}, "'radial' is not known"),
    ],
)
def test_what_a_grid_cannot_have_is_refused(
    latitude: np.ndarray, longitude: np.ndarray, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        power_spectrum(on(Grid(latitude, longitude), np.array(0.0)), **arguments)


def test_a_field_without_a_plane_is_refused() -> None:
    with pytest.raises(InputError, match="no dim latitude, longitude"):
        power_spectrum(xr.DataArray(np.zeros(4), dims="point"))


def test_comparisons_known_answers() -> None:
    forecast, truth = powers(4, 2, 1), powers(4, 3, 2)
    assert float(log_spectral_distance(forecast, truth)) == pytest.approx(2.013514, abs=1e-6)
    assert float(spectral_divergence(forecast, truth, wavenumbers=(0, 2))) == pytest.approx(0.037873, abs=1e-6)
    assert float(spectral_residual(forecast, truth, wavenumbers=(0, 2))) == pytest.approx(0.090722, abs=1e-6)
    assert float(spectral_variance_ratio(forecast, truth)) == pytest.approx(0.6)
    assert float(spectral_variance_ratio(forecast, truth, wavenumbers=(0, 2))) == pytest.approx(7 / 9)


def test_shapes_are_blind_to_amplitude_and_the_others_are_not() -> None:
    truth = powers(*np.random.default_rng(9).uniform(1, 2, size=41))
    for measure in (spectral_divergence, spectral_residual):
        np.testing.assert_allclose(measure(truth / 4, truth, wavenumbers=(0, 40)), 0, atol=1e-15)
    assert float(log_spectral_distance(truth / 4, truth)) == pytest.approx(10 * np.log10(4))
    assert float(spectral_variance_ratio(truth / 4, truth)) == pytest.approx(0.25)


def test_the_finest_tenth_is_compared_unless_said_otherwise() -> None:
    rng = np.random.default_rng(10)
    forecast, truth = (powers(*rng.uniform(1, 2, size=121)) for _ in range(2))
    for measure in (spectral_divergence, spectral_residual):
        found = measure(forecast, truth)
        assert found.attrs["wavenumbers"] == "108 to 120"
        assert int(found["kept"]) == 13
        assert float(found) == float(measure(forecast[108:], truth[108:], wavenumbers=(0, 999)))
    assert log_spectral_distance(forecast, truth).attrs["wavenumbers"] == "0 to 120"
    assert spectral_variance_ratio(forecast, truth).attrs["wavenumbers"] == "1 to 120"


def test_wavenumbers_without_power_are_left_out_and_missing_ones_decide() -> None:
    forecast, truth = powers(4, 0, 2, 1, 5), powers(4, 7, 3, 2, 0)
    kept = [0, 2, 3]
    for measure in MEASURES[:3]:
        found = measure(forecast, truth, wavenumbers=(0, 4))
        assert float(found) == pytest.approx(float(measure(forecast[kept], truth[kept], wavenumbers=(0, 4))))
        assert int(found["kept"]) == 3
        assert np.isnan(measure(forecast * 0, truth, wavenumbers=(0, 4)))
    for measure in MEASURES:
        assert np.isnan(measure(forecast.where(forecast != 1), truth, wavenumbers=(0, 4)))
        assert np.isnan(measure(forecast * np.nan, truth))
    assert np.isnan(spectral_variance_ratio(forecast, truth * 0))


def test_wrong_powers_are_named() -> None:
    truth = powers(4, 3, 2)
    for measure in MEASURES:
        with pytest.raises(InputError, match="the same in both"):
            measure(powers(4, 3), truth)
        with pytest.raises(InputError, match="a dim wavenumber"):
            measure(truth.rename(wavenumber="k"), truth)
        with pytest.raises(InputError, match="hold none"):
            measure(truth, truth, wavenumbers=(7, 9))
        with pytest.raises(InputError, match="the same in both"):
            measure(truth, truth.assign_coords(wavenumber=[1, 2, 3]))
    with pytest.raises(InputError, match="negative"):
        log_spectral_distance(-truth, truth)


def test_spectra_know_their_units_and_band() -> None:
    grid = Grid.named("16x8")
    found = power_spectrum(on(grid, np.array(1.0)), latitudes=(20, 90))
    expected = {"long_name": "zonal power by wavenumber", "units": "(m)^2", "kind": "zonal", "latitudes": "20 to 90"}
    assert found.attrs == expected
    assert log_spectral_distance(found, found).attrs["units"] == "dB"


def test_cell_areas_weight_the_rows() -> None:
    grid = Grid.named("16x7")
    field = on(grid, np.where(grid.latitude[:, None] == 0, 1.0, 0.0) * np.ones(16))
    share = area_weights(grid.latitude).values[3] / 7
    assert float(power_spectrum(field)[0]) == pytest.approx(share)
