"""`plumecast verify | report | map`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    app.command()(verify)
    app.command()(report)
    app.command("map")(draw_map)


def verify(
    forecasts: Annotated[list[Path], typer.Argument(help="forecast stores, or score states (*.scores.zarr)")],
    truth: Annotated[Path | None, typer.Option(help="analysis store at the valid times")] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="forecast store or score state to compare with; repeat it")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the score states; scores/ beside forecasts/ unless given")] = None,
    region: Annotated[str | None, typer.Option(help="of the table: global, tropics, 'northern extratropics' ...")] = None,
    leads: Annotated[str | None, typer.Option(help="of the table, as 1d,3d,5d")] = None,
    skip_missing_truth: Annotated[bool, typer.Option("--skip-missing-truth", help="leave out valid times without truth")] = False,
) -> None:
    """Score ensemble forecasts against an analysis: fair CRPS, skill, spread-skill ratio, n, intervals.

    Example: plumecast verify runs/planet/forecasts/crps.zarr --truth runs/planet/analysis.zarr
    --reference runs/planet/forecasts/climatology.zarr

    Every forecast store is read once and its score state saved as <model>.scores.zarr; a rerun reads the state. Initialisations
    inside the training or validation period of the forecast are named in red.
    """
    from data_pipeline.progress import table_console
    from verification.headline import parse_leads, show

    console = table_console()
    chosen = parse_leads(leads) if leads else None
    places = _places([*forecasts, *(reference or [])], out)
    states = {path: _state_of(path, place, truth, skip_missing_truth, console) for path, place in places.items()}
    for path in forecasts:
        show(console, states[path], [states[other] for other in reference or []], leads=chosen, region=region)
        console.print()
    saved = " ".join(map(str, places.values()))
    typer.echo(f"scores: {saved}")
    typer.echo(f"next: plumecast report {saved} --out {next(iter(places.values())).parent / 'report.html'}")


def report(
    scores: Annotated[list[Path], typer.Argument(help="score states: the model first, then what it is compared with")],
    out: Annotated[Path, typer.Option(help="the page; its numbers go to .csv and .json beside it")] = Path("report.html"),
    forecast: Annotated[Path | None, typer.Option(help="forecast store for the maps of one case")] = None,
    truth: Annotated[Path | None, typer.Option(help="analysis store for the maps of that case")] = None,
    init: Annotated[
        str | None, typer.Option(help="initialisation of that case, as 2007-01-05T00; the first unless given")
    ] = None,
    title: Annotated[str, typer.Option(help="heading of the page")] = "Verification report",
) -> None:
    """Write the verification report: one self-contained HTML page with curves, maps, tables and their policies.

    Example: plumecast report crps.scores.zarr climatology.scores.zarr --out report.html
    """
    from data_pipeline import open_analysis
    from verification.report import write_report
    from verification.state import open_state

    states = [open_state(path) for path in scores]
    case = _one_init(forecast, init).load() if forecast else None
    observed = open_analysis(truth) if truth else None
    path = write_report(states, out, case=case, truth=observed, title=title)
    typer.echo(f"report: {path}")


def draw_map(
    forecast: Annotated[Path, typer.Argument(help="forecast store")],
    channel: Annotated[str, typer.Option(help="as geopotential_500")],
    lead: Annotated[str, typer.Option(help="as 5d or 36h")] = "1d",
    init: Annotated[str | None, typer.Option(help="initialisation, as 2007-01-05T00; the first unless given")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="analysis store; with it truth, mean, spread and members side by side")
    ] = None,
    out: Annotated[Path, typer.Option(help="the picture (.png, .pdf, .svg)")] = Path("map.png"),
) -> None:
    """Draw one channel of an ensemble: mean and spread, or with the truth beside some members.

    Example: plumecast map forecasts/crps.zarr --channel geopotential_500 --lead 5d --truth analysis.zarr
    """
    from data_pipeline import open_analysis
    from data_pipeline.errors import InputError
    from data_pipeline.schema import Channel, select
    from verification import maps
    from verification.headline import parse_leads

    wanted = parse_leads(lead)[0]
    data = _one_init(forecast, init)
    if wanted not in data["prediction_timedelta"].values:
        raise InputError(f"{forecast} has no lead {lead}; plumecast verify lists its leads")
    members = select(data.isel(time=0), Channel.parse(channel)).sel(prediction_timedelta=wanted).load()
    valid = members["time"].values + wanted
    title = f"{data.attrs.get('model', forecast.stem)}, {str(members['time'].values)[:13]} UTC + {lead}"
    if truth is None:
        figure = maps.plot_ensemble(members, variable=channel, title=title)
    else:
        analysis = open_analysis(truth)
        if valid not in analysis["time"].values:
            raise InputError(f"{truth} has no {str(valid)[:13]}, the valid time of {channel} + {lead}")
        observed = select(analysis, Channel.parse(channel)).sel(time=valid).load()
        figure = maps.plot_stamps(members, observed, variable=channel, title=title)
    figure.savefig(out, dpi=150)
    typer.echo(f"map: {out}")


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


def _state_of(path: Path, place: Path, truth: Path | None, skip: bool, console: Console) -> xr.Dataset:
    """The state at `path`, or that of the forecast at `path`, made or read from `place`."""
    from rich.progress import Progress

    from data_pipeline.errors import InputError
    from verification.evaluate import score_store
    from verification.state import open_state

    if path == place:
        return open_state(path)
    if truth is None:
        raise InputError(f"{path} is a forecast: --truth is needed, the analysis store at its valid times")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        task = display.add_task(f"scoring {path.name}", total=None)
        return score_store(
            path,
            truth,
            place,
            missing_truth="skip" if skip else "error",
            progress=lambda done, total: display.update(task, completed=done, total=total),
        )


def _file_name(model: str) -> str:
    return "-".join("".join(sign if sign.isalnum() else " " for sign in model.lower()).split()) or "forecast"


def _one_init(path: Path, init: str | None) -> xr.Dataset:
    import numpy as np

    from data_pipeline import open_forecast
    from data_pipeline.errors import InputError

    data = open_forecast(path)
    if init is None:
        return data.isel(time=[0])
    try:
        stamp: np.datetime64 = np.datetime64(init, "ns")
    except ValueError:
        raise InputError(f"--init {init!r} is no stamp; expected for example 2007-01-05T00") from None
    if stamp not in data["time"].values:
        first, last = (str(data["time"].values[index])[:13] for index in (0, -1))
        raise InputError(f"{path} has no initialisation {init}; it has {first} to {last}")
    return data.sel(time=[stamp])
