"""The gate: a sound forecast passes, each kind of fault is found and named, and nothing of a refused forecast is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import forecast
from data_pipeline import open_forecast
from data_pipeline.errors import GateError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from forecast import gate as gates
from forecast.gate import Climate, Finding, Gate, GateSink, Report, merged, report_of
from forecast.plan import ForecastPlan
from forecast.sinks import MemorySink, ZarrSink
from models.crps import CrpsGenerator
from tests.toys import GLOBE, network, spec_of, weather

RAIN = "total_precipitation_12hr"
INIT, LEAD = np.datetime64("2001-01-06T00", "ns"), np.timedelta64(24, "h")
CHANNELS = (Channel("geopotential", 500), Channel("2m_temperature"), Channel("temperature", 500), Channel(RAIN))
MEMBERS = (1, 2, 3, 4, 5, 6)


@pytest.fixture
def plan() -> ForecastPlan:
    return ForecastPlan(np.array([INIT]), np.array([LEAD]), MEMBERS, CHANNELS, GLOBE, {"noise_scale": 1.0})


@pytest.fixture
def fields() -> np.ndarray:
    """Sound ones: (member, channel, latitude, longitude)."""
    draws = np.random.default_rng(0).normal(size=(6, 4, *GLOBE.shape))
    scale, shift = np.array([800, 8, 8, 1e-3]), np.array([5.5e4, 285, 260, 0])
    return np.maximum(draws * scale[:, None, None] + shift[:, None, None], 0).astype(np.float32)


@pytest.fixture
def climate() -> Climate:
    labels = [channel.label for channel in CHANNELS]
    return Climate(dict(zip(labels, (5.5e4, 285, 260, 0.4), strict=True)), dict(zip(labels, (800, 8, 8, 0.5), strict=True)))


def kinds(findings: list[Finding]) -> set[tuple[str, str, str, int]]:
    return {(each.severity, each.check, each.channel, each.member) for each in findings}


def test_a_sound_lead_has_no_finding(plan: ForecastPlan, fields: np.ndarray, climate: Climate) -> None:
    assert Gate(plan, climate, np.zeros(GLOBE.shape)).examine(INIT, LEAD, MEMBERS, fields, fields * np.float32(1.01)) == []


def test_values_outside_the_physical_range_fail(plan: ForecastPlan, fields: np.ndarray) -> None:
    fields[2, 1, 3, 4] = 400
    found = Gate(plan).examine(INIT, LEAD, MEMBERS, fields)
    assert kinds(found) == {("fail", "range", "2m_temperature", 3)}
    assert str(found[0]) == ("2001-01-06T00 +24 h, member 3, 2m_temperature: outside the physical range (found 400, limit 345)")


def test_values_that_are_not_finite_fail_alone(plan: ForecastPlan, fields: np.ndarray) -> None:
    fields[1, 0, 0, 0] = np.nan
    fields[4, 1, 0, 0] = np.inf
    found = Gate(plan).examine(INIT, LEAD, MEMBERS, fields)
    assert kinds(found) == {("fail", "finite", "geopotential_500", 2), ("fail", "finite", "2m_temperature", 5)}


@pytest.mark.parametrize(
    ("stds", "who", "expected"),
    [
        (7.5, (3,), set()),
        (8.5, (0, 1, 2, 3, 4, 5), {("warn", "climate")}),
        (13.5, (3,), {("fail", "blow-up")}),
        (17, (0, 1, 2, 3, 4, 5), {("fail", "climate")}),
    ],
    ids=["inside", "all at the edge", "one far beyond the others", "all far beyond"],
)
def test_a_member_beyond_the_climate_and_the_others(
    plan: ForecastPlan, fields: np.ndarray, climate: Climate, stds: float, who: Any, expected: Any
) -> None:
    """Geopotential 500 hPa: the physical range of the table would let all of it pass."""
    fields[list(who), 0, 2, 2] = 5.5e4 + 800 * stds
    found = Gate(plan, climate).examine(INIT, LEAD, MEMBERS, fields)
    assert {(each.severity, each.check) for each in found} == expected
    assert {each.member for each in found} == ({MEMBERS[m] for m in who} if expected else set())


def test_the_edge_of_the_climate_widens_with_what_analyses_show(plan: ForecastPlan, fields: np.ndarray) -> None:
    data = weather(steps=60)
    spec = spec_of(data)
    assert Climate.of(spec).limit("2m_temperature") == gates.FARTHEST
    data["2m_temperature"][0, 0, 0] += np.float32(9 * spec.std[spec.channels.index("2m_temperature")])
    wide = Climate.of(spec, data)
    assert wide.limit("2m_temperature") > gates.MARGIN * 8
    assert 0.0 < wide.drizzle[RAIN] < 0.2


def test_members_that_are_one_fail_unless_nothing_sets_them_apart(plan: ForecastPlan, fields: np.ndarray) -> None:
    fields[4] = fields[1]
    assert kinds(Gate(plan).examine(INIT, LEAD, MEMBERS, fields)) == {("fail", "identical", "", 5)}
    assert kinds(Gate(plan, spread=False).examine(INIT, LEAD, MEMBERS, fields)) == {("note", "identical", "", 5)}
    blocks = Gate(plan)
    assert blocks.examine(INIT, LEAD, MEMBERS[:3], fields[:3]) == []
    assert kinds(blocks.examine(INIT, LEAD, MEMBERS[3:], fields[3:])) == {("fail", "identical", "", 5)}, "of another block"
    assert blocks.examine(INIT + LEAD, LEAD, MEMBERS[3:], fields[3:]) == [], "another initialisation"


def test_fields_that_have_stopped(plan: ForecastPlan, fields: np.ndarray) -> None:
    before = fields + np.float32(1)
    before[2] = fields[2]
    before[3, 1] = fields[3, 1]
    fields[5, 3] = before[5, 3] = 0
    found = kinds(Gate(plan).examine(INIT, LEAD, MEMBERS, fields, before))
    assert found == {("fail", "stopped", "", 3), ("warn", "still", "2m_temperature", 4)}, "no rain anywhere is no fault"


def test_spurious_drizzle_is_measured_against_the_analyses(plan: ForecastPlan, fields: np.ndarray, climate: Climate) -> None:
    known = Climate(climate.mean, climate.std, drizzle={RAIN: 0.1})
    assert Gate(plan, known).examine(INIT, LEAD, MEMBERS, fields) == []
    fields[:, 3] = np.where(fields[:, 3] == 0, np.float32(2e-5), fields[:, 3])
    found = Gate(plan, known).examine(INIT, LEAD, MEMBERS, fields)
    assert {(each.severity, each.check, each.limit) for each in found} == {("warn", "drizzle", 0.35)}


def test_levels_under_the_terrain_are_a_note_and_no_alarm(plan: ForecastPlan, fields: np.ndarray) -> None:
    orography = np.zeros(GLOBE.shape)
    orography[2, 5] = 6.5e4  # a summit above 500 hPa
    fields[:, 2, 2, 5] = 120  # extrapolated into the rock: below the table's range
    found = Gate(plan, None, orography).examine(INIT, LEAD, MEMBERS, fields)
    assert {(each.severity, each.check, each.channel) for each in found} == {
        ("note", "range", "temperature_500"), ("note", "terrain", "geopotential_500"), ("note", "terrain", "temperature_500"),
    }  # fmt: skip
    fields[0, 2, 7, 7] = 120
    assert ("fail", "range", "temperature_500", 1) in kinds(Gate(plan, None, orography).examine(INIT, LEAD, MEMBERS, fields))


@pytest.mark.parametrize(("level", "metres"), [(1000, 110.9), (850, 1457), (500, 5574), (250, 10363), (100, 16180)])
def test_the_standard_atmosphere(level: int, metres: float) -> None:
    """Heights of the ICAO table."""
    assert gates.standard_geopotential(level) / gates.GRAVITY == pytest.approx(metres, abs=2)


def test_reports_add_whatever_the_order(plan: ForecastPlan) -> None:
    def finding(member: int, lead: int, severity: Any = "warn") -> Finding:
        return Finding("2001-01-06T00", lead, member, "2m_temperature", "climate", severity, 1.0, 2.0)

    parts = []
    for each in ([finding(3, 24), finding(1, 48)], [finding(2, 12)], []):
        report = Report(4)
        report.add(each)
        parts.append(report.as_dict())
    forward, backward = merged(parts), merged(reversed(parts))
    assert forward.as_dict() == backward.as_dict() == Report.from_dict(json.loads(json.dumps(forward.as_dict()))).as_dict()
    assert forward.checked == 12
    assert forward.found["warn climate 2m_temperature"] == (3, finding(2, 12))
    assert forward.lines() == [f"warn: {finding(2, 12)}, 3 times"]
    forward.raise_if_bad()
    forward.add([finding(1, 12, "fail")])
    with pytest.raises(GateError, match="nothing was published"):
        forward.raise_if_bad()


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=60)


@pytest.fixture
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis))


def make(path: Path, made: CrpsGenerator, analysis: xr.Dataset, *, strict: bool = True, days: float = 2) -> None:
    plan = forecast.make_plan(made, analysis, analysis["time"].values[[10, 25]], days=days, members=3, seed=0)
    gate = GateSink(Gate.of(made.spec, plan, analysis), strict=strict)
    sink = ZarrSink(path, gate=gate)
    try:
        forecast.run(made, analysis, plan, [gate, sink])
    finally:
        sink.release()


def hot(made: CrpsGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Member 2 at the third lead of the second initialisation."""
    plain, calls = made.fields, []

    def broken(state: Any) -> torch.Tensor:
        calls.append(1)
        fields = plain(state).clone()
        if len(calls) == 7:
            fields[1, 1, 0, 0] = 40
        return fields

    monkeypatch.setattr(made, "fields", broken)


