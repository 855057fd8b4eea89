"""Scores of paired ensembles and observations: by hand, by brute force, against peers, reference and published values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import properscoring
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from verification import crps, rank_histogram, spread_skill
from verification.cases import score_cases
from verification.significance import resample_counts

HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
DAYS = np.datetime64("2007-01-01", "ns") + 24 * HOUR * np.arange(12)
FOUR_CASES = np.array([[2.0, 5, 3, 9], [1, 2, 4, 4], [0, 1, 3, 6], [2, 4, 6, 8]])
FOUR_TRUTHS = np.array([4.0, 0, 7, 4])
NAMES = ("crps", "crps_ecdf", "mae", "rmse", "bias", "spread", "ssr", "below", "above")


def pair(members: Any, truth: Any, **options: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """(time, number[, station]) and (time[, station])."""
    members, truth = np.asarray(members), np.asarray(truth)
    station = ("station",) if truth.ndim == 2 else ()
    return xr.DataArray(members, dims=("time", "number", *station), attrs={"units": "K"}), xr.DataArray(
        truth, dims=("time", *station)
    )


def drawn(size: int, times: int = 12, stations: int = 5, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    return pair(rng.normal(size=(times, size, stations)), rng.normal(size=(times, stations)))


def brute(members: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """All scores of complete cases (case, M), (case,) from their definitions."""
    M = members.shape[1]
    pairs = np.array([[[abs(a - b) for a in row] for b in row] for row in members])
    distance = np.array([np.mean([abs(x - y) for x in row]) for row, y in zip(members, truth, strict=True)])
    mean = np.array([sum(row) / M for row in members])
    variance = np.array([sum((x - m) ** 2 for x in row) / (M - 1) for row, m in zip(members, mean, strict=True)])
    mse = np.mean((mean - truth) ** 2)
    histogram = np.zeros(M + 1)
    for row, y in zip(members, truth, strict=True):
        low, ties = sum(x < y for x in row), sum(x == y for x in row)
        for rank in range(low, low + ties + 1):
            histogram[rank] += 1 / (ties + 1) / len(truth)
    return {
        "crps": np.mean(distance - pairs.sum(axis=(1, 2)) / (2 * M * (M - 1))),
        "crps_ecdf": np.mean(distance - pairs.sum(axis=(1, 2)) / (2 * M * M)),
        "mae": np.mean([abs(np.sort(row)[[(M - 1) // 2, M // 2]].mean() - y) for row, y in zip(members, truth, strict=True)]),
        "rmse": np.sqrt(mse), "bias": np.mean(mean - truth), "spread": np.sqrt(np.mean(variance)),
        "ssr": np.sqrt((M + 1) / M * np.mean(variance) / mse),
        "below": np.mean([y < min(row) for row, y in zip(members, truth, strict=True)]),
        "above": np.mean([y > max(row) for row, y in zip(members, truth, strict=True)]),
        "rank_histogram": histogram,
    }  # fmt: skip


def test_four_cases_by_hand() -> None:
    scores = score_cases(*pair(FOUR_CASES, FOUR_TRUTHS)).isel(place=0)
    expected = {"crps_ecdf": 1.71875, "rmse": 2.709935, "spread": 2.524876, "ssr": 1.041684, "bias": 0, "below": 0.25,
                "above": 0.25, "mae": 2.25, "n": 4, "inits": 4, "no_truth": 0, "no_member": 0}  # fmt: skip
    for name, value in expected.items():
        assert float(scores[name]) == pytest.approx(value, abs=1e-6), name
    np.testing.assert_allclose(scores["rank_histogram"], np.array([1, 0.5, 1.5, 0, 1]) / 4)
    assert scores["too_few"]
    assert scores["crps"].attrs == {"long_name": "fair CRPS", "units": "K"}
    assert scores["ssr"].attrs["units"] == "1"


@pytest.mark.parametrize("size", [2, 3, 50])
@pytest.mark.parametrize("offset", [0.0, 101325.0])
def test_every_score_is_its_definition_with_ties_and_gaps(size: int, offset: float) -> None:
    rng = np.random.default_rng(size)
    members = (np.round(np.maximum(rng.normal(size=(30, size, 3)), 0), 1) + offset).astype(np.float32)
    truth = (np.round(np.maximum(rng.normal(size=(30, 3)), 0), 1) + offset).astype(np.float32)
    members[2, 0, 1] = members[3, :, 2] = truth[4, 0] = truth[3, 2] = np.nan
    scores = score_cases(*pair(members, truth))
    complete = np.isfinite(members).all(axis=1) & np.isfinite(truth)
    for place in range(4):
        here = complete if place == 0 else complete & (np.arange(3) == place - 1)
        # the difference of two float32 values is exact in float64, so the definition may be computed near 0
        expected = brute(np.moveaxis(members, 1, -1)[here].astype(float) - offset, truth[here].astype(float) - offset)
        for name in (*NAMES, "rank_histogram"):
            np.testing.assert_allclose(scores[name][place], expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
        assert int(scores["n"][place]) == here.sum()
    assert (int(scores["no_truth"][0]), int(scores["no_member"][0])) == (2, 1)


@pytest.mark.parametrize("size", [2, 9, 50])
def test_it_agrees_with_properscoring_and_with_our_public_scores(size: int) -> None:
    forecast, truth = drawn(size)
    scores = score_cases(forecast, truth).isel(place=0)
    dims = ["time", "station"]
    peer = properscoring.crps_ensemble(truth.values, forecast.transpose("time", "station", "number").values).mean()
    assert float(scores["crps_ecdf"]) == pytest.approx(peer, abs=1e-13)
    assert float(scores["crps"]) == pytest.approx(float(crps(forecast, truth).mean()), abs=1e-13)
    for name in ("spread", "rmse", "ssr"):
        assert float(scores[name]) == pytest.approx(float(spread_skill(forecast, truth, dim=dims)[name]), abs=1e-13)
    np.testing.assert_allclose(scores["rank_histogram"], rank_histogram(forecast, truth, dim=dims), atol=1e-13)


def test_one_member_has_no_fair_score_and_no_spread() -> None:
    forecast, truth = drawn(1)
    scores = score_cases(forecast, truth)
    for name in ("crps", "spread", "ssr", "crps_lower", "spread_upper"):
        assert np.isnan(scores[name]).all(), name
    np.testing.assert_allclose(scores["crps_ecdf"], scores["mae"], rtol=1e-13)
    assert scores.sizes["rank"] == 2


@settings(max_examples=15)
@given(st.permutations(range(6)), st.floats(-1e3, 1e3))
def test_the_order_of_members_and_a_shift_of_both_change_nothing(order: list[int], shift: float) -> None:
    forecast, truth = drawn(6)
    scores, other = score_cases(forecast, truth, n_boot=2), score_cases(forecast[:, order] + shift, truth + shift, n_boot=2)
    for name in NAMES:
        np.testing.assert_allclose(other[name], scores[name], rtol=1e-9, atol=1e-9)


def test_any_order_of_dims_and_dask_give_the_same_scores() -> None:
    forecast, truth = drawn(7)
    expected = score_cases(forecast, truth)
    for dims in itertools.permutations(forecast.dims):
        xr.testing.assert_allclose(score_cases(forecast.transpose(*dims), truth.T), expected, rtol=1e-12)
    xr.testing.assert_identical(score_cases(forecast.chunk(time=5, number=3), truth.chunk(station=2)), expected)


def test_missing_values_are_left_out_or_refused_and_infinite_ones_always_refused() -> None:
    forecast, truth = drawn(4)
    holed, no_truth = forecast.copy(), truth.copy()
    holed[1, 2, 3] = no_truth[0, 0] = np.nan
    with pytest.raises(InputError, match="1 cases without truth, 1 with a missing member"):
        score_cases(holed, no_truth, missing="raise")
    with pytest.raises(InputError, match="mix ensemble sizes"):
        score_cases(holed, no_truth, missing="omit")
    for where in (forecast, truth):
        spoiled = where.copy()
        spoiled[0] = np.inf
        with pytest.raises(InputError, match="infinite"):
            score_cases(spoiled if where is forecast else forecast, spoiled if where is truth else truth)


def test_wrong_arguments_are_named() -> None:
    forecast, truth = drawn(4)
    for arguments, message in (({"n_boot": 0}, "n_boot=0"), ({"level": 95}, "level=95"), ({"member_dim": "model"}, "'model'")):
        with pytest.raises(InputError, match=message):
            score_cases(forecast, truth, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected \(time, number\[, station\]\)"):
        score_cases(forecast.rename(station="point"), truth.rename(station="point"))
    with pytest.raises(InputError, match="different units"):
        score_cases(forecast, truth.assign_attrs(units="degC"))
    with pytest.raises(InputError, match="different coordinates"):
        score_cases(forecast.assign_coords(station=range(5)), truth.assign_coords(station=range(1, 6)))


def test_regions_are_the_tables_own_or_boxes_and_pooled_is_the_mean_of_all_cases() -> None:
    forecast, truth = drawn(5)
    where = {"latitude": ("station", [50.0, 50, 0, 20, -50]), "longitude": ("station", [0.0, 355, 0, 110, 0])}
    boxed = score_cases(forecast, truth.assign_coords(where))
    kinds = dict(zip(boxed["place"].values, boxed["kind"].values, strict=True))
    assert [place for place, kind in kinds.items() if kind == "region"] == [
        "northern extratropics", "tropics", "southern extratropics", "Europe", "East Asia",
    ]  # fmt: skip
    n = dict(zip(boxed["place"].values, boxed["n"].values, strict=True))
    assert (n["all"], n["Europe"], n["northern extratropics"], n["tropics"]) == (60, 24, 36, 24), "20 N is in both"
    named = score_cases(forecast, truth.assign_coords(region=("station", ["b", "a", "b", "b", "a"])))
    assert named["place"].values.tolist() == ["all", "a", "b", "0", "1", "2", "3", "4"]
    score = dict(zip(named["place"].values, named["crps"].values, strict=True))
    assert score["a"] == pytest.approx((score["1"] + score["4"]) / 2, rel=1e-12)
    assert score["all"] == pytest.approx(np.mean([score[str(k)] for k in range(5)]), rel=1e-12)


@pytest.mark.parametrize("lead", [24, 72])
def test_intervals_are_quantiles_of_the_scores_of_resampled_initialisations(lead: int) -> None:
    forecast, truth = (array.assign_coords(time=DAYS) for array in drawn(4))
    scores = score_cases(forecast, truth, lead=lead * HOUR, n_boot=50, seed=3, level=0.8)
    assert scores.attrs["block"] == lead / 24
    counts = resample_counts(12, lead / 24, 50, np.random.default_rng(3)).astype(int)
    resampled = []
    for count in counts:
        days = np.repeat(np.arange(12), count)
        rows = np.moveaxis(forecast.values, 1, -1)[days]
        resampled.append(brute(rows.reshape(-1, 4), truth.values[days].ravel()))
    for name in (*NAMES, "rank_histogram"):
        values = np.array([drawn_scores[name] for drawn_scores in resampled])
        for side, tail in (("lower", 0.1), ("upper", 0.9)):
            expected = np.quantile(values, tail, axis=0)
            np.testing.assert_allclose(scores[f"{name}_{side}"][0], expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_many_places_are_resampled_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast, truth = drawn(4)
    expected = score_cases(forecast, truth)
    monkeypatch.setattr("verification.cases.RESAMPLED_BYTES", 1)
    xr.testing.assert_allclose(score_cases(forecast, truth), expected, rtol=1e-12)


def test_a_95_percent_interval_covers_the_expected_score_of_independent_days() -> None:
    scores = score_cases(*drawn(5, times=60, stations=500))
    alone = scores.isel(place=scores["kind"].values == "station")
    covered = (alone["crps_lower"] <= 1 / np.sqrt(np.pi)) & (alone["crps_upper"] >= 1 / np.sqrt(np.pi))
    assert 0.91 < float(covered.mean()) < 0.97


def test_one_initialisation_has_scores_and_no_interval() -> None:
    scores = score_cases(*drawn(4, times=1))
    assert np.isfinite(scores["crps"]).all()
    assert np.isnan(scores["crps_lower"]).all()
    assert scores["too_few"].all()


# real ensembles: the reference values come from other code (see the README beside the data) and from Fraley et al. (2007)

REFERENCE = {
    "ecmwf_ens_t2m_magdeburg_24h": (4454, 0.987950, 0.980240, 1.602896, 0.796779, 0.1033, 0.2595),
    "ecmwf_ens_t2m_magdeburg_48h": (4460, 1.053359, 1.041912, 1.762270, 1.176405, 0.0670, 0.1904),
    "gefs_reforecast_tmin_innsbruck": (2749, 8.549447, 8.509869, 9.804845, 1.108003, 0.0044, 0.9891),
    "gefs_reforecast_precip_innsbruck": (2749, 2.394279, 2.345765, 4.671861, 1.533737, 0.4358, 0.2601),
    "uwme_t2m_48h_pacific_northwest": (36826, 2.169621, 2.121517, 3.231117, 0.807302, 0.2771, 0.4640),
}


def real(path: Path) -> tuple[xr.DataArray, xr.DataArray]:
    data = xr.open_dataset(path)
    if "case" in data.dims:
        cases = data[["fc", "obs"]].assign_coords(time=data["time"], station=data["station"].astype(str))
        data = cases.set_index(case=["time", "station"]).unstack("case").rename(model="member")
    return data["fc"], data["obs"]


@pytest.mark.parametrize("name", REFERENCE)
def test_real_ensembles_have_their_reference_scores(name: str, shared_data: Callable[[str], Path]) -> None:
    forecast, truth = real(shared_data("ens-stations") / f"{name}.nc")
    scores = score_cases(forecast, truth, member_dim="member", n_boot=20).isel(place=0)
    n, *values = REFERENCE[name]
    assert int(scores["n"]) == n
    names = ("crps_ecdf", "crps", "rmse", "spread", "below", "above")
    for score, value, digits in zip(names, values, (6, 6, 6, 6, 4, 4), strict=True):
        assert round(float(scores[score]), digits) == value, score


@pytest.mark.parametrize(
    ("day", "n", "ecdf", "mae"), [("2004-01-29", 715, 1.945544, 2.164045), ("2004-01-31", 712, 1.590730, 1.929339)]
)
def test_the_published_scores_of_the_raw_pacific_northwest_ensemble(
    day: str, n: int, ecdf: float, mae: float, shared_data: Callable[[str], Path]
) -> None:
    forecast, truth = (array.sel(time=[day]) for array in real(shared_data("ens-stations") / "uwme_t2m_48h_pacific_northwest.nc"))
    scores = score_cases(forecast, truth, member_dim="member", n_boot=2).isel(place=0)
    assert int(scores["n"]) == n
    assert round(float(scores["crps_ecdf"]), 6) == ecdf
    assert round(float(scores["mae"]), 6) == mae
