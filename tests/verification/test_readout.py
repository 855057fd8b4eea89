"""What is read from a state is what the public functions say of the fields: regions, events, decomposition, spectra."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline import climatology as climatologies
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from tests.toys import UNITS, as_analysis
from verification import (
    acc,
    area_weights,
    brier,
    crps,
    crps_decomposition,
    event_intervals,
    event_table,
    fss,
    power_spectrum,
    quantile_score,
    readout,
    sedi,
    twcrps,
)
from verification import roc as roc_of
from verification.evaluate import evaluate
from verification.regions import LAND, REGIONS
from verification.significance import block_length
from verification.state import merge
from verification.timeseries import stationary_bootstrap

GRID = Grid.named("24x12")
DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
LEADS = DAY * np.arange(1, 4)
DIMS = ["time", "latitude", "longitude"]


def world() -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Forecast, truth with a land-sea mask, and a climatology with quantiles; some values missing, many zeros in the rain."""
    rng = np.random.default_rng(0)
    steps = 800
    fields = {
        "2m_temperature": 280 + 5 * rng.normal(size=(steps, *GRID.shape)),
        "total_precipitation_12hr": 1e-3 * np.maximum(rng.normal(size=(steps, *GRID.shape)), 0),
    }
    truth = as_analysis(fields, GRID)
    truth["land_sea_mask"] = (("latitude", "longitude"), rng.random(GRID.shape).astype("float32"), {"units": "1"})
    climate = climatologies.compute(
        truth, [Channel(name) for name in fields], ("2001-01-01", "2002-01-31"), quantiles=(0.1, 0.5, 0.9)
    )
    times = truth["time"].values[10:30:4]
    valid = xr.DataArray(times[:, None] + LEADS, dims=("time", "prediction_timedelta"))
    at_valid = truth[list(fields)].sel(time=valid).drop_vars("time").assign_coords(time=times, prediction_timedelta=LEADS)
    data = at_valid.expand_dims(number=np.arange(6)).transpose("time", "prediction_timedelta", "number", ...)
    noise = {"2m_temperature": 3.0, "total_precipitation_12hr": 5e-4}
    data = data.map(lambda field: field + (noise[field.name] * rng.normal(size=field.shape)).astype("float32"))
    data["total_precipitation_12hr"] = data["total_precipitation_12hr"].clip(min=0)
    data["2m_temperature"][1, 2, 3, 5, 6] = np.nan
    truth["2m_temperature"][16, 4, 4] = np.nan
    for name in fields:
        data[name].attrs["units"] = UNITS[name]
    return data.assign_attrs(model="noisy"), truth, climate


DATA, TRUTH, CLIMATE = world()
EVENTS = ["> q0.9", "< q0.1", "2m_temperature >= 285"]
OPTIONS = {
    "climatology": CLIMATE,
    "events": EVENTS,
    "radii": [800.0],
    "cases": [DATA["time"].values[2]],
    "points": {"here": (10.0, 100.0)},
}
STATE = evaluate(DATA, TRUTH, **OPTIONS)


