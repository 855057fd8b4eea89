"""Quantile, interval and weighted interval score, EFI and SOT: known answers, definitions, peers, missing values, dask."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import integrate

from data_pipeline.errors import InputError
from tests.verification.ensembles import PEERS
from verification import crps, efi, interval_score, quantile_score, sot, wis


def point(value: float) -> xr.DataArray:
    return xr.DataArray([value], dims="case")


def quantiles(levels: Any, values: Any) -> xr.DataArray:
    """Quantiles (case, quantile) with their levels."""
    values = np.atleast_2d(np.asarray(values))
    return xr.DataArray(values, dims=("case", "quantile"), coords={"quantile": np.asarray(levels)}, attrs={"units": "mm"})


def members(values: Any) -> xr.DataArray:
    return xr.DataArray(np.atleast_2d(np.asarray(values)), dims=("case", "number"))


@pytest.mark.parametrize(("quantile", "truth", "expected"), [(3, 5, 1.8), (5, 3, 0.2), (4, 4, 0)])
def test_pinball_known_answers(quantile: float, truth: float, expected: float) -> None:
    found = quantile_score(quantiles([0.9], [float(quantile)]), point(truth))
    assert float(found[0, 0]) == pytest.approx(expected, abs=1e-12)
    assert found.attrs["units"] == "mm"


def test_each_quantile_is_scored_by_its_own_level() -> None:
    rng = np.random.default_rng(0)
    levels = np.array([0.9, 0.0, 0.5, 1.0])
    forecast, truth = quantiles(levels, rng.normal(size=(50, 4))), xr.DataArray(rng.normal(size=50), dims="case")
    found = quantile_score(forecast, truth)
    assert found.dims == forecast.dims
    q, y = forecast.values, truth.values[:, None]
    np.testing.assert_allclose(found, ((y < q) - levels) * (q - y), rtol=0, atol=1e-14)


def test_twice_the_mean_pinball_loss_of_many_levels_approaches_the_crps() -> None:
    ensemble = members([2.0, 5, 3, 9])
    levels = (np.arange(20000) + 0.5) / 20000
    steps = np.sort(ensemble.values[0])[np.ceil(levels * 4).astype(int) - 1]
    found = 2 * quantile_score(quantiles(levels, steps), point(4.0)).mean()
    assert float(found) == pytest.approx(float(crps(ensemble, point(4.0), estimator="ecdf")[0]), abs=1e-6)


def test_interval_score_known_answer() -> None:
    found = interval_score(point(2.0), point(6.0), point(7.0), alpha=0.1)
    assert float(found[0]) == pytest.approx(24, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.02, 0.5])
def test_interval_score_is_the_sum_of_two_pinball_losses(alpha: float) -> None:
    rng = np.random.default_rng(1)
    bounds, truth = np.sort(rng.normal(size=(200, 2))), xr.DataArray(rng.normal(size=200), dims="case")
    both = quantiles([alpha / 2, 1 - alpha / 2], bounds)
    lower, upper = (both.isel(quantile=index, drop=True) for index in (0, 1))
    pinballs = quantile_score(both, truth).sum("quantile")
    np.testing.assert_allclose(interval_score(lower, upper, truth, alpha=alpha), 2 / alpha * pinballs, rtol=1e-12)


def test_weighted_interval_score_known_answer_in_any_order() -> None:
    forecast = quantiles([0.5, 0.25, 0.75, 0.05, 0.95], [4.0, 3, 5, 2, 6])
    assert float(wis(forecast, point(7.0))[0]) == pytest.approx(2.08, abs=1e-12)
    assert float(wis(forecast[:, :1], point(7.0))[0]) == pytest.approx(3, abs=1e-12)
    single = forecast.assign_coords(quantile=forecast["quantile"].astype(np.float32))
    assert float(wis(single, point(7.0))[0]) == pytest.approx(2.08, abs=1e-6)


def test_weighted_interval_score_is_a_sum_over_intervals() -> None:
    rng = np.random.default_rng(2)
    levels = np.array([0.05, 0.2, 0.5, 0.8, 0.95])
    q, y = np.sort(rng.normal(size=(100, 5))), rng.normal(size=100)
    total = np.abs(y - q[:, 2]) / 2
    for low, alpha in ((0, 0.1), (1, 0.4)):
        lower, upper = q[:, low], q[:, 4 - low]
        total += alpha / 2 * (upper - lower) + np.maximum(lower - y, 0) + np.maximum(y - upper, 0)
    np.testing.assert_allclose(wis(quantiles(levels, q), xr.DataArray(y, dims="case")), total / 2.5, rtol=1e-12)


def test_interval_and_quantile_scores_agree_with_other_packages() -> None:
    scoringrules = pytest.importorskip("scoringrules", reason=PEERS)
    scores = pytest.importorskip("scores", reason=PEERS)
    rng = np.random.default_rng(3)
    q, truth = np.round(np.sort(rng.normal(size=(100, 3))), 1), xr.DataArray(np.round(rng.normal(size=100), 1), dims="case")
    forecast = quantiles([0.1, 0.5, 0.9], q)
    # not its numpy backend, which weights the median itself in place of its error
    peer = scoringrules.weighted_interval_score(truth.values, q[:, 1], q[:, :1], q[:, 2:], np.array([0.2]), backend="numba")
    np.testing.assert_allclose(wis(forecast, truth), peer, rtol=0, atol=1e-12)
    lower, upper = (forecast.isel(quantile=index, drop=True) for index in (0, 2))
    peer = scoringrules.interval_score(truth.values, q[:, 0], q[:, 2], 0.2, backend="numpy")
    np.testing.assert_allclose(interval_score(lower, upper, truth, alpha=0.2), peer, rtol=0, atol=1e-12)
    peer = scores.continuous.quantile_score(upper, truth, 0.9, preserve_dims="all")
    np.testing.assert_allclose(quantile_score(forecast, truth)[:, 2], peer, rtol=0, atol=1e-12)


def test_missing_quantiles_and_truths_follow_the_policy() -> None:
    forecast, truth = quantiles([0.1, 0.5, 0.9], [[1.0, 2, 3], [1, 2, np.nan], [1, 2, 3]]), [2.0, 2, np.nan]
    observed = xr.DataArray(truth, dims="case")
    lower, upper = forecast[:, 0].drop_vars("quantile"), forecast[:, 2].drop_vars("quantile")
    np.testing.assert_array_equal(np.isnan(wis(forecast, observed)), [False, True, True])
    for missing in ("propagate", "omit"):
        found = quantile_score(forecast, observed, missing=missing)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.isnan(found), [[0, 0, 0], [0, 0, 1], [1, 1, 1]])
        interval = interval_score(lower, upper, observed, alpha=0.2, missing=missing)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.isnan(interval), [False, True, True])
    with pytest.raises(InputError, match="would score different levels"):
        wis(forecast, observed, missing="omit")
    for score in (wis, quantile_score):
        with pytest.raises(InputError, match="quantiles holds 1"):
            score(forecast, observed, missing="raise")
        with pytest.raises(InputError, match="truth holds 1 infinite"):
            score(forecast, observed.fillna(np.inf))
    with pytest.raises(InputError, match="truth holds 1"):
        interval_score(lower, lower, observed, alpha=0.2, missing="raise")
    with pytest.raises(InputError, match="missing='skip'"):
        interval_score(lower, upper, observed, alpha=0.2, missing="skip")  # type: ignore[arg-type]


def test_quantiles_that_cannot_be_scored_are_refused() -> None:
    three = quantiles([0.1, 0.5, 0.9], [1.0, 2, 3])
    with pytest.raises(InputError, match="quantiles cross in 1 places"):
        wis(quantiles([0.1, 0.5, 0.9], [1.0, 3, 2]), point(2))
    with pytest.raises(InputError, match="lower lies above upper"):
        interval_score(point(3), point(2), point(2), alpha=0.1)
    with pytest.raises(InputError, match="alpha=10"):
        interval_score(point(1), point(2), point(2), alpha=10)
    for levels in ([0.1, 0.5, 0.8], [0.1, 0.2, 0.9]):
        with pytest.raises(InputError, match="expected the median and pairs"):
            wis(quantiles(levels, [1.0, 2, 3]), point(2))
    with pytest.raises(InputError, match="expected the median and pairs"):
        wis(three[:, ::2], point(2))
    for levels in ([10, 50, 90], [0.1, 0.1, 0.9], [0.1, np.nan, 0.9]):
        with pytest.raises(InputError, match="expected different levels between 0 and 1"):
            quantile_score(quantiles(levels, [1.0, 2, 3]), point(2))
    with pytest.raises(InputError, match="no coordinate 'quantile'"):
        quantile_score(three.drop_vars("quantile"), point(2))
    with pytest.raises(InputError, match="expected a dim 'level'"):
        quantile_score(three, point(2), quantile_dim="level")
    with pytest.raises(InputError, match="truth has the dim 'quantile'"):
        quantile_score(three, three)
    with pytest.raises(InputError, match="different coordinates"):
        quantile_score(three.assign_coords(case=[0]), point(2).assign_coords(case=[1]))


UNIFORM = quantiles(np.linspace(0, 1, 101), np.linspace(0, 100, 101))
DRY = quantiles([0, 0.3, 0.6, 0.8, 1], [0.0, 0, 0, 5, 20])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([20.0, 50, 90, 99], 0.263282955),
        ([101.0, 200], 1),
        ([-1.0, -200], -1),
        ([50.0, 50, 50], 0),
        ((np.arange(50) + 0.5) * 2, 0),
        ([25.0], 4 / np.pi * np.arcsin(0.5) - 1),
    ],
)
def test_efi_known_answers(values: Any, expected: float) -> None:
    found = efi(members(values), UNIFORM)
    assert float(found[0]) == pytest.approx(expected, abs=1e-9)
    assert found.dims == ("case",)


def test_efi_of_a_dry_forecast_in_a_dry_climate() -> None:
    assert float(efi(members([0.0, 0, 0]), DRY)[0]) == pytest.approx(-0.292171, abs=1e-6)


def test_efi_is_zero_for_the_climate_itself_dry_days_included() -> None:
    # 600 of 1000 members are dry, the others lie at the middles of equal steps of the climate's wet part
    wet = np.interp(0.6 + 0.4 * (np.arange(20000) + 0.5) / 20000, DRY["quantile"], DRY.values[0])
    values = np.concatenate([np.zeros(30000), wet])
    assert float(efi(members(values), DRY)[0]) == pytest.approx(0, abs=2e-6)


def by_definition(values: np.ndarray, levels: np.ndarray, climate: np.ndarray) -> float:
    """The integral over p, piece by piece between the steps of F, with p = sin(angle)^2 against the poles at its ends."""
    q = np.sort(np.interp(values, climate, levels, left=0, right=1))
    edges = np.arcsin(np.sqrt(np.concatenate([[0], q, [1]])))
    total = 0.0
    for below, (low, high) in enumerate(itertools.pairwise(edges)):
        total += integrate.quad(lambda angle, share=below / q.size: 2 * (np.sin(angle) ** 2 - share), low, high)[0]
    return 2 / np.pi * total


def test_efi_is_the_integral_over_the_climate_levels() -> None:
    rng = np.random.default_rng(4)
    levels = np.array([0, 0.01, 0.1, 0.4, 0.5, 0.9, 0.99, 1])
    climate = np.sort(rng.normal(size=(20, 8)))
    forecast = rng.normal(0.5, 1.5, size=(20, 11))
    forecast[:, 0], forecast[:, 1] = climate[:, 3], climate[:, 0]
    found = efi(members(forecast), quantiles(levels, climate))
    expected = [by_definition(x, levels, q) for x, q in zip(forecast, climate, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    backwards = quantiles(levels[::-1], climate[:, ::-1])
    np.testing.assert_array_equal(efi(members(forecast), backwards), found)


def test_efi_is_the_mean_over_members() -> None:
    values = np.random.default_rng(5).uniform(-20, 120, size=12)
    single = [float(efi(members([value]), UNIFORM)[0]) for value in values]
    assert float(efi(members(values), UNIFORM)[0]) == pytest.approx(np.mean(single), abs=1e-14)


def test_the_climate_broadcasts_over_leads_and_members_over_climates() -> None:
    rng = np.random.default_rng(6)
    forecast = xr.DataArray(rng.uniform(0, 100, size=(3, 5, 4)).astype(np.float32), dims=("lead", "number", "lat"))
    climate = xr.DataArray(
        np.sort(rng.uniform(0, 100, size=(4, 2, 6))),
        dims=("lat", "season", "quantile"),
        coords={"quantile": [0, 0.01, 0.1, 0.9, 0.99, 1]},
    )
    for score in (efi, sot, lambda f, c: sot(f, c, level=0.1)):
        found = score(forecast, climate).transpose("lead", "lat", "season")
        for lead, lat, season in np.ndindex(found.shape):
            alone = score(forecast[lead, :, lat], climate[lat, season])
            assert float(found[lead, lat, season]) == pytest.approx(float(alone), abs=1e-12)


CLIMATE = quantiles([0.01, 0.1, 0.5, 0.9, 0.99], [-4.0, -2, 0, 6, 10])


def test_sot_known_answers() -> None:
    # type 7: the 90 % quantile of 0, 4, 12, 12 and the 10 % quantile of -7, -7, 0 are 12 and -7
    assert float(sot(members([0.0, 4, 12, 12, 12]), CLIMATE)[0]) == pytest.approx(0.5)
    assert float(sot(members([-7.0, -7, -7, 0, 0]), CLIMATE, level=0.1)[0]) == pytest.approx(-3 / -2)
    assert float(sot(members([10.0]), CLIMATE)[0]) == 0


@pytest.mark.parametrize("size", [1, 2, 11, 50])
@pytest.mark.parametrize("level", [0.9, 0.1])
def test_sot_takes_the_type_7_quantile_of_the_members(size: int, level: float) -> None:
    values = np.random.default_rng(size).normal(size=(30, size))
    low, extreme = (6, 10) if level == 0.9 else (-2, -4)
    expected = (np.quantile(values, level, axis=1) - extreme) / (extreme - low)
    np.testing.assert_allclose(sot(members(values), CLIMATE.squeeze(drop=True), level=level), expected, rtol=0, atol=1e-12)


def test_sot_is_missing_where_the_climate_has_no_tail() -> None:
    assert np.isnan(sot(members([0.0, 1]), quantiles([0.9, 0.99], [0.0, 0]))).all()


def test_extremes_of_missing_members_follow_the_policy() -> None:
    values = [[10.0, 20, np.nan, 95], [np.nan] * 4, [10, 20, 30, 95]]
    climate = UNIFORM.squeeze("case", drop=True)
    holed = xr.concat([climate, climate, climate.where(climate["quantile"] != 0.9)], "case")
    for score in (efi, sot):
        np.testing.assert_array_equal(np.isnan(score(members(values), holed)), [True, True, True])
        omitted = score(members(values), holed, missing="omit")
        np.testing.assert_array_equal(np.isnan(omitted), [False, True, True])
        assert float(omitted[0]) == pytest.approx(float(score(members([10.0, 20, 95]), UNIFORM)[0]), abs=1e-14)
        with pytest.raises(InputError, match="forecast holds 5"):
            score(members(values), climate, missing="raise")
        with pytest.raises(InputError, match="forecast holds 1 infinite"):
            score(members([1.0, np.inf]), climate)


def test_climates_that_cannot_be_used_are_refused() -> None:
    forecast = members([1.0, 2])
    with pytest.raises(InputError, match="expected 0.99 and 0.9 among them"):
        sot(forecast, quantiles([0.5, 0.9, 0.98], [1.0, 2, 3]))
    with pytest.raises(InputError, match="expected 0.01 and 0.1 among them"):
        sot(forecast, quantiles([0.9, 0.99], [1.0, 2]), level=0.1)
    with pytest.raises(InputError, match="level=0.95"):
        sot(forecast, CLIMATE, level=0.95)
    for score in (efi, sot):
        with pytest.raises(InputError, match="climatology_quantiles cross in 1 places"):
            score(forecast, quantiles([0.01, 0.1, 0.9, 0.99], [0.0, 1, 6, 5]))
        with pytest.raises(InputError, match="has the member dim"):
            score(forecast, CLIMATE.expand_dims(number=2))
        with pytest.raises(InputError, match="expected a member dim 'realization'"):
            score(forecast, CLIMATE, member_dim="realization")


def test_float32_values_near_1e5_lose_nothing() -> None:
    rng = np.random.default_rng(7)
    climate = quantiles([0, 0.1, 0.5, 0.9, 0.99, 1], np.sort(rng.normal(101325, 50, size=(30, 6)))).astype(np.float32)
    forecast = members(rng.normal(101325, 50, size=(30, 20))).astype(np.float32)
    truth = forecast.isel(number=0)
    balanced = climate.isel(quantile=[1, 2, 3])
    for score, arrays in ((efi, (forecast, climate)), (sot, (forecast, climate)), (wis, (balanced, truth))):
        shifted = [array.astype(float) - 101325 for array in arrays]
        np.testing.assert_allclose(score(*arrays), score(*shifted), rtol=0, atol=1e-12)


def test_dask_input_stays_lazy_and_gives_the_same_scores() -> None:
    rng = np.random.default_rng(8)
    forecast, truth = members(rng.normal(size=(40, 9))), xr.DataArray(rng.normal(size=40), dims="case")
    climate = quantiles([0, 0.1, 0.5, 0.9, 0.99], np.sort(rng.normal(size=(40, 5))))
    three = climate.isel(quantile=[1, 2, 3])
    for function, arrays in (
        (efi, (forecast, climate)),
        (sot, (forecast, climate)),
        (wis, (three, truth)),
        (quantile_score, (three, truth)),
        (lambda low, y: interval_score(low, low + 1, y, alpha=0.1), (forecast[:, 0], truth)),
    ):
        lazy = [array.chunk({dim: 7 if dim == "case" else 2 for dim in array.dims}) for array in arrays]
        result = function(*lazy)  # type: ignore[operator]
        assert result.chunks is not None
        np.testing.assert_array_equal(result.compute(), function(*arrays))  # type: ignore[operator]
