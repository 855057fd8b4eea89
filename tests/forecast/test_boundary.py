"""The boundary ring: its weights, its values from truth or a host forecast, what it refuses, and what the edge becomes."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import select
from forecast.boundary import PERFECT, Boundary
from forecast.plan import ForecastPlan, as_dataset
from forecast.rollout import sample
from models.contract import Spec
from tests.toys import GLOBE, REGION, network, spec_of, weather

STEP = np.timedelta64(12, "h")
INITS = np.datetime64("2001-01-05", "ns") + STEP * np.arange(3)
LEADS = STEP * np.arange(1, 5)


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(REGION, 60)


@pytest.fixture(scope="module")
def spec(analysis: xr.Dataset) -> Spec:
    return spec_of(analysis)


@pytest.fixture(scope="module")
def host(spec: Spec) -> xr.Dataset:
    """A host forecast of three members, with more leads and channels in another order than the model."""
    rng = np.random.default_rng(7)
    channels = tuple(reversed(spec.parsed_channels))
    leads = STEP * np.arange(1, 7)
    plan = ForecastPlan(INITS, leads, (1, 2, 3), channels, REGION)
    scale = np.array([spec.mean[::-1], spec.std[::-1]])[:, :, None, None]
    values = np.abs(scale[0] + scale[1] * rng.normal(size=(3, 6, 3, len(channels), *REGION.shape)))
    return as_dataset(plan, values.astype("f4"), INITS, leads)


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_weights_fall_linearly_from_the_edge(cells: int) -> None:
    weight = Boundary(xr.Dataset(), cells).weight(REGION)
    assert weight.dtype == np.float32
    rows, columns = REGION.shape
    for i in range(rows):
        for j in range(columns):
            inward = min(i, j, rows - 1 - i, columns - 1 - j)
            assert weight[i, j] == pytest.approx(max(0.0, 1 - inward / cells), abs=1e-7)


def test_truth_is_called_a_perfect_boundary(analysis: xr.Dataset, host: xr.Dataset) -> None:
    truth = Boundary(analysis, 2)
    assert not truth.is_forecast
    assert truth.name == "perfect boundary (truth), 2 cells"
    assert truth.name.startswith(PERFECT)
    other = Boundary(host, 4, "gefs")
    assert other.is_forecast
    assert other.name == "host forecast gefs, 4 cells"


def test_truth_at_the_ring_is_the_normalised_analysis(analysis: xr.Dataset, spec: Spec) -> None:
    edge = Boundary(analysis.chunk(time=8)).load(spec, INITS[1], LEADS)
    assert edge.shape == (4, 1, 4, *REGION.shape)
    assert edge.dtype == np.float32
    for k, lead in enumerate(LEADS):
        fields = np.stack([select(analysis, channel).sel(time=INITS[1] + lead).values for channel in spec.parsed_channels])
        np.testing.assert_array_equal(edge[k, 0], spec.normalise(fields))


def test_a_host_forecast_gives_its_own_members(host: xr.Dataset, spec: Spec) -> None:
    boundary = Boundary(host, host="gefs")
    boundary.check(spec, INITS, LEADS)
    edge = boundary.load(spec, INITS[2], LEADS)
    assert edge.shape == (4, 3, 4, *REGION.shape)
    for k, lead in enumerate(LEADS):
        for number in (1, 2, 3):
            chosen = host.sel(time=INITS[2], prediction_timedelta=lead, number=number)
            fields = np.stack([select(chosen, channel).values for channel in spec.parsed_channels])
            np.testing.assert_array_equal(edge[k, number - 1], spec.normalise(fields))


def test_members_are_counted_round_and_idle_rows_are_filled() -> None:
    boundary = Boundary(xr.Dataset())
    three, one = np.arange(3.0)[:, None] * np.ones((3, 2)), np.array([[5.0, 5.0]])
    np.testing.assert_array_equal(boundary.for_members(three, (1, 2, 3, 4, 5))[:, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(boundary.for_members(three, (9, 10, 11))[:, 0], [2, 0, 1])
    np.testing.assert_array_equal(boundary.for_members(one, (1, 2, 30)), np.full((3, 2), 5.0))


def test_a_global_model_has_no_edge() -> None:
    world = weather(GLOBE, 60)
    with pytest.raises(InputError, match="global: it has no edge"):
        Boundary(world).check(spec_of(world), INITS, LEADS)


def test_what_does_not_fit_is_refused(analysis: xr.Dataset, spec: Spec) -> None:
    with pytest.raises(InputError, match="ring of 0 cells"):
        Boundary(analysis, 0).check(spec, INITS, LEADS)
    shifted = weather(Grid(REGION.latitude + 1, REGION.longitude), 60)
    with pytest.raises(InputError, match=r"(?s)boundary is on .*latitude 37 to 46.*needs .*latitude 36 to 45"):
        Boundary(shifted).check(spec, INITS, LEADS)
    with pytest.raises(InputError, match=r"the boundary lacks 2m_temperature"):
        Boundary(analysis.drop_vars("2m_temperature")).check(spec, INITS, LEADS)


def test_missing_times_of_the_truth_are_counted(analysis: xr.Dataset, spec: Spec) -> None:
    Boundary(analysis).check(spec, INITS, LEADS)
    needed = np.unique(INITS[:, None] + LEADS[None, :])
    cut = analysis.sel(time=analysis["time"].values[analysis["time"].values < needed[-2]])
    with pytest.raises(InputError, match="lacks 2 of the times"):
        Boundary(cut).check(spec, INITS, LEADS)
    Boundary(analysis.sel(time=needed)).check(spec, INITS, LEADS)  # the initialisations themselves are not needed


def test_missing_times_of_a_host_are_counted(host: xr.Dataset, spec: Spec) -> None:
    for cut in (host.isel(time=[0, 2]), host.isel(prediction_timedelta=[0, 1, 3, 4])):
        with pytest.raises(InputError, match="lacks 1 of the times"):
            Boundary(cut, host="gefs").check(spec, INITS, LEADS)


def test_the_edge_of_a_forecast_is_the_truth(analysis: xr.Dataset, spec: Spec) -> None:
    made = sample(network(spec), analysis, INITS[:1], days=1, members=3, boundary=Boundary(analysis, 2))
    free = sample(network(spec), analysis, INITS[:1], days=1, members=3)
    assert made.attrs["boundary"] == "perfect boundary (truth), 2 cells"
    assert free.attrs["boundary"] == "none"
    edge = Boundary(analysis, 1).weight(REGION) == 1
    for lead in LEADS[:2]:
        truth = analysis["2m_temperature"].sel(time=INITS[0] + lead).values
        found = made["2m_temperature"].sel(time=INITS[0], prediction_timedelta=lead).values
        np.testing.assert_allclose(found[:, edge], np.broadcast_to(truth[edge], (3, edge.sum())), rtol=1e-6)
        alone = free["2m_temperature"].sel(time=INITS[0], prediction_timedelta=lead).values
        assert np.abs(alone[:, edge] - truth[edge]).mean() > 0.1
        assert found[:, ~edge].std(axis=0).min() > 0


def test_each_member_has_the_edge_of_its_host_member(analysis: xr.Dataset, spec: Spec, host: xr.Dataset) -> None:
    made = sample(network(spec), analysis, INITS[:1], days=1, members=5, boundary=Boundary(host, 1, "gefs"))
    edge = Boundary(host, 1).weight(REGION) == 1
    for row, number in enumerate((1, 2, 3, 1, 2)):
        found = made["2m_temperature"].isel(time=0, number=row).values[:, edge]
        theirs = host["2m_temperature"].isel(time=0, prediction_timedelta=slice(2)).sel(number=number).values[:, edge]
        np.testing.assert_allclose(found, theirs, rtol=1e-6)


def test_the_ring_leaves_the_middle_of_the_first_step_and_travels_inward_with_the_next(analysis: xr.Dataset, spec: Spec) -> None:
    made = network(spec)
    free = sample(made, analysis, INITS, days=1, members=2)
    held = sample(made, analysis, INITS, days=1, members=2, boundary=Boundary(analysis, 3))
    middle = (..., slice(3, -3), slice(3, -3))
    for name in ("2m_temperature", "10m_v_component_of_wind"):
        np.testing.assert_array_equal(held[name].values[:, 0][middle], free[name].values[:, 0][middle])
        assert (held[name].values[:, 1][middle] != free[name].values[:, 1][middle]).any()


def test_members_stay_themselves_inside_a_ring(analysis: xr.Dataset, spec: Spec) -> None:
    made = network(spec)
    few, many = (sample(made, analysis, INITS[:1], days=1, members=m, boundary=Boundary(analysis, 3)) for m in (3, 40))
    assert few["2m_temperature"].values.tobytes() == many["2m_temperature"].sel(number=few["number"]).values.tobytes()