def pair(name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """One variable of the ensemble and the truth at its valid times."""
    valid = DATA["time"] + DATA["prediction_timedelta"]
    return DATA[name], TRUTH[name].sel(time=valid).drop_vars("time").assign_coords(time=DATA["time"])


def climate_at(name: str, quantile: float | None = None) -> xr.DataArray:
    valid = DATA["time"] + DATA["prediction_timedelta"]
    picked = climatologies.select(CLIMATE, valid)
    return picked[name] if quantile is None else picked[f"{name}_quantile"].sel(quantile=quantile, drop=True)


def weights_of(region: str) -> xr.DataArray:
    weights, box, land = area_weights(GRID), REGIONS[region], TRUTH["land_sea_mask"] >= LAND
    inside = (weights["latitude"] > box.south) & (weights["latitude"] < box.north)
    inside = inside & ((weights["longitude"] - box.west) % 360 < box.east - box.west)
    if box.surface:
        inside = inside & (land if box.surface == "land" else ~land)
    return weights.where(inside, 0.0).drop_vars("quantile", errors="ignore")


@pytest.mark.parametrize("region", ["global", "Europe", "land", "northern extratropics, sea", "Arctic"])
def test_every_region_has_the_scores_of_its_points(region: str) -> None:
    table, weights = readout.scores_table(STATE, region), weights_of(region)
    for name in ("2m_temperature", "total_precipitation_12hr"):
        forecast, truth = pair(name)
        score = crps(forecast, truth)
        expected = (score.fillna(0) * weights).sum(DIMS) / (score.notnull() * weights).sum(DIMS)
        np.testing.assert_allclose(table["crps"].sel(channel=name), expected, rtol=1e-12)
        pooled = acc(forecast, truth, climatology=climate_at(name), dim=DIMS, weights=weights)
        np.testing.assert_allclose(table["acc"].sel(channel=name), pooled, rtol=1e-9)
        each = acc(forecast, truth, climatology=climate_at(name), dim=DIMS[1:], weights=weights).mean("time")
        np.testing.assert_allclose(table["acc_mean"].sel(channel=name), each, rtol=1e-9)
    assert ("rank_histogram" in table) == (region not in ("Europe", "Arctic"))


@pytest.mark.parametrize("region", ["global", "tropics", "northern extratropics, sea"])
def test_events_are_those_of_the_public_functions(region: str) -> None:
    scores, weights = readout.event_scores(STATE, region), weights_of(region)
    for label, op, quantile in (("> q0.9", ">", 0.9), ("< q0.1", "<", 0.1)):
        for name in ("2m_temperature", "total_precipitation_12hr"):
            forecast, truth = pair(name)
            threshold = climate_at(name, quantile)
            table = event_table(forecast, truth, threshold=threshold, op=op, dim=DIMS, weights=weights)  # type: ignore[arg-type]
            found = scores.sel(channel=name, event=label)
            np.testing.assert_allclose(found["brier"], brier(table)["brier"], rtol=1e-10)
            parts = brier(table, fair=False)
            for ours, theirs in (("brier_ecdf", "brier"), ("reliability",) * 2, ("resolution",) * 2, ("uncertainty",) * 2):
                np.testing.assert_allclose(found[ours], parts[theirs], rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(found["auc"], roc_of(table)["auc"], rtol=1e-12)
            np.testing.assert_allclose(found["sedi"], sedi(table).sel(members_required=3), rtol=1e-10)
            clip = {"lower": threshold} if op == ">" else {"upper": threshold}
            tail = twcrps(forecast, truth, **clip)
            mean = (tail.fillna(0) * weights).sum(DIMS) / (tail.notnull() * weights).sum(DIMS)
            np.testing.assert_allclose(found["twcrps"], mean, rtol=1e-10)
    assert np.isnan(scores["brier"].sel(channel="total_precipitation_12hr", event="2m_temperature >= 285")).all()
    assert np.isfinite(scores["brier"].sel(channel="2m_temperature", event="2m_temperature >= 285")).all()


def test_the_decomposition_is_that_of_the_fields_up_to_the_bins_of_the_truth() -> None:
    found = readout.decomposition(STATE)
    for name in ("2m_temperature", "total_precipitation_12hr"):
        expected = crps_decomposition(*pair(name), dim=DIMS, weights=area_weights(GRID))
        for part in ("crps", "reliability", "potential"):
            np.testing.assert_allclose(found[part].sel(channel=name), expected[part], rtol=1e-11)
        shortfall = 1 - found["uncertainty"].sel(channel=name) / expected["uncertainty"]
        assert ((shortfall > -1e-12) & (shortfall < 0.01)).all()


def test_quantiles_neighbourhoods_and_spectra() -> None:
    forecast, truth = pair("2m_temperature")
    cases = crps(forecast, truth).notnull()
    quantiles = forecast.astype(float).quantile([0.1, 0.5, 0.9], dim="number", skipna=False)
    pinball = (quantile_score(quantiles, truth).fillna(0) * area_weights(GRID)).sum(DIMS) / (cases * area_weights(GRID)).sum(DIMS)
    found = readout.quantile_scores(STATE).sel(channel="2m_temperature").transpose("prediction_timedelta", "quantile")
    np.testing.assert_allclose(found, pinball.transpose("prediction_timedelta", "quantile"), rtol=1e-10)
    rain, observed = pair("total_precipitation_12hr")
    share = fss(
        rain, observed, threshold=climate_at("total_precipitation_12hr", 0.9), radius_km=800, dim=DIMS, weights=area_weights(GRID)
    )
    ours = readout.fss(STATE).sel(channel="total_precipitation_12hr", event="> q0.9", radius=800)
    np.testing.assert_allclose(ours, share, rtol=1e-10)
    power = readout.spectra(STATE).sel(channel="total_precipitation_12hr", belt="20N-90N")
    expected = power_spectrum(rain, latitudes=(20, 90)).mean(["number", "time"])
    np.testing.assert_allclose(power["forecast_power"], expected.transpose("prediction_timedelta", "wavenumber"), rtol=1e-9)
    of_mean = power_spectrum(rain.astype(float).mean("number"), latitudes=(20, 90)).mean("time")
    np.testing.assert_allclose(power["mean_power"], of_mean.transpose("prediction_timedelta", "wavenumber"), rtol=1e-9)
    assert (power["mean_power"] < power["forecast_power"]).isel(wavenumber=slice(1, None)).all()
    np.testing.assert_allclose(power["mean_ratio"], power["mean_power"] / power["truth_power"], rtol=1e-12)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("old", [0, 1])
def test_states_of_before_and_after_the_power_of_the_mean_add(order: tuple[int, int], old: int) -> None:
    parts = [STATE.isel(time=[0, 1]).drop_dims("case_time"), STATE.isel(time=[2, 3]).drop_dims("case_time")]
    parts[old] = parts[old].drop_vars("mean_power")
    whole = merge([parts[index] for index in order])
    assert "mean_power" not in whole
    np.testing.assert_array_equal(whole["forecast_power"], STATE["forecast_power"].isel(time=slice(4)))
    assert "mean_power" not in readout.spectra(whole)


def test_a_case_keeps_its_fields_and_plumes() -> None:
    time = DATA["time"].values[2]
    own = STATE.sel(case_time=time, channel="2m_temperature")
    members, observed = (array.sel(time=time) for array in pair("2m_temperature"))
    np.testing.assert_array_equal(own["case_truth"], observed)
    np.testing.assert_allclose(own["case_mean"], members.mean("number"), rtol=1e-6)
    np.testing.assert_allclose(own["case_spread"], members.astype(float).std("number", ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(own["case_members"], members.isel(number=slice(4)))
    happened = (members > climate_at("2m_temperature", 0.9).sel(time=time)).mean("number")
    np.testing.assert_allclose(own["case_probability"].sel(event="> q0.9"), happened, rtol=1e-6)
    for name, fields in (("case_plume", members), ("case_plume_truth", observed)):
        there = fields.sel(latitude=10.0, longitude=100.0, method="nearest")
        np.testing.assert_array_equal(own[name].sel(point="here"), there)


def test_a_size_is_what_so_many_members_would_score() -> None:
    table = readout.scores_table(STATE, size=3)
    score = crps(*pair("total_precipitation_12hr"), estimator="size", size=3).weighted(area_weights(GRID)).mean(DIMS)
    np.testing.assert_allclose(table["crps"].sel(channel="total_precipitation_12hr"), score, rtol=1e-12)
    small = evaluate(DATA.isel(number=slice(2)), TRUTH, climatology=CLIMATE, events=[])
    reference = readout.skill(STATE, small, size=3)["crps_reference"].sel(channel="total_precipitation_12hr")
    expected = readout.scores_table(small, size=3)["crps"].sel(channel="total_precipitation_12hr")
    np.testing.assert_allclose(reference, expected, rtol=1e-12)


def test_tables_are_refused_for_regions_that_zones_do_not_make_up() -> None:
    with pytest.raises(InputError, match="ranks, events and spectra are not kept for 'Europe', only for global, northern"):
        readout.event_scores(STATE, "Europe")
    plain = evaluate(DATA, TRUTH)
    with pytest.raises(InputError, match="has no event_table: nothing was asked to fill it"):
        readout.event_table(plain)
    assert "acc" not in readout.scores_table(plain)


def test_a_sample_scored_by_its_own_bins() -> None:
    # each value its own bin: the CRPS of a sample by its own distribution is half its mean absolute difference
    values = np.array([0.0, 1.0, 1.0, 4.0])
    expected = np.abs(values[:, None] - values[None]).mean() / 2
    weight, total = np.array([1.0, 0, 2, 0, 1]), np.array([0.0, 0, 2, 0, 4])
    assert readout.binned_crps(weight, total) == pytest.approx(expected)
    assert np.isnan(readout.binned_crps(np.zeros(3), np.zeros(3)))


def test_limits_of_events_are_those_of_resampled_initialisations() -> None:
    limits = event_intervals(STATE, n_boot=40, leads=[LEADS[1]])
    assert limits.sizes["prediction_timedelta"] == 1
    rng = np.random.default_rng([0, 1])
    steps = block_length(STATE["time"].values, LEADS[1])
    rows = [
        readout.event_scores(STATE.isel(time=index))["twcrps"].sel(channel="2m_temperature", event="> q0.9")[1]
        for index in stationary_bootstrap(STATE.sizes["time"], steps, 40, rng)
    ]
    found = [limits[f"twcrps_{side}"].sel(channel="2m_temperature", event="> q0.9").item() for side in ("lower", "upper")]
    np.testing.assert_allclose(found, np.quantile(rows, [0.025, 0.975]), rtol=1e-9)
    one = event_intervals(STATE.isel(time=[0]), n_boot=10)
    assert np.isnan(one["brier_lower"]).all()


def test_a_gap_leaves_a_belt_without_spectrum_and_does_not_count() -> None:
    holed = TRUTH.copy(deep=True)
    name, belt = "total_precipitation_12hr", "20N-90N"
    row = int(np.flatnonzero(GRID.latitude > 20)[0])
    holed[name][{"time": 12, "latitude": row, "longitude": 3}] = np.nan
    power = readout.spectra(evaluate(DATA, holed)).sel(channel=name, belt=belt)
    assert power["n"].values.tolist() == [4, 5, 5]
    rain = DATA[name].isel(time=slice(1, None))
    expected = power_spectrum(rain, latitudes=(20, 90)).mean(["number", "time"]).isel(prediction_timedelta=0)
    np.testing.assert_allclose(power["forecast_power"].isel(drawn_lead=0), expected, rtol=1e-9)
    holed[name][{"latitude": row, "longitude": 3}] = np.nan
    assert np.isnan(readout.spectra(evaluate(DATA, holed)).sel(channel=name, belt=belt)["ratio"]).all()


def test_ranks_gather_in_bins_of_one_size() -> None:
    shares = xr.DataArray([[0.1, 0.2, 0.3, 0.1, 0.1, 0.2], [1 / 6] * 6], dims=("channel", "rank"))
    np.testing.assert_allclose(readout.binned_ranks(shares, 3), [[0.9, 1.2, 0.9], [1, 1, 1]], rtol=1e-15)
    np.testing.assert_allclose(readout.binned_ranks(shares, 6), 6 * shares, rtol=1e-15)
    np.testing.assert_allclose(readout.binned_ranks(readout.scores_table(STATE)["rank_histogram"], 1), 1, rtol=1e-12)
    gap = shares.where(shares["rank"] != 1)
    assert np.isnan(readout.binned_ranks(gap, 2)).values.tolist() == [[True, False]] * 2
    with pytest.raises(InputError, match="6 ranks do not fill 4 bins"):
        readout.binned_ranks(shares, 4)


def test_skill_is_over_identical_points_not_over_equal_weights() -> None:
    data, other = DATA.copy(deep=True), DATA.copy(deep=True)
    for which, column in ((data, 3), (other, 9)):
        which["total_precipitation_12hr"][{"time": 0, "latitude": 5, "longitude": column}] = np.nan
    ours, theirs = evaluate(data, TRUTH), evaluate(other.assign_attrs(model="other"), TRUTH)
    n = readout.skill(ours, theirs)["n"].sel(channel="total_precipitation_12hr")
    assert n.values.tolist() == [4, 4, 4]
    assert (readout.skill(ours, ours)["n"].sel(channel="total_precipitation_12hr") == 5).all()


def test_no_ensemble_has_less_than_one_member() -> None:
    for size in (0, 0.5, -3, float("nan")):
        with pytest.raises(InputError, match="expected at least 1 member"):
            readout.scores_table(STATE, size=size)
