"""Power spectra of fields, round the latitude circle or on the sphere, and how a forecast's power differs from the truth's.

Power first, then averages: the power of an ensemble mean is a smaller thing than the mean power of its members, and a forecast
that blurs looks right only in the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.casewise import apply_exact, units_of
from verification.scores import area_weights

BATCH = 4  # fields transformed together: what fits the second-level cache is 1.6 times faster than 16
Kind = Literal["zonal", "spherical"]
Band = Literal["finest", "waves", "all"]

PLANE = ("latitude", "longitude")
FINEST = 0.9  # of the largest wavenumber: above it the band that ChaosBench compares
CLOSED = 0.01  # degrees between the ends of a row that goes round the Earth, in float32 coordinates
SAME = 1e-3  # degrees between a latitude and where it should be, in float32 coordinates


def power_spectrum(field: xr.DataArray, *, kind: Kind = "zonal", latitudes: tuple[float, float] | None = None) -> xr.DataArray:
    """Power of a field by wavenumber, in its units squared: dims latitude and longitude replaced by `wavenumber`.

    - "zonal": the one-sided spectrum of each latitude circle of n points, S_0 = |F_0|^2, S_k = 2 |F_k|^2, S_(n/2) = |F_(n/2)|^2
      with F_k = sum f e^(-2 pi i k l / n) / n, averaged by area over the rows whose centres lie between latitudes = (south,
      north), default all. The sum over k = 0 .. n / 2 is the area mean of f^2 in that band.
    - "spherical": C_l, the sum over the orders of degree l of the squared coefficients of 4-pi-normalised harmonics. On a global
      grid of equally spaced rows, from pole to pole (Clenshaw and Curtis 1960) or half a cell from the poles (Fejer 1933), up to
      degree L = (min(nlat, nlon) - 1) // 2: exact for a field without degrees above L, and then the sum of C_l is the area mean
      of f^2. Degrees above L are not given; what a field has beyond nlat - 1 - l is aliased into l.

    field: (..., latitude, longitude) on a regular grid, in either order of latitude; other dims stay: average the power of
    members and times, not the field. The area mean is subtracted in float64 before the transform and returns as k = 0. A NaN in
    the rows used gives NaN for that field; infinite values are an InputError, as is a grid that does not go round the Earth or,
    for "spherical", is not global.
    """
    if kind not in ("zonal", "spherical"):
        raise InputError(f"power_spectrum: kind {kind!r} is not known; one of zonal, spherical")
    lacking = [name for name in PLANE if name not in field.indexes]
    if lacking:
        raise InputError(f"power_spectrum: no dim {', '.join(lacking)} with coordinates in the field, which has {field.dims}")
    grid = Grid(np.sort(field["latitude"].values), field["longitude"].values)
    attrs = {"long_name": f"{kind} power by wavenumber", "units": f"({units_of(field)})^2", "kind": kind}
    function: Any = zonal_power
    options: dict[str, Any] = {}
    if kind == "zonal":
        size = grid.longitude.size // 2 + 1
        options["row_weights"], attrs["latitudes"] = _row_weights(field, grid, latitudes)
    elif latitudes is not None:
        raise InputError("power_spectrum: harmonics need the whole sphere; latitudes=... belongs to kind='zonal'")
    else:
        _quadrature(grid)  # refuses a grid it does not fit before any work
        function, size, options["grid"] = spherical_power, _largest_degree(grid) + 1, grid
    power = apply_exact(
        function,
        field,
        input_core_dims=[PLANE],
        output_core_dims=[["wavenumber"]],
        sizes={"wavenumber": size},
        kwargs=options,
    )
    return power.assign_coords(wavenumber=np.arange(size)).rename("power").assign_attrs(attrs)


def spectral_divergence(
    forecast_power: xr.DataArray, truth_power: xr.DataArray, *, wavenumbers: tuple[float, float] | None = None
) -> xr.DataArray:
    """Divergence of the shapes of two power spectra (ChaosBench, Nathaniel et al. 2024), without units; 0 at best.

        SpecDiv = sum_k P'_o ln(P'_o / P'_f),   P' = P / sum_k P

    forecast_power, truth_power: (..., wavenumber), averaged already: scores of members or days do not average. wavenumbers: the
    first and the last one kept, default from 0.9 of the largest to the largest, the finest scales; the attribute `wavenumbers`
    states them. Shape alone: a forecast of half the amplitude scores 0, so show `spectral_variance_ratio` beside it. A wavenumber
    without power in either is left out, the coordinate `kept` counts the others; NaN gives NaN.
    """
    found = _compare(_divergence_block, forecast_power, truth_power, wavenumbers, "finest")
    return found.rename("spectral_divergence").assign_attrs(long_name="spectral divergence", units="1")


def spectral_residual(
    forecast_power: xr.DataArray, truth_power: xr.DataArray, *, wavenumbers: tuple[float, float] | None = None
) -> xr.DataArray:
    """Root-mean-square difference of the shapes of two power spectra (ChaosBench, Nathaniel et al. 2024); 0 at best.

        SpecRes = sqrt(mean_k (P'_f - P'_o)^2),   P' = P / sum_k P

    Everything else as for `spectral_divergence`.
    """
    found = _compare(_residual_block, forecast_power, truth_power, wavenumbers, "finest")
    return found.rename("spectral_residual").assign_attrs(long_name="spectral residual", units="1")


def log_spectral_distance(
    forecast_power: xr.DataArray, truth_power: xr.DataArray, *, wavenumbers: tuple[float, float] | None = None
) -> xr.DataArray:
    """Root-mean-square ratio of two power spectra in dB, shape and amplitude together; 0 at best.

        LSD = sqrt(mean_k (10 log10(P_f / P_o))^2)

    wavenumbers: default all. Everything else as for `spectral_divergence`.
    """
    found = _compare(_distance_block, forecast_power, truth_power, wavenumbers, "all")
    return found.rename("log_spectral_distance").assign_attrs(long_name="log spectral distance", units="dB")


def spectral_variance_ratio(
    forecast_power: xr.DataArray, truth_power: xr.DataArray, *, wavenumbers: tuple[float, float] | None = None
) -> xr.DataArray:
    """Power of the forecast summed over wavenumbers, divided by that of the truth: the target is 1, a blurred forecast has less.

    wavenumbers: the first and the last, default all but 0, which is the mean. NaN gives NaN, as does a truth without power.
    """
    forecast, truth, text = _band(forecast_power, truth_power, wavenumbers, "waves")
    sums = [power.sum("wavenumber", skipna=False) for power in (forecast, truth)]
    ratio = apply_exact(np.divide, sums[0], sums[1].where(sums[1] > 0))
    return ratio.rename("spectral_variance_ratio").assign_attrs(
        long_name="ratio of forecast to true variance", units="1", wavenumbers=text
    )


def zonal_power(block: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
    """Zonal power (..., k) of a block (..., latitude, longitude), averaged over rows; rows of weight 0 are not read."""
    rows = np.flatnonzero(row_weights)
    weights = row_weights[rows] / row_weights[rows].sum()
    columns = block.shape[-1]
    fields = block.reshape(-1, *block.shape[-2:])
    power = np.empty((len(fields), columns // 2 + 1))
    for first in range(0, len(fields), BATCH):
        some = slice(first, first + BATCH)
        anomaly, mean = _anomaly(fields[some][:, rows], weights)
        wave = np.fft.rfft(anomaly, norm="forward")
        wave[..., 0] += mean[:, None]
        squared = wave.real**2 + wave.imag**2
        # every wave but the mean and the shortest of an even number of points stands for two, one each way
        squared[..., 1 : (columns + 1) // 2] *= 2
        power[some] = weights @ squared
    return power.reshape(*block.shape[:-2], -1)


def spherical_power(block: np.ndarray, grid: Grid) -> np.ndarray:
    """Power C_l, l = 0 .. (min(nlat, nlon) - 1) // 2, of a block (..., latitude, longitude) on a global grid."""
    nodes, weights = _quadrature(grid)
    degrees = _largest_degree(grid) + 1
    fields = block.reshape(-1, *grid.shape)
    waves = np.empty((degrees, nodes.size, 2, len(fields)))  # order, latitude, real and imaginary
    means = np.empty(len(fields))
    for index, field in enumerate(fields):
        anomaly, means[index] = (part[0] for part in _anomaly(field[None], weights))
        wave = weights[:, None] * np.fft.rfft(anomaly, norm="forward")[:, :degrees]
        waves[:, :, 0, index], waves[:, :, 1, index] = wave.real.T, wave.imag.T
    columns = waves.reshape(degrees, nodes.size, -1)
    power = np.empty((len(fields), degrees))
    for degree, legendre in enumerate(_legendre(nodes, degrees)):
        coefficients = (legendre[:, None, :] @ columns[: degree + 1])[:, 0].reshape(degree + 1, 2, -1)
        if degree == 0:
            coefficients[0, 0] += means
        squared = (coefficients**2).sum(axis=1)
        power[:, degree] = squared[0] + 2 * squared[1:].sum(axis=0)
    return power.reshape(*block.shape[:-2], degrees)


