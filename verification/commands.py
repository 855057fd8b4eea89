"""`plumecast verify | report | map`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verification.map_commands import draw_map

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    app.command()(verify)
    app.command()(report)
    app.command("map")(draw_map)
    app.command("verify-stations")(verify_stations)


def verify(
    forecasts: Annotated[list[Path], typer.Argument(help="forecast stores, or score states (*.scores.zarr)")],
    truth: Annotated[Path | None, typer.Option(help="analysis store at the valid times")] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="forecast store or score state to compare with; repeat it")] = None,
    climatology: Annotated[
        Path | None, typer.Option(help="climatology store, for anomaly correlation and events: plumecast data climatology")
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(help="'2m_temperature > 303.15' (SI units) or '> q0.95' of the climatology; repeat it"),
    ] = None,
    derive: Annotated[
        list[str] | None, typer.Option(help="make it per member first: 10m_wind_speed, total_precipitation_24hr; repeat it")
    ] = None,
    channel: Annotated[list[str] | None, typer.Option(help="only this channel, as geopotential_500; repeat it")] = None,
    fss_radius: Annotated[list[float] | None, typer.Option(help="km, for the fractions skill score of events; repeat it")] = None,
    case: Annotated[list[str] | None, typer.Option(help="initialisation whose fields to keep for the report; repeat it")] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="NAME=LAT,LON of plumes in the cases; three cities unless given; repeat it")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the score states; scores/ beside forecasts/ unless given")] = None,
    region: Annotated[str | None, typer.Option(help="of the table: global, tropics, Europe, land ...")] = None,
    leads: Annotated[str | None, typer.Option(help="of the table, as 1d,3d,5d")] = None,
    size: Annotated[float | None, typer.Option(help="compare as if every ensemble had this many members")] = None,
    skip_missing_truth: Annotated[bool, typer.Option("--skip-missing-truth", help="leave out valid times without truth")] = False,
    regrid: Annotated[bool, typer.Option("--regrid", help="put the finer of forecast and truth on the other's grid")] = False,
    cluster: Annotated[str | None, typer.Option(help="dask scheduler, as tcp://host:8786; default: threads here")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be scored, and stop")] = False,
) -> None:
    """Score ensemble forecasts against an analysis: fair CRPS, skill, spread-skill ratio, n, intervals.

    Example: plumecast verify runs/planet/forecasts/crps.zarr --truth runs/planet/analysis.zarr
    --climatology runs/planet/climatology.zarr --reference runs/planet/forecasts/climatology.zarr

    Every forecast store is read once and its score state saved as <model>.scores.zarr; a rerun reads the state, and a killed run
    goes on where it was. With a climatology that has quantiles its outermost ones are events. Initialisations inside the training
    or validation period of the forecast are named in red.
    """
    from data_pipeline.errors import InputError
    from data_pipeline.progress import table_console
    from verification.certify import certify, require
    from verification.headline import parse_leads, show
    from verification.readout import check_size
    from verification.regions import DOMAIN, REGIONS

    console = table_console()
    chosen = parse_leads(leads) if leads else None
    check_size(size)
    if region is not None and region not in REGIONS and not region.startswith(DOMAIN):
        raise InputError(f"region {region!r} is not known here; the regions are {', '.join(REGIONS)}, {DOMAIN}")
    options: dict[str, Any] = {
        "climatology_path": climatology,
        "derived": derive or [],
        "regrid": regrid,
        "missing_truth": "skip" if skip_missing_truth else "error",
        "channels": channel,
        "events": event,
        "radii": fss_radius or [],
        "cases": [_stamp(text, "--case") for text in case or []],
        "points": dict(map(_point, point or [])),
    }
    places = _places([*forecasts, *(reference or [])], out)
    if dry_run:
        for path, place in places.items():
            typer.echo(_intention(path, place, truth, options))
        return
    certificate = certify()
    require(certificate)
    states = {}
    for path, place in places.items():
        # the reference is scored like the model, but its fields need no pictures
        own = options if path in forecasts else {**options, "cases": [], "points": {}}
        states[path] = _state_of(path, place, truth, own, cluster, console)
    for path in forecasts:
        show(console, states[path], [states[other] for other in reference or []], leads=chosen, region=region, size=size)
        console.print()
    saved = " ".join(map(str, places.values()))
    typer.echo(f"certified: {certificate.summary}")
    typer.echo(f"scores: {saved}")
    typer.echo(f"next: plumecast report {saved} --out {next(iter(places.values())).parent / 'report.html'}")


def report(
    scores: Annotated[list[Path], typer.Argument(help="score states: the model first, then what it is compared with")],
    out: Annotated[Path, typer.Option(help="the page; its numbers go to .csv and .json beside it")] = Path("report.html"),
    reference: Annotated[
        str | None,
        typer.Option(help="name of the model that every other is compared with; else the first is compared with each"),
    ] = None,
    forecast: Annotated[Path | None, typer.Option(help="forecast store for the maps of one case")] = None,
    truth: Annotated[Path | None, typer.Option(help="analysis store for the maps of that case")] = None,
    init: Annotated[
        str | None, typer.Option(help="initialisation of that case, as 2007-01-05T00; the first unless given")
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(help="probability maps of that case: '2m_temperature > 303.15' (SI), '> q0.95' of --climatology; repeat it"),
    ] = None,
    climatology: Annotated[Path | None, typer.Option(help="climatology store for the quantiles of --event")] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="NAME=LAT,LON of plumes of that case; three cities unless given; repeat it")
    ] = None,
    title: Annotated[str, typer.Option(help="heading of the page")] = "Verification report",
) -> None:
    """Write the verification report: one self-contained HTML page with curves, maps, tables and their policies.

    Example: plumecast report crps.scores.zarr vae.scores.zarr climatology.scores.zarr --reference climatology --out report.html

    The page is self-contained (no network), and switches regions, seasons, variables and light or dark. Differences are tested in
    pairs, with the rate of false discoveries controlled over the whole scorecard.
    """
    from data_pipeline import open_analysis
    from data_pipeline.errors import InputError
    from data_pipeline.store import open_store
    from verification.report import write_report
    from verification.state import open_state

    of_case = {"--truth": truth, "--init": init, "--event": event, "--climatology": climatology, "--point": point}
    alone = [option for option, given in of_case.items() if given and forecast is None]
    if alone:
        raise InputError(f"{', '.join(alone)}: only for the maps and plumes of a case; give its forecast store (--forecast)")
    states = [open_state(path) for path in scores]
    case = _one_init(forecast, init).load() if forecast else None
    observed = open_analysis(truth) if truth else None
    climate = open_store(climatology) if climatology else None
    choice = {"events": event or [], "climatology": climate, "points": dict(map(_point, point or []))}
    path = write_report(states, out, reference=reference, case=case, truth=observed, case_choice=choice, title=title)
    typer.echo(f"report: {path}")


def _places(paths: Sequence[Path], out: Path | None) -> dict[Path, Path]:
    """Where the state of each path lies or will lie. Raises InputError if two models would share a place."""
    from data_pipeline import open_forecast
    from data_pipeline.errors import InputError
    from verification.state import is_state

    places: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        place = path
        if not is_state(path):
            beside = path.parent.parent if path.parent.name == "forecasts" else path.parent
            model = str(open_forecast(path).attrs.get("model", path.stem))
            place = (out or beside / "scores") / f"{_file_name(model)}.scores.zarr"
        if place in places.values():
            raise InputError(f"{path} and another forecast would both be saved as {place}; verify them one by one with --out")
        places[path] = place
    return places


def _state_of(
    path: Path, place: Path, truth: Path | None, options: dict[str, Any], cluster: str | None, console: Console
) -> xr.Dataset:
    """The state at `path`, or that of the forecast at `path`, made or read from `place`."""
    from rich.progress import Progress

    from verification.evaluate import score_store
    from verification.state import open_state

    if path == place:
        return open_state(path)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        task = display.add_task(f"scoring {path.name}", total=None)
        return score_store(
            path,
            _needed(truth, path),
            place,
            cluster=cluster,
            progress=lambda done, total: display.update(task, completed=done, total=total),
            **options,
        )


def _intention(path: Path, place: Path, truth: Path | None, options: dict[str, Any]) -> str:
    """What verifying a forecast would read and make."""
    from verification.evaluate import planned

    if path == place:
        return f"{path}: a score state, would be read"
    plan, done = planned(path, _needed(truth, path), place, **options)
    size = plan.members * plan.leads.size * len(plan.times) * len(plan.channels) * plan.grid.areas.size * 4
    events = f", events {'; '.join(event.label for event in plan.events)}" if plan.events else ""
    state = "is there already" if done else "would be written"
    return (
        f"{path}: {len(plan.times)} initialisations x {plan.leads.size} leads x {plan.members} members of "
        f"{', '.join(plan.channels)} on {plan.grid}; {size / 1e9:.2f} GB of members{events}; {place} {state}"
    )


def _needed(truth: Path | None, path: Path) -> Path:
    from data_pipeline.errors import InputError

    if truth is None:
        raise InputError(f"{path} is a forecast: --truth is needed, the analysis store at its valid times")
    return truth


def _stamp(text: str, option: str) -> np.datetime64:
    import numpy as np

    from data_pipeline.errors import InputError

    try:
        return np.datetime64(text, "ns")
    except ValueError:
        raise InputError(f"{option} {text!r} is no stamp; expected for example 2007-01-05T00") from None


def _point(text: str) -> tuple[str, tuple[float, float]]:
    from data_pipeline.errors import InputError

    name, _, place = text.partition("=")
    try:
        latitude, longitude = map(float, place.split(","))
    except ValueError:
        raise InputError(f"--point {text!r}; expected NAME=LAT,LON, as Oslo=59.9,10.8") from None
    return name, (latitude, longitude)


def _file_name(model: str) -> str:
    return "-".join("".join(sign if sign.isalnum() else " " for sign in model.lower()).split()) or "forecast"


def _one_init(path: Path, init: str | None) -> xr.Dataset:
    from data_pipeline import open_forecast
    from data_pipeline.errors import InputError

    data = open_forecast(path)
    if init is None:
        return data.isel(time=[0])
    stamp = _stamp(init, "--init")
    if stamp not in data["time"].values:
        first, last = (str(data["time"].values[index])[:13] for index in (0, -1))
        raise InputError(f"{path} has no initialisation {init}; it has {first} to {last}")
    return data.sel(time=[stamp])


def verify_stations(
    forecast: Annotated[Path, typer.Argument(help="forecast store, or ensemble files (GRIB, NetCDF, zarr)")],
    stations: Annotated[Path, typer.Option(help="observations, one row a value: .csv, .parquet or .nc")],
    elevation: Annotated[
        Path | None, typer.Option(help="analysis store with geopotential_at_surface: corrects 2 m temperature for height")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; scores/ beside forecasts/ unless given")] = None,
    leads: Annotated[str | None, typer.Option(help="of the printed table, as 1d,3d,5d")] = None,
    split_moved: Annotated[
        bool, typer.Option("--split-moved", help="take each place of a moving station (a ship) as one")
    ] = False,
) -> None:
    """Score an ensemble against station observations: fair CRPS, MAE of the median, RMSE, bias, spread-skill ratio, outliers.

    Example: plumecast verify-stations runs/planet/forecasts/crps.zarr --stations synop.csv --elevation runs/planet/analysis.zarr

    The table has columns station, latitude, longitude, elevation, time (UTC), variable, value, units, and region if you like:

    01001,70.94,-8.67,10,2007-01-05T12:00,2m_temperature,-5.2,degC

    Forecasts are interpolated bilinearly; observations outside the physical range, or far from the station's own median, are left
    out and counted. Scores of all stations, each region and each station go to <model>.stations.csv and .nc (with rank
    histograms); observation error is not modelled.
    """
    from data_pipeline import open_analysis, open_forecast
    from data_pipeline.progress import table_console
    from data_pipeline.sources.stations import open_stations
    from verification.headline import parse_leads
    from verification.stations import at_stations, gross_error_check, save_scores, score_stations, show

    chosen = parse_leads(leads) if leads else None
    observed = open_stations(stations, moved="split" if split_moved else "error")
    flags = gross_error_check(observed)
    data = at_stations(open_forecast(forecast), observed, elevation=open_analysis(elevation) if elevation else None)
    scores = score_stations(data, observed.where(flags == 0)).assign_attrs(rejected=flags.attrs["rejected"])
    beside = forecast.parent.parent if forecast.parent.name == "forecasts" else forecast.parent
    model = str(data.attrs.get("model", forecast.stem))
    saved = save_scores(scores, (out or beside / "scores") / f"{_file_name(model)}.stations")
    show(table_console(), scores, leads=chosen)
    typer.echo(f"scores: {' '.join(map(str, saved))}")
