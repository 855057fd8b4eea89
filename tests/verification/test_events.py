"""Scores of events: known answers, brute force, peers, tables that add, ties, missing values, dask."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import properscoring
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from verification import brier, crps, economic_value, event_table, reliability, roc, rps, sedi

PEERS = "needs the extra peers: pip install plumecast[peers]"
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def drawn(size: int, cases: int = 400, seed: int = 0, decimals: int = 1) -> tuple[xr.DataArray, xr.DataArray]:
    """Rounded draws with a common signal: members, truth and thresholds tie often."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=cases)
    members = np.round(signal[:, None] + rng.normal(size=(cases, size)), decimals)
    truth = np.round(signal + rng.normal(size=cases), decimals)
    return xr.DataArray(members, dims=("case", "number"), attrs={"units": "K"}), xr.DataArray(truth, dims="case")


def table_of(events: Any, non_events: Any) -> xr.DataArray:
    """A plain table of merged sums: cases with and without the event by number of members."""
    return xr.DataArray(np.stack([non_events, events], axis=-1).astype(float), dims=("members_forecasting", "observed"))


def cases_of(table: xr.DataArray) -> list[tuple[int, int]]:
    """(members, outcome) of each case of a table of whole numbers."""
    return [(i, o) for (i, o), count in np.ndenumerate(table.values) for _ in range(int(count))]


def eight_cases() -> tuple[xr.DataArray, xr.DataArray]:
    counts, outcomes = [0, 1, 1, 2, 3, 4, 2, 1], [0, 0, 1, 1, 1, 1, 0, 0]
    members = [[1.0] * count + [0.0] * (4 - count) for count in counts]
    return xr.DataArray(members, dims=("case", "number")), xr.DataArray(np.array(outcomes, float), dims="case")


def test_brier_score_known_answers() -> None:
    fields = eight_cases()
    table = event_table(*fields, threshold=0.5, dim="case")
    plain, fair = brier(table, fair=False), brier(table)
    assert float(plain["brier"]) == pytest.approx(0.15625, abs=1e-12)
    assert float(fair["brier"]) == pytest.approx(0.104166666667, abs=1e-12)
    for name, value in {"reliability": 0.010416666667, "resolution": 0.104166666667, "uncertainty": 0.25}.items():
        assert float(plain[name]) == float(fair[name]) == pytest.approx(value, abs=1e-12), name
    cases = brier(*fields, threshold=0.5)
    np.testing.assert_allclose(cases, [0, 0, 0.5, 1 / 6, 0, 0, 1 / 6, 0], atol=1e-15)
    assert float(brier(*fields, threshold=0.5, fair=False).mean()) == pytest.approx(0.15625)


