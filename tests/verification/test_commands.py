"""`plumecast verify`, `report` and `map`, run as a user runs them, on a small forecast with its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner, Result

import verification.report
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.store import write_dataset
from verification import commands, evaluate, open_state, score_store, scores_table
from verification.headline import headline, parse_leads

GRID = Grid.named("16x8")
HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
TIMES = np.datetime64("2007-01-01", "ns") + 12 * HOUR * np.arange(30)
LEADS = 24 * HOUR * np.array([1, 2, 3])


def store_forecast(folder: Path, model: str, members: int, noise: float, **attrs: str) -> Path:
    truth = xr.open_zarr(folder / "analysis.zarr")
    inits = TIMES[:12:2]
    valid = xr.DataArray(inits[:, None] + LEADS, dims=("time", "prediction_timedelta"))
    field = truth["geopotential"].sel(time=valid).drop_vars("time")
    field = field.assign_coords(time=inits, prediction_timedelta=LEADS).expand_dims(number=np.arange(members))
    field = field.transpose("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    rng = np.random.default_rng(members)
    data = (field + rng.normal(0, noise, field.shape)).astype(np.float32).assign_attrs(units="m2 s-2").to_dataset()
    return write_dataset(folder / "forecasts" / f"{model.split()[0]}.zarr", data, {"model": model, **attrs})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder: analysis, an ensemble, its climatology, persistence."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    values = rng.normal(5.5e4, 1e3, (TIMES.size, 1, *GRID.shape)).astype(np.float32)
    dims = ("time", "level", "latitude", "longitude")
    data = xr.Dataset({"geopotential": (dims, values, {"units": "m2 s-2"})}, {"time": TIMES, "level": [500], **GRID.coords()})
    write_dataset(folder / "analysis.zarr", data, {"source": "planet"})
    store_forecast(folder, "crps", 6, 100, training_period="2001-01-01T00/2005-12-31T12")
    store_forecast(folder, "climatology (8 members)", 8, 1000)
    store_forecast(folder, "persistence", 1, 800)
    return folder


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    commands.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_verify_prints_the_headline_and_saves_every_state(job: Path, tmp_path: Path) -> None:
    forecasts = job / "forecasts"
    result = run(
        "verify", forecasts / "crps.zarr", "--truth", job / "analysis.zarr", "--reference", forecasts / "climatology.zarr",
        "--reference", forecasts / "persistence.zarr", "--out", tmp_path, "--leads", "1d,3d",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    saved = [tmp_path / f"{name}.scores.zarr" for name in ("crps", "climatology-8-members", "persistence")]
    states = [open_state(path) for path in saved]
    for text in (
        "fair CRPS",
        "skill vs climatology (8 members)",
        "skill vs persistence",
        "day 1",
        "day 3",
        "6 members",
        "region global",
    ):
        assert text in result.output
    assert "day 2" not in result.output
    assert "6*" in result.output
    assert "too few for firm intervals" in result.output
    assert "training" not in result.output
    lines = headline(states[0], states[1:], leads=parse_leads("1d,3d"))
    assert len(lines) == 2
    assert all(0.8 < line.crpss["climatology (8 members)"][0] < 1 for line in lines)
    assert f"{lines[0].ssr[0]:.3g}"[:3] in result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("next: plumecast report")
    assert all(str(path) in last for path in saved)


def test_a_second_run_reads_the_states(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("verify", job / "forecasts" / "crps.zarr", "--truth", job / "analysis.zarr", "--out", tmp_path)
    first = run(*arguments)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("scored again"))
    assert run(*arguments).output == first.output
    again = run("verify", tmp_path / "crps.scores.zarr")
    assert again.exit_code == 0
    assert again.output.splitlines()[:4] == first.output.splitlines()[:4]


def test_states_lie_beside_the_forecasts_unless_told(job: Path) -> None:
    assert run("verify", job / "forecasts" / "crps.zarr", "--truth", job / "analysis.zarr").exit_code == 0
    assert (job / "scores" / "crps.scores.zarr").is_dir()


@pytest.mark.parametrize(("period", "text"), [("training", "training period"), ("validation", "validation period")])
def test_contaminated_scores_are_said_in_a_sentence(job: Path, tmp_path: Path, period: str, text: str) -> None:
    (tmp_path / "analysis.zarr").symlink_to(job / "analysis.zarr")
    path = store_forecast(tmp_path, "leaky", 3, 100, **{f"{period}_period": "2000-01-01/2007-01-03"})
    result = run("verify", path, "--truth", job / "analysis.zarr", "--out", tmp_path)
    assert f"3 with an initialisation or valid time in the {text}" in result.output
    assert all(line.contaminated for line in headline(open_state(tmp_path / "leaky.scores.zarr")))


def test_one_member_is_called_what_it_is(job: Path, tmp_path: Path) -> None:
    result = run("verify", job / "forecasts" / "persistence.zarr", "--truth", job / "analysis.zarr", "--out", tmp_path)
    assert "MAE (one member)" in result.output
    assert "fair CRPS" not in result.output
    state = open_state(tmp_path / "persistence.scores.zarr")
    assert headline(state)[0].crps[0] == pytest.approx(float(scores_table(state)["crps_ecdf"][0, 0]) / 98.0665)
    assert np.isnan(headline(state)[0].ssr[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "crps.zarr"), "--truth is needed"),
        (("verify", "crps.zarr", "--truth", "analysis", "--leads", "5"), "5 is no lead; expected days or hours"),
        (
            ("verify", "crps.zarr", "--truth", "analysis", "--leads", "9d"),
            "lead day 9 is not in the scores of crps, which have day 1",
        ),
        (("verify", "crps.zarr", "--truth", "analysis", "--region", "mars"), "region 'mars' is not known"),
        (("verify", "absent.zarr", "--truth", "analysis"), "absent.zarr"),
        (("map", "crps.zarr", "--channel", "geopotential_500", "--lead", "9d"), "has no lead 9 d"),
        (("map", "crps.zarr", "--channel", "geopotential_500", "--init", "2099-01-01"), "has no initialisation 2099-01-01"),
        (("map", "crps.zarr", "--channel", "geopotential_500", "--init", "noon"), "'noon' is no stamp"),
        (("map", "crps.zarr", "--channel", "geopotential_700"), "700 is not there"),
    ],
)
def test_wrong_input_is_named(job: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    places = {"analysis": job / "analysis.zarr", "crps.zarr": job / "forecasts" / "crps.zarr"}
    extra = ("--out", tmp_path) if arguments[0] == "verify" else ()
    result = run(*(places.get(argument, argument) for argument in arguments), *extra)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_two_models_of_one_name_are_not_saved_over_each_other(job: Path, tmp_path: Path) -> None:
    (tmp_path / "analysis.zarr").symlink_to(job / "analysis.zarr")
    twin = store_forecast(tmp_path, "crps", 3, 100)
    result = run("verify", job / "forecasts" / "crps.zarr", twin, "--truth", job / "analysis.zarr", "--out", tmp_path)
    assert isinstance(result.exception, InputError)
    assert "would both be saved" in str(result.exception)


def test_report_writes_a_page_about_one_case(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [job / "forecasts" / f"{name}.zarr" for name in ("crps", "climatology")]
    scores = [tmp_path / f"{path.stem}.scores.zarr" for path in stores]
    for path, place in zip(stores, scores, strict=True):
        score_store(path, job / "analysis.zarr", place)
    asked: dict[str, Any] = {}

    def write_report(states: list[xr.Dataset], out: Path, **rest: Any) -> Path:
        asked.update(states=states, **rest)
        return out

    monkeypatch.setattr(verification.report, "write_report", write_report)
    arguments = ["--forecast", stores[0], "--truth", job / "analysis.zarr", "--init", "2007-01-02", "--title", "My page"]
    result = run("report", *scores, "--out", tmp_path / "page.html", *arguments)
    assert result.exit_code == 0, result.output
    assert [state.attrs["model"] for state in asked["states"]] == ["crps", "climatology (8 members)"]
    assert asked["case"]["time"].values == [np.datetime64("2007-01-02")]
    assert asked["truth"].sizes["time"] == TIMES.size
    assert asked["title"] == "My page"
    assert "report: " in result.output


@pytest.mark.parametrize("with_truth", [False, True])
def test_map_draws_a_picture(job: Path, tmp_path: Path, with_truth: bool) -> None:
    arguments = [
        "map",
        job / "forecasts" / "crps.zarr",
        "--channel",
        "geopotential_500",
        "--lead",
        "48h",
        "--out",
        tmp_path / "map.png",
    ]
    result = run(*arguments, *(["--truth", job / "analysis.zarr"] if with_truth else []))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_a_dry_run_says_what_would_be_scored_and_writes_nothing(job: Path, tmp_path: Path) -> None:
    result = run(
        "verify", job / "forecasts" / "crps.zarr", "--truth", job / "analysis.zarr", "--out", tmp_path, "--dry-run",
        "--event", "geopotential_500 > 56000",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "6 initialisations x 3 leads x 6 members of geopotential_500" in result.output
    assert "events geopotential_500 > 56000" in result.output
    assert "would be written" in result.output
    assert list(tmp_path.iterdir()) == []


def test_events_cases_points_and_regions_are_kept_in_the_state(job: Path, tmp_path: Path) -> None:
    result = run(
        "verify", job / "forecasts" / "crps.zarr", "--truth", job / "analysis.zarr", "--out", tmp_path, "--region", "Europe",
        "--event", "geopotential_500 > 56000", "--fss-radius", "1500", "--case", "2007-01-02", "--point", "Oslo=59.9,10.8",
        "--size", "10",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "CRPS at 10 members" in result.output
    assert "region Europe" in result.output
    assert "certified: " in result.output
    state = open_state(tmp_path / "crps.scores.zarr")
    assert state["event"].values.tolist() == ["geopotential_500 > 56000"]
    assert {"case_mean", "case_plume", "fss_numerator", "tail_gini"} <= set(state.data_vars)
    assert state["point"].values.tolist() == ["Oslo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--event", "rain"], "event 'rain': expected a channel with a threshold"),
        (["--event", "> q0.9"], "needs that quantile of a climatology"),
        (["--case", "1999-01-01"], "are not initialisations of the forecast"),
        (["--case", "soon"], "--case 'soon' is no stamp"),
        (["--point", "Oslo"], "--point 'Oslo'; expected NAME=LAT,LON"),
        (["--region", "Atlantis"], "region 'Atlantis' is not known here"),
        (["--derive", "humidex"], "'humidex' cannot be derived"),
        (["--channel", "2m_temperature"], "2m_temperature not in the forecast"),
        (["--climatology", "ANALYSIS"], "is not a climatology"),
    ],
)
def test_what_cannot_be_is_named(job: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [str(job / "analysis.zarr") if word == "ANALYSIS" else word for word in arguments]
    result = run("verify", job / "forecasts" / "crps.zarr", "--truth", job / "analysis.zarr", "--out", tmp_path, *given)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
