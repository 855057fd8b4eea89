"""The boundary ring: its weights, its values on the edge, whose member it is, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import forecast
from data_pipeline.errors import InputError
from forecast.boundary import Boundary
from models.crps import CrpsGenerator
from tests.toys import REGION, network, spec_of, weather

EDGE = np.ones(REGION.shape, bool)
EDGE[1:-1, 1:-1] = False


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(REGION, steps=40)


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis))


@pytest.fixture(scope="module")
def times(analysis: xr.Dataset) -> np.ndarray:
    return analysis["time"].values[[10, 20]]


def test_weights_fall_linearly_from_the_edge_inward(analysis: xr.Dataset) -> None:
    weight = Boundary(analysis, 3).weight(REGION)
    assert weight.shape == REGION.shape
    np.testing.assert_allclose(weight[5], [1, 2 / 3, 1 / 3, 0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(weight[:, 5], [1, 2 / 3, 1 / 3, 0, 0, 0, 0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    assert (weight[EDGE] == 1).all()
    assert (Boundary(analysis, 1).weight(REGION) == EDGE).all()


def test_a_perfect_boundary_is_the_truth_on_the_edge_and_leaves_the_middle_of_the_first_step(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray
) -> None:
    free = forecast.sample(generator, analysis, times, days=2, members=2)
    held = forecast.sample(generator, analysis, times, days=2, members=2, boundary=Boundary(analysis, 3))
    truth = analysis.sel(time=held["valid_time"])
    for name in ("2m_temperature", "10m_v_component_of_wind"):
        expected = np.broadcast_to(truth[name].values[:, :, None], held[name].shape)
        np.testing.assert_allclose(held[name].values[..., EDGE], expected[..., EDGE], rtol=1e-5, atol=1e-4)
        middle = (..., slice(3, -3), slice(3, -3))
        np.testing.assert_array_equal(held[name].values[:, 0][middle], free[name].values[:, 0][middle])
        assert (held[name].values[:, 1:][middle] != free[name].values[:, 1:][middle]).any()  # the edge travels inward
    assert held.attrs["boundary"] == "perfect boundary (truth), 3 cells"
    assert free.attrs["boundary"] == "none"


def test_member_k_takes_the_host_member_k_counted_round(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray
) -> None:
    host = forecast.sample(generator, analysis, times, days=2, members=3, seed=77)
    ring = Boundary(host, 2, "global model")
    assert ring.name == "host forecast global model, 2 cells"
    made = forecast.sample(generator, analysis, times, days=1, members=7, boundary=ring)
    for k in range(7):
        np.testing.assert_allclose(
            made["2m_temperature"].values[:, :, k][..., EDGE],
            host["2m_temperature"].values[:, :2, k % 3][..., EDGE],
            rtol=1e-5,
        )  # fmt: skip


def test_members_stay_themselves_inside_a_ring(generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray) -> None:
    few, many = (
        forecast.sample(generator, analysis, times[:1], days=1, members=m, boundary=Boundary(analysis, 3)) for m in (3, 40)
    )
    assert few["2m_temperature"].values.tobytes() == many["2m_temperature"].sel(number=few["number"]).values.tobytes()


def test_a_global_model_has_no_edge() -> None:
    data = weather(steps=20)
    with pytest.raises(InputError, match="the checkpoint is global: it has no edge"):
        forecast.sample(network(spec_of(data)), data, data["time"].values[[5]], days=1, boundary=Boundary(data, 3))


def test_what_the_ring_lacks_is_said_before_anything_runs(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray
) -> None:
    def attempt(data: xr.Dataset, cells: int = 3) -> None:
        forecast.sample(generator, analysis, times, days=2, members=1, boundary=Boundary(data, cells))

    with pytest.raises(InputError, match="the boundary lacks 1 of the times asked for; use fewer days"):
        attempt(analysis.isel(time=slice(0, 24)))
    with pytest.raises(InputError, match="the boundary lacks geopotential_500"):
        attempt(analysis.drop_vars("geopotential"))
    with pytest.raises(InputError, match="the boundary is on 16x8 global"):
        attempt(weather(steps=40))
    with pytest.raises(InputError, match="ring of 0 cells"):
        attempt(analysis, 0)
    host = forecast.sample(generator, analysis, times[:1], days=1, members=1)
    with pytest.raises(InputError, match="the boundary lacks 3 of the times"):
        attempt(host)