def test_a_forecast_that_fails_is_not_published_however_often_it_is_tried(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot(generator, monkeypatch)
    with pytest.raises(GateError, match=r"2001-01-13T12 \+36 h, member 2, 2m_temperature: outside the physical range") as caught:
        make(tmp_path / "f.zarr", generator, analysis)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "f.zarr").exists()
    make(tmp_path / "f.zarr", network(generator.spec), analysis)
    assert open_forecast(tmp_path / "f.zarr").sizes["time"] == 2, "a sound checkpoint goes on where the gate closed"


def test_what_is_found_is_kept_in_the_store_and_joined_when_it_grows(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot(generator, monkeypatch)
    make(tmp_path / "f.zarr", generator, analysis, strict=False)
    report = report_of(open_forecast(tmp_path / "f.zarr"))
    assert report is not None
    assert report.checked == 2 * 4 * 3
    assert [(each.check, each.member, each.lead) for each in report.of("warn") if each.check == "range"] == [("range", 2, 36)]
    make(tmp_path / "f.zarr", generator, analysis, strict=False, days=3)
    longer = report_of(open_forecast(tmp_path / "f.zarr"))
    assert longer is not None
    assert longer.checked == 2 * 6 * 3
    assert set(longer.found) >= set(report.found), "what was found before, and what the further leads brought"


def test_a_stored_forecast_can_be_examined_as_a_whole(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    made = forecast.sample(generator, analysis, analysis["time"].values[[10]], days=2, members=3)
    sound = gates.check(made, spec=generator.spec, analysis=analysis)
    assert sound.checked == 12
    assert sound.of("fail") == []
    made["2m_temperature"][0, 1, 2, 0, 0] = 500
    made["geopotential"][0, 3, 0, 0, 0, 0] = np.nan
    found = gates.check(made, spec=generator.spec, analysis=analysis)
    assert {(each.check, each.member, each.lead) for each in found.of("fail")} >= {("range", 3, 24), ("finite", 1, 48)}


def test_a_cut_forecast_is_examined_over_its_own_terrain(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    from forecast.subset import subset

    plan = forecast.make_plan(generator, analysis, analysis["time"].values[[10]], days=1, members=2, seed=0)
    part = subset(plan, region=(-50, 70, -40, 60))
    gate = Gate.of(generator.spec, part, analysis)
    assert gate.orography is not None
    assert gate.orography.shape == part.grid.shape
    sink = MemorySink()
    forecast.run(generator, analysis, part, [GateSink(gate), sink])
    assert Grid.of(sink.dataset).shape == part.grid.shape