def test_roc_known_answer() -> None:
    found = roc(table_of([0, 1, 1, 1, 1], [1, 2, 1, 0, 0]))
    np.testing.assert_array_equal(found["members_required"], [5, 4, 3, 2, 1, 0])
    np.testing.assert_allclose(found["hit_rate"], [0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(found["false_alarm_rate"], [0, 0, 0, 0.25, 0.75, 1])
    assert float(found["auc"]) == pytest.approx(0.84375)


def test_economic_value_known_answers() -> None:
    # one member, so that H = 0.8, F = 0.2, base rate 0.3 is its only warning rule
    found = economic_value(table_of([60, 240], [560, 140]), cost_loss=[0.3, 0.1, 0.6])
    np.testing.assert_allclose(found["value"], [0.6, 0.028571428571, 0.1], atol=1e-12)
    np.testing.assert_array_equal(found["members_required"], 1)


@pytest.mark.parametrize(("hits", "alarms", "expected"), [(0.8, 0.2, 0.756471), (0.5, 0.05, 0.664161)])
def test_sedi_known_answers(hits: float, alarms: float, expected: float) -> None:
    found = sedi(table_of([1 - hits, hits], [19 * (1 - alarms), 19 * alarms]))
    assert found["members_required"].values.tolist() == [1]
    assert float(found[0]) == pytest.approx(expected, abs=1e-6)


def test_rps_known_answers() -> None:
    forecast, truth = xr.DataArray([2.0, 5, 3, 9], dims="number"), xr.DataArray(4.0)
    # between the thresholds 2 and 6 lie counts 1 and 3 of 4, and the truth
    assert float(rps(forecast, truth, thresholds=[2, 6], fair=False)) == pytest.approx(0.125)
    assert float(rps(forecast, truth, thresholds=[2, 6])) == 0
    assert float(rps(forecast, truth, thresholds=[0, 3, 6, 10], fair=False)) == pytest.approx(0.3125)


def test_consistency_bars_known_answer() -> None:
    found = reliability(table_of([0, 12, 0, 0, 0, 0], [0, 38, 0, 0, 0, 0]))
    np.testing.assert_allclose(found["consistency"][1], [0.12, 0.30])
    assert np.isnan(found["consistency"][0]).all()
    fewer = reliability(table_of([0, 240, 0, 0, 0, 0], [0, 760, 0, 0, 0, 0]), n_eff=50)
    np.testing.assert_allclose(fewer["consistency"][1], [0.12, 0.30])


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_tables_and_scores_equal_brute_force(size: int, op: Any) -> None:
    forecast, truth = drawn(size)
    weights = xr.DataArray(np.random.default_rng(1).uniform(size=truth.size), dims="case")
    expected, scores = np.zeros((size + 1, 2)), []
    for x, y, w in zip(forecast.values, truth.values, weights.values, strict=True):
        count, outcome = sum(OPERATORS[op](value, 0.5) for value in x), int(OPERATORS[op](y, 0.5))
        expected[count, outcome] += w
        p = count / size
        scores.append((p - outcome) ** 2 - (p * (1 - p) / (size - 1) if size > 1 else math.nan))
    table = event_table(forecast, truth, threshold=0.5, op=op, dim="case", weights=weights)
    np.testing.assert_allclose(table["weight"], expected, rtol=1e-12)
    assert int(table["cases"]) == truth.size
    np.testing.assert_allclose(brier(forecast, truth, threshold=0.5, op=op), scores, atol=1e-14)
    assert float(brier(table)["brier"]) == pytest.approx(np.average(scores, weights=weights), rel=1e-12, nan_ok=True)


def test_one_member_has_no_fair_score() -> None:
    forecast, truth = drawn(1)
    assert np.isnan(brier(forecast, truth, threshold=0.0)).all()
    assert np.isnan(rps(forecast, truth, thresholds=[0.0, 1.0])).all()
    table = event_table(forecast, truth, threshold=0.0, dim="case")
    assert np.isnan(brier(table)["brier"])
    np.testing.assert_allclose(
        brier(table, fair=False)["brier"], brier(forecast, truth, threshold=0.0, fair=False).mean(), rtol=1e-12
    )


tables = st.integers(1, 6).flatmap(lambda m: st.lists(st.integers(0, 9), min_size=2 * m + 2, max_size=2 * m + 2))


@settings(max_examples=60)
@given(tables)
def test_what_is_read_from_a_table_equals_its_cases_one_by_one(counts: list[int]) -> None:
    table = table_of(*np.array(counts).reshape(2, -1))
    members, cases = table.shape[0] - 1, cases_of(table)
    found = brier(table, fair=False)
    rebuilt = found["reliability"] - found["resolution"] + found["uncertainty"]
    if not cases:
        assert np.isnan(rebuilt)
        return
    assert float(rebuilt) == pytest.approx(float(found["brier"]), abs=1e-14)
    assert float(found["brier"]) == pytest.approx(np.mean([(i / members - o) ** 2 for i, o in cases]))
    events, others = [i for i, o in cases if o], [i for i, o in cases if not o]
    if not events or not others:
        assert np.isnan(roc(table)["auc"])
        assert np.isnan(economic_value(table)["value"]).all()
        return
    pairs = [(a > b) + (a == b) / 2 for a in events for b in others]
    assert float(roc(table)["auc"]) == pytest.approx(np.mean(pairs), abs=1e-13)
    base = len(events) / len(cases)
    for c in (0.07, 0.4, 0.9):
        expense = [
            np.mean([c if i >= j else float(o) for i, o in cases]) for j in range(members + 2)
        ]  # protect at cost c, or lose 1
        value = (min(c, base) - min(expense)) / (min(c, base) - base * c)
        best = economic_value(table, cost_loss=[c])
        assert float(best["value"][0]) == pytest.approx(value, abs=1e-12)
        assert expense[int(best["members_required"][0])] == pytest.approx(min(expense))


def test_sedi_is_undefined_where_a_rate_is_0_or_1() -> None:
    found = sedi(table_of([0, 1, 1, 1, 1], [1, 2, 1, 0, 0]))
    np.testing.assert_array_equal(np.isnan(found), [True, False, True, True])


def test_reliability_is_frequency_by_number_of_members() -> None:
    found = reliability(event_table(*eight_cases(), threshold=0.5, dim="case"), quantiles=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(found["forecast_probability"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found["observed_frequency"], [0, 1 / 3, 0.5, 1, 1])
    np.testing.assert_allclose(found["share"], np.array([1, 3, 2, 1, 1]) / 8)
    expected = [scipy.stats.binom.ppf([0.1, 0.5, 0.9], n, p) / n for n, p in zip([1, 3, 2, 1, 1], np.arange(5) / 4, strict=True)]
    np.testing.assert_allclose(found["consistency"], expected)
    assert np.isnan(reliability(table_of([0, 1], [0, 1]))["observed_frequency"][0])


def test_consistency_bars_cover_as_they_say() -> None:
    rng = np.random.default_rng(3)
    observed = rng.binomial(400, 0.3, size=2000)
    low, high = reliability(table_of([0, 0, 0, 120, *[0] * 7], [0, 0, 0, 280, *[0] * 7]))["consistency"][3].values
    assert np.mean((observed / 400 >= low) & (observed / 400 <= high)) == pytest.approx(0.9, abs=0.03)


def test_tables_of_two_halves_add_to_the_table_of_all() -> None:
    forecast, truth = drawn(7)
    halves = [event_table(forecast[part], truth[part], threshold=0.3, dim="case") for part in (slice(150), slice(150, None))]
    merged, whole = halves[0] + halves[1], event_table(forecast, truth, threshold=0.3, dim="case")
    xr.testing.assert_equal(merged, whole)


def test_tables_of_unequal_ensembles_do_not_add() -> None:
    small, large = (event_table(*drawn(size), threshold=0.3, dim="case") for size in (4, 5))
    with xr.set_options(arithmetic_join="inner"), pytest.raises(ValueError, match="members_forecasting"):
        small + large


def test_other_dims_stay_in_tables_and_in_what_is_read_from_them() -> None:
    rng = np.random.default_rng(4)
    forecast = xr.DataArray(rng.normal(size=(3, 6, 2, 50)), dims=("time", "number", "lead", "point"))
    truth = xr.DataArray(rng.normal(size=(3, 2, 50)), dims=("time", "lead", "point"))
    region = xr.DataArray(rng.integers(0, 2, size=(4, 50)), dims=("region", "point"))
    table = event_table(forecast, truth, threshold=0.4, dim=("time", "point"), weights=region)
    assert table["weight"].dims == ("lead", "region", "members_forecasting", "observed")
    assert table["cases"].dims == ("lead",)
    for lead in range(2):
        kept = region[2].values.astype(bool)
        one = {"lead": lead, "region": 2}
        alone = event_table(forecast[:, :, lead, kept], truth[:, lead, kept], threshold=0.4, dim=("time", "point"))
        np.testing.assert_array_equal(table["weight"].isel(one), alone["weight"])
        for function in (brier, roc, economic_value):
            xr.testing.assert_allclose(function(table).isel(one).drop_vars("cases"), function(alone["weight"]), rtol=1e-12)
        xr.testing.assert_allclose(sedi(table).isel(one).drop_vars("cases"), sedi(alone["weight"]), rtol=1e-12)
        xr.testing.assert_allclose(reliability(table["weight"]).isel(one), reliability(alone["weight"]), rtol=1e-12)


def test_thresholds_may_vary_by_place_and_have_a_dim_of_their_own() -> None:
    rng = np.random.default_rng(5)
    forecast = xr.DataArray(rng.normal(size=(9, 5, 40)), dims=("time", "number", "point"))
    truth = xr.DataArray(rng.normal(size=(9, 40)), dims=("time", "point"))
    limits = xr.DataArray(
        rng.normal(size=(2, 40)), dims=("quantile", "point"), coords={"quantile": [0.5, 0.9]}, name="climatology"
    )
    table = event_table(forecast, truth, threshold=limits, dim=("time", "point"))
    assert table["quantile"].values.tolist() == [0.5, 0.9]
    assert table.attrs["threshold"] == "climatology by quantile, point"
    expected = np.zeros((2, 6, 2))
    for q, t, p in np.ndindex(2, 9, 40):
        limit = float(limits[q, p])
        expected[q, int((forecast[t, :, p] > limit).sum()), int(truth[t, p] > limit)] += 1
    np.testing.assert_array_equal(table["weight"], expected)
    summed = rps(forecast, truth, thresholds=limits.rename(quantile="threshold"))
    single = [brier(forecast, truth, threshold=limits[k], op="<=") for k in range(2)]
    np.testing.assert_allclose(summed, single[0] + single[1], atol=1e-15)


def test_a_missing_threshold_drops_its_cases_under_every_policy() -> None:
    forecast, truth = drawn(5)
    limit = xr.full_like(truth, 0.2)
    limit[:100] = np.nan
    expected = event_table(forecast[100:], truth[100:], threshold=0.2, dim="case")
    for missing in ("propagate", "raise"):
        found = event_table(forecast, truth, threshold=limit, dim="case", missing=missing)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found["weight"], expected["weight"])
        assert int(found["cases"]) == 300
    assert np.isnan(brier(forecast, truth, threshold=limit)[:100]).all()


@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_a_missing_value_never_decides_a_comparison(op: Any) -> None:
    rows = [[2, 5, np.nan, 9], [2, 5, 3, 9], [np.nan] * 4, [2, 5, 3, 9], [np.nan, np.nan, np.nan, 9]]
    forecast = xr.DataArray(np.array(rows, float), dims=("case", "number"))
    truth = xr.DataArray([4.0, 4, 4, np.nan, 4], dims="case")
    np.testing.assert_array_equal(np.isnan(brier(forecast, truth, threshold=4.5, op=op)), [True, False, True, True, True])
    table = event_table(forecast, truth, threshold=4.5, op=op, dim="case")
    assert int(table["cases"]) == float(table["weight"].sum()) == 1
    omitted = brier(forecast, truth, threshold=4.5, op=op, missing="omit")
    three = xr.DataArray([2.0, 5, 9], dims="number")
    assert float(omitted[0]) == float(brier(three, xr.DataArray(4.0), threshold=4.5, op=op))
    np.testing.assert_array_equal(np.isnan(omitted), [False, False, True, True, True])
    with pytest.raises(InputError, match="1 cases without truth"):
        brier(forecast, truth, threshold=4.5, op=op, missing="raise")
    with pytest.raises(InputError, match="3 with a missing member"):
        brier(forecast, truth.fillna(4.0), threshold=4.5, op=op, missing="raise")


def test_omitting_is_refused_where_unequal_ensembles_do_not_add() -> None:
    fields = drawn(5)
    with pytest.raises(InputError, match="unequal size"):
        event_table(*fields, threshold=0.0, dim="case", missing="omit")
    with pytest.raises(InputError, match="mixes ensemble sizes"):
        brier(*fields, threshold=0.0, fair=False, missing="omit")
    with pytest.raises(InputError, match="mixes ensemble sizes"):
        rps(*fields, thresholds=[0.0], fair=False, missing="omit")


@pytest.mark.parametrize("where", ["forecast", "truth", "threshold"])
@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_values_are_an_error(where: str, sign: int) -> None:
    forecast, truth = drawn(5)
    arrays = {"forecast": forecast, "truth": truth, "threshold": xr.zeros_like(truth)}
    arrays[where][3] = sign * np.inf
    with pytest.raises(InputError, match=f"{where} holds .*infinite"):
        event_table(**arrays, dim="case")


def test_values_equal_in_print_tie_in_any_precision() -> None:
    for kinds in (("f4", "f4"), ("f4", "f8"), ("f8", "f4"), ("f8", "f8")):
        forecast = xr.DataArray(np.full((1, 3), 0.1, kinds[0]), dims=("case", "number"))
        truth = xr.DataArray(np.full(1, 0.1, kinds[1]), dims="case")
        for threshold in (0.1, xr.DataArray(0.1), xr.DataArray([0.1], dims="case")):
            table = event_table(forecast, truth, threshold=threshold, op="<=", dim="case")
            assert float(table["weight"][3, 1]) == 1


def test_float32_fields_near_1e5_score_as_their_float64_values() -> None:
    forecast, truth = drawn(50, decimals=3)
    forecast, truth = (forecast * 50 + 101325).astype(np.float32), (truth * 50 + 101325).astype(np.float32)
    for threshold in (101325.0, 101330.5):
        single = event_table(forecast, truth, threshold=threshold, dim="case")
        xr.testing.assert_identical(
            single, event_table(forecast.astype(float), truth.astype(float), threshold=threshold, dim="case")
        )


def test_dask_input_stays_lazy_and_gives_the_same_bits() -> None:
    rng = np.random.default_rng(6)
    forecast = xr.DataArray(rng.normal(size=(9, 5, 40)), dims=("time", "number", "point"))
    truth = xr.DataArray(rng.normal(size=(9, 40)), dims=("time", "point"))
    weights = xr.DataArray(np.ones((2, 40)), dims=("region", "point"))
    lazy, lazy_truth = forecast.chunk(time=4, number=2, point=17), truth.chunk(time=5)

    def table(f: xr.DataArray, t: xr.DataArray) -> xr.Dataset:
        return event_table(f, t, threshold=0.3, dim=("point",), weights=weights)

    functions = (
        table,
        lambda f, t: event_table(f, t, threshold=xr.DataArray([0.1, 0.3], dims="q"), dim=("time", "point")),
        lambda f, t: brier(f, t, threshold=0.3),
        lambda f, t: rps(f, t, thresholds=[0.0, 0.5]),
        *[lambda f, t, read=read: read(table(f, t)["weight"]) for read in (brier, reliability, roc, economic_value, sedi)],
    )
    for function in functions:
        result = function(lazy, lazy_truth)
        assert result.chunks
        xr.testing.assert_identical(result.compute(), function(forecast, truth))


def test_the_integral_over_thresholds_is_the_crps() -> None:
    forecast, truth = drawn(6, cases=20)
    edges = (np.arange(-80, 80) + 0.5) / 10  # between the rounded values: the sum is exact
    for fair, estimator in ((True, "fair"), (False, "ecdf")):
        total = rps(forecast, truth, thresholds=edges, fair=fair) / 10
        np.testing.assert_allclose(total, crps(forecast, truth, estimator=estimator), atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 50])
def test_brier_equals_properscoring_with_ties(size: int) -> None:
    forecast, truth = drawn(size)
    expected = properscoring.threshold_brier_score(truth.values, forecast.values, np.array([0.0, 0.5]))
    for column, threshold in enumerate((0.0, 0.5)):
        np.testing.assert_allclose(brier(forecast, truth, threshold=threshold, fair=False), expected[:, column], atol=1e-14)


@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_brier_equals_scores_with_ties(op: Any) -> None:
    probability = pytest.importorskip("scores.probability", reason=PEERS)
    forecast, truth = drawn(20)
    for fair in (True, False):
        expected = probability.brier_score_for_ensemble(
            forecast, truth, "number", 0.5, preserve_dims="all", fair_correction=fair, event_threshold_operator=OPERATORS[op]
        )
        found = brier(forecast, truth, threshold=0.5, op=op, fair=fair)
        np.testing.assert_allclose(found, expected.squeeze("threshold"), atol=1e-14)


def test_roc_area_equals_xskillscore() -> None:
    xskillscore = pytest.importorskip("xskillscore", reason=PEERS)
    forecast, truth = drawn(10, cases=4000)
    expected = xskillscore.roc((truth > 0.5).astype(float), (forecast > 0.5).mean("number"), bin_edges="continuous", dim="case")
    found = roc(event_table(forecast, truth, threshold=0.5, dim="case"))["auc"]
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, t: event_table(f, t, threshold=0.0, op="=", dim="case"), "op '=' is not known"),  # type: ignore[arg-type]
        (lambda f, t: event_table(f, t, threshold=0.0, dim="lead"), "lead"),
        (lambda f, t: event_table(f, t, threshold=0.0, dim="case", member_dim="realization"), "member dim 'realization'"),
        (lambda f, t: event_table(f, t, threshold=f, dim="case"), "threshold has the member dim"),
        (lambda f, t: event_table(f, t, threshold=t.assign_coords(case=range(1, 401)), dim="case"), "different coordinates"),
        (lambda f, t: event_table(f, t, threshold=0.0, dim="case", weights=t.assign_coords(case=range(1, 401))), "coordinates"),
        (lambda f, t: brier(f, t), "no threshold"),
        (lambda f, t: brier(f, threshold=0.0), "no truth"),  # type: ignore[call-overload]
        (lambda f, t: brier(f), "expected an event table"),
        (lambda f, t: roc(table_of([1], [1])), "M \\+ 1 counts"),
        (lambda f, t: reliability(table_of([1, 1], [1, 1]), quantiles=(5, 95)), "between 0 and 1"),
        (lambda f, t: economic_value(table_of([1, 1], [1, 1]), cost_loss=[0.0]), "both excluded"),
        (lambda f, t: rps(f, t, thresholds=[]), "at least one"),
        (lambda f, t: rps(f, t, thresholds=xr.DataArray([1.0], dims="edge")), "a dim 'threshold'"),
    ],
)
def test_a_wrong_argument_is_named(call: Any, message: str) -> None:
    forecast, truth = drawn(5)
    with pytest.raises(InputError, match=message):
        call(forecast.assign_coords(case=range(400)), truth.assign_coords(case=range(400)))


def test_scores_know_their_event_and_policy() -> None:
    forecast, truth = drawn(5)
    event = {"op": ">=", "threshold": "0.5", "members": 5, "missing": "propagate"}
    table = event_table(forecast, truth, threshold=0.5, op=">=", dim="case")
    assert table.attrs == event
    assert brier(forecast, truth, threshold=0.5, op=">=").attrs == {"long_name": "fair Brier score", "units": "1", **event}
    for function in (brier, reliability, roc, economic_value):
        found = function(table)
        assert found.attrs == event
        assert int(found["cases"]) == 400
        assert all(array.attrs["units"] == "1" for array in found.data_vars.values())
    assert rps(forecast, truth, thresholds=[0, 0.5]).attrs["threshold"] == "0.0, 0.5"