def _anomaly(fields: np.ndarray, row_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields (n, latitude, longitude) in float64 without their means, and the means."""
    fields = fields.astype(np.float64)
    if np.isinf(fields).any():
        raise InputError(f"power_spectrum: {int(np.isinf(fields).sum())} infinite values in the fields; mask them at the source")
    means: np.ndarray = fields.mean(axis=-1) @ row_weights
    return fields - means[:, None, None], means


def _largest_degree(grid: Grid) -> int:
    return (min(grid.shape) - 1) // 2


def _row_weights(field: xr.DataArray, grid: Grid, latitudes: tuple[float, float] | None) -> tuple[np.ndarray, str]:
    """Areas of the rows of a band, 0 outside, in the order of the field; and the band in words."""
    if abs(grid.longitude_bounds[-1] - grid.longitude_bounds[0] - 360) > CLOSED:
        raise InputError(f"power_spectrum: {grid} does not go round the Earth; its rows have no zonal wavenumbers")
    weights = area_weights(field["latitude"]).values
    if latitudes is None:
        return weights, "all"
    south, north = latitudes
    inside = (field["latitude"].values >= south) & (field["latitude"].values <= north)
    if not inside.any():
        raise InputError(f"power_spectrum: latitudes={latitudes!r} (south, north) hold no row of {grid}")
    return weights * inside, f"{south:g} to {north:g}"


def _quadrature(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Sines of the latitudes and quadrature weights, of sum 1, exact for polynomials in the sine up to degree nlat - 1."""
    rows = grid.latitude.size
    spacing = np.pi / (rows - 1)
    colatitude, ends = spacing * np.arange(rows), True
    if abs(grid.latitude[0] + 90) > SAME:
        spacing = np.pi / rows
        colatitude, ends = spacing * (np.arange(rows) + 0.5), False
    if not grid.is_global or np.abs(grid.latitude - (np.rad2deg(colatitude) - 90)).max() > SAME:
        raise InputError(
            f"power_spectrum: {grid} is not a global grid of equal spacing with rows on the poles or half a cell from them; "
            "harmonics need one: regrid the field, or use kind='zonal'"
        )
    k = np.arange(1, (rows - 1) // 2 + 1)
    share = np.where(2 * k == rows - 1, 1.0, 2.0) if ends else np.full(k.size, 2.0)
    weights = (1 - np.cos(2 * np.outer(colatitude, k)) @ (share / (4 * k**2 - 1))) * spacing / np.pi
    if ends:
        weights[[0, -1]] /= 2
    return -np.cos(colatitude), weights


def _legendre(nodes: np.ndarray, degrees: int) -> Iterator[np.ndarray]:
    """Associated Legendre functions (order 0 .. l, node) of degree l = 0, 1, ..., of mean square 1 over the sphere's sines.

    By the recurrence from degree to degree (Holmes and Featherstone 2002), safe in float64 up to degree 1900.
    """
    cosines = np.sqrt((1 - nodes) * (1 + nodes))
    before, last = np.zeros((0, nodes.size)), np.ones((1, nodes.size))
    yield last
    for degree in range(1, degrees):
        m = np.arange(degree)[:, None]
        rise = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
        following = rise * nodes * last
        fall = np.sqrt((2 * degree + 1) * ((degree - 1) ** 2 - m[:-1] ** 2) / ((2 * degree - 3) * (degree**2 - m[:-1] ** 2)))
        following[:-1] -= fall * before
        sectoral = np.sqrt((2 * degree + 1) / (2 * degree)) * cosines * last[-1]
        before, last = last, np.concatenate([following, sectoral[None]])
        yield last


def _band(
    forecast_power: xr.DataArray, truth_power: xr.DataArray, wavenumbers: tuple[float, float] | None, default: Band
) -> tuple[xr.DataArray, xr.DataArray, str]:
    """Both powers at the wavenumbers kept, and these in words."""
    for name, power in (("forecast_power", forecast_power), ("truth_power", truth_power)):
        if "wavenumber" not in power.dims:
            raise InputError(f"{name} has dims {tuple(power.dims)}; expected a dim wavenumber, as power_spectrum makes it")
    k = forecast_power["wavenumber"].values
    if not np.array_equal(k, truth_power["wavenumber"].values):
        raise InputError(
            f"forecast_power has wavenumbers {k[0]:g} to {k[-1]:g}, truth_power others or not as many ({k.size}); "
            "expected the same in both, the powers of fields on one grid"
        )
    if wavenumbers is None:
        keep = {"finest": k >= FINEST * k.max(), "waves": k > 0, "all": k >= 0}[default]
    else:
        keep = (k >= wavenumbers[0]) & (k <= wavenumbers[1])
    if not keep.any():
        raise InputError(f"wavenumbers={wavenumbers!r} (first, last) hold none of the powers' {k.min():g} to {k.max():g}")
    kept = {"wavenumber": np.flatnonzero(keep)}
    return forecast_power.isel(kept), truth_power.isel(kept), f"{k[keep].min():g} to {k[keep].max():g}"


def _compare(
    function: Any,
    forecast_power: xr.DataArray,
    truth_power: xr.DataArray,
    wavenumbers: tuple[float, float] | None,
    default: Band,
) -> xr.DataArray:
    forecast, truth, text = _band(forecast_power, truth_power, wavenumbers, default)
    found = apply_exact(function, forecast, truth, input_core_dims=[["wavenumber"]] * 2)
    kept = ((forecast != 0) & (truth != 0)).sum("wavenumber")
    return found.assign_coords(kept=kept).assign_attrs(wavenumbers=text)


def _divergence_block(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    forecast, truth, there = _with_power(forecast, truth)
    forecast, truth = _shares(forecast, there), _shares(truth, there)
    total = np.where(there, truth * np.log(truth / forecast), 0).sum(axis=-1)
    return np.where(there.any(axis=-1), total, np.nan)


def _residual_block(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    forecast, truth, there = _with_power(forecast, truth)
    return _root_mean_square(_shares(forecast, there) - _shares(truth, there), there)


def _distance_block(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    forecast, truth, there = _with_power(forecast, truth)
    return _root_mean_square(10 * np.log10(forecast / truth), there)


def _with_power(forecast: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Powers, NaN where either is 0, and where neither is; a NaN that came in is there, and decides the score."""
    forecast, truth = np.broadcast_arrays(forecast.astype(np.float64), truth.astype(np.float64))
    for name, power in (("forecast_power", forecast), ("truth_power", truth)):
        if (power < 0).any():
            raise InputError(f"{name} holds {int((power < 0).sum())} negative values; expected power, the square of a field")
    there = (forecast != 0) & (truth != 0)
    return np.where(there, forecast, np.nan), np.where(there, truth, np.nan), there


def _shares(power: np.ndarray, there: np.ndarray) -> np.ndarray:
    return power / np.where(there, power, 0).sum(axis=-1, keepdims=True)


def _root_mean_square(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    count = there.sum(axis=-1)
    return np.sqrt(np.where(there, values**2, 0).sum(axis=-1) / np.where(count > 0, count, np.nan))
