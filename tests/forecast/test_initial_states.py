"""Input frames against direct selection; everything that is missing in one message; dates spread over windows with gaps."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import select, stack
from forecast.initial_states import InitialStates, check_inputs, frame_times, one_analysis, spread_evenly
from models.contract import Spec
from tests.toys import GLOBE, ensemble_of, period, spec_of, weather

START, STEP = np.datetime64("2001-01-01", "ns"), np.timedelta64(12, "h")


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(GLOBE, 60)


@pytest.fixture(scope="module")
def spec(analysis: xr.Dataset) -> Spec:
    return spec_of(analysis, frames=3)


def without(analysis: xr.Dataset, *gone: int) -> xr.Dataset:
    return analysis.isel(time=[i for i in range(analysis.sizes["time"]) if i not in gone])


def test_frames_end_at_the_initialisation(spec: Spec) -> None:
    expected = np.array(["2001-02-28T12", "2001-03-01T00", "2001-03-01T12"], "datetime64[ns]")
    np.testing.assert_array_equal(frame_times(spec, np.datetime64("2001-03-01T12", "h")), expected)


def test_frames_are_the_normalised_analyses_oldest_first(analysis: xr.Dataset, spec: Spec) -> None:
    frames = one_analysis(analysis, spec, START + 9 * STEP)
    assert frames.shape == (3, 4, *GLOBE.shape)
    assert frames.dtype == np.float32
    for row, i in enumerate((7, 8, 9)):
        for column, channel in enumerate(spec.parsed_channels):
            physical = select(analysis, channel).values[i].astype("f8")
            if channel.name == "total_precipitation_12hr":
                physical = np.log1p(physical * 1000)
            expected = (physical - spec.mean[column]) / spec.std[column]
            np.testing.assert_allclose(frames[row, column], expected, rtol=1e-5, atol=1e-5)


def test_fields_are_read_at_any_stamps_in_physical_units(analysis: xr.Dataset, spec: Spec) -> None:
    fields = stack(analysis.chunk(time=7).isel(time=[30, 2]), spec.parsed_channels).values
    for column, channel in enumerate(spec.parsed_channels):
        np.testing.assert_array_equal(fields[:, column], select(analysis, channel).values[[30, 2]])


def test_what_fits_passes(analysis: xr.Dataset, spec: Spec) -> None:
    check_inputs(analysis, spec, [START + 2 * STEP, START + 59 * STEP])
    check_inputs(without(analysis, 10), spec, [START + 9 * STEP, START + 13 * STEP])


def test_everything_missing_is_listed_at_once(spec: Spec) -> None:
    other = without(weather(Grid.named("24x12"), 60), 4, 10).drop_vars(["2m_temperature", "geopotential"]).drop_dims("level")
    with pytest.raises(InputError) as caught:
        check_inputs(other, spec, [START + 5 * STEP, START + 12 * STEP, START + 30 * STEP, START + 80 * STEP])
    message = str(caught.value)
    assert "the analysis is on 24x12 global" in message
    assert "the checkpoint needs 16x8 global" in message
    assert "the analysis lacks geopotential_500, 2m_temperature; it has 10m_v_component_of_wind" in message
    assert "5 of 12 input times are not in the analysis, first 2001-01-03T00" in message
    assert "3 frames, 12 h apart" in message


@pytest.mark.parametrize("late", [10, 11, 12])
def test_each_frame_is_needed(analysis: xr.Dataset, spec: Spec, late: int) -> None:
    with pytest.raises(InputError, match=r"1 of 3 input times .* first 2001-01-06T00"):
        check_inputs(without(analysis, 10), spec, [START + late * STEP])


def complete(held: set[int], frames: int, steps: int, first: int, last: int) -> list[int]:
    """Positions that can be started from, by definition."""
    return [i for i in range(first, last + 1) if all(i + k in held for k in range(1 - frames, steps + 1))]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_dates_are_spread_over_complete_windows(analysis: xr.Dataset, count: int) -> None:
    gone = {12, 13, 30, 41}
    usable = complete(set(range(60)) - gone, 2, 4, 6, 50)
    chosen = period(analysis, 6, 50)
    found = spread_evenly(without(analysis, *gone), 2, STEP, chosen, count, np.timedelta64(48, "h"))
    positions = [round((stamp - START) / STEP) for stamp in found]
    ranks = [usable.index(position) for position in positions]  # fails for a date that is not complete
    assert len(set(positions)) == count
    assert ranks[0] == 0
    assert count == 1 or ranks[-1] == len(usable) - 1
    assert np.ptp(np.diff(ranks)) <= 1 if count > 2 else True


def test_valid_times_may_lie_beyond_the_period_but_not_beyond_the_analysis(analysis: xr.Dataset) -> None:
    usable = complete(set(range(60)), 2, 10, 40, 55)
    assert usable == list(range(40, 50))
    found = spread_evenly(analysis, 2, STEP, period(analysis, 40, 55), len(usable), np.timedelta64(5, "D"))
    np.testing.assert_array_equal(found, START + STEP * np.array(usable))
    with pytest.raises(InputError, match=r"asked for 11 initialisations; .* has 10 complete ones"):
        spread_evenly(analysis, 2, STEP, period(analysis, 40, 55), 11, np.timedelta64(5, "D"))


def test_the_model_step_decides_which_analyses_count() -> None:
    six_hourly = without(weather(GLOBE, 24, step_hours=6), 11)
    found = spread_evenly(six_hourly, 2, STEP, ("2001-01-01", "2001-01-07"), 17, np.timedelta64(12, "h"))
    expected = [i for i in range(2, 22) if not {i - 2, i, i + 2} & {11}]
    np.testing.assert_array_equal(found, START + np.timedelta64(6, "h") * np.array(expected))


def test_members_start_each_from_its_own_number(analysis: xr.Dataset, spec: Spec) -> None:
    init = START + 9 * STEP
    states = InitialStates(ensemble_of(analysis, init, 0, 1, 2, 3))
    states.check(spec, [init], [1, 3])
    frames = states.load(spec, init, [1, 3])
    assert frames.shape == (2, 3, 4, *GLOBE.shape)
    for row, k in enumerate((1, 3)):
        scaled = analysis.assign({name: analysis[name] * np.float32(1 + 1e-3 * k) for name in analysis.data_vars})
        np.testing.assert_allclose(frames[row], one_analysis(scaled, spec, init), rtol=0, atol=1e-5)
    assert states.described(spec, [init], [1, 3]) == "a test; number of the member [abc]"


def test_initial_states_of_a_file_are_known_by_their_values(analysis: xr.Dataset, spec: Spec) -> None:
    """A file has no hash of a recipe: another one must not pass for the forecast that is there."""
    init = START + 9 * STEP
    data = ensemble_of(analysis, init, 0, 1, 2).drop_attrs(deep=False)
    warmer = data.assign({"2m_temperature": data["2m_temperature"] + 1})
    mine, again, other = (InitialStates(one, number=1).described(spec, [init], [1, 2]) for one in (data, data.copy(), warmer))
    assert mine == again
    assert mine != other
    assert mine != InitialStates(data, number=2).described(spec, [init], [1, 2])


def test_all_members_may_start_from_one_number(analysis: xr.Dataset, spec: Spec) -> None:
    init = START + 9 * STEP
    states = InitialStates(ensemble_of(analysis, init, 0), number=0)
    states.check(spec, [init], [1, 2, 3])
    frames = states.load(spec, init, [1, 2, 3])
    np.testing.assert_array_equal(frames[0], frames[2])
    np.testing.assert_allclose(frames[1], one_analysis(analysis, spec, init), rtol=0, atol=1e-6)


def test_all_that_initial_states_lack_is_told_at_once(analysis: xr.Dataset, spec: Spec) -> None:
    init = START + 9 * STEP
    states = InitialStates(ensemble_of(analysis, init, 0, 1).isel(prediction_timedelta=[1, 2]).drop_vars("2m_temperature"))
    with pytest.raises(InputError) as error:
        states.check(spec, [init, init + STEP], [1, 2, 3])
    for part in ("lacks 2m_temperature", "1 of 2 initialisations", "1 of 3 frames", "2 of 3 members"):
        assert part in str(error.value)
