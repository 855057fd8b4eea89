"""`plumecast live`, `plumecast baseline`, `plumecast demo`, and where the other commands of this package are mounted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from forecast import calibration_commands, forecast_commands, state_commands, store_commands
from forecast.cycle import commands as cycle_commands
from forecast.products import commands as product_commands

if TYPE_CHECKING:
    import xarray as xr


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    app.command()(live)
    state_commands.register(app)
    store_commands.register(app)
    app.command()(forecast_commands.forecast)
    app.command()(calibration_commands.fit_post_processing)
    app.command()(calibration_commands.post_process)
    app.command()(product_commands.products)
    app.command()(baseline)
    app.command()(demo)
    cycle_commands.register(app)


def live(
    checkpoint: Annotated[
        Path | None, typer.Option(help="checkpoint; the shipped one of the simulated planet unless given")
    ] = None,
    init: Annotated[str, typer.Option(help="latest, or a cycle, as 2026-11-26T00")] = "latest",
    out: Annotated[Path | None, typer.Option(help="analysis store; runs/live/<cycle>/analysis.zarr unless given")] = None,
    static: Annotated[
        Path | None, typer.Option(help="file or store whose orography and land-sea mask to take, not ECMWF's")
    ] = None,
    source: Annotated[str, typer.Option(help="ecmwf, aws, google, azure, or the URL of a copy")] = "ecmwf",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="find the cycle, list its fields and stop")] = False,
) -> None:
    """Fetch the input frames of a checkpoint from ECMWF's open data, ready for `plumecast forecast`.

    Example: plumecast live --checkpoint runs/mine/checkpoint.safetensors --init latest

    Needs the extra `live`. A cycle that is not whole yet leaves with code 3. Precipitation comes from the short forecast before
    each frame. A killed run continues with the same command; a finished one is left alone.
    """
    import models
    from data_pipeline.sources.ecmwf_live import write_cycle
    from data_pipeline.sources.ecmwf_server import Server
    from data_pipeline.store import open_store
    from forecast.live import choose_init, listed, wanted_by

    spec = models.load(checkpoint or models.shipped()).spec
    wanted, server = wanted_by(spec, static), Server(source, report=typer.echo)
    cycle = choose_init(init, spec, wanted, server)
    target = out or Path("runs/live") / f"{cycle:%Y%m%d%H}" / "analysis.zarr"
    if dry_run:
        typer.echo("\n".join([*listed(wanted, cycle, server), f"{target}: nothing was written (--dry-run)"]))
        return
    write_cycle(target, cycle, wanted, server=server)
    chosen = f" --checkpoint {checkpoint}" if checkpoint else ""
    typer.echo(
        f"{target}: {open_store(target).attrs['attribution']}\n"
        f"next: plumecast forecast {target}{chosen} --init {cycle:%Y-%m-%dT%H}"
    )


def baseline(
    kind: Annotated[Literal["persistence", "climatology", "linear"], typer.Argument(help="which baseline")],
    analysis: Annotated[Path, typer.Argument(help="analysis store; it must hold the training period too")],
    like: Annotated[Path | None, typer.Option(help="forecast store whose initialisations, leads and fields to copy")] = None,
    start: Annotated[str | None, typer.Option(help="without --like: first initialisation")] = None,
    stop: Annotated[str | None, typer.Option(help="without --like: last initialisation, included")] = None,
    every: Annotated[str, typer.Option(help="without --like: interval of the initialisations")] = "24h",
    days: Annotated[float, typer.Option(help="without --like: length of the forecasts")] = 10.0,
    training: Annotated[
        tuple[str, str] | None, typer.Option(help="training period, as 2001-01-01 2005-12-31; that of --like unless given")
    ] = None,
    validation: Annotated[
        tuple[str, str] | None, typer.Option(help="chooses the linear baseline's EOFs; that of --like unless given")
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="members of the linear baseline")] = 50,
    window_days: Annotated[int, typer.Option(help="half width of the climatology's window; widened to reach 30 members")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="seed of the resampled residuals")] = 0,
    out: Annotated[Path | None, typer.Option(help="forecast store; beside --like unless given")] = None,
) -> None:
    """Write a baseline for the same dates as a forecast, in the same form.

    Example: plumecast baseline climatology runs/planet/analysis.zarr --like runs/planet/forecasts/crps-small.zarr
    """
    from data_pipeline import open_analysis, open_forecast
    from data_pipeline.progress import ProgressDisplay
    from forecast import baselines
    from forecast.forecast_commands import inits_of
    from forecast.plan import plan_dates, plan_like
    from forecast.sinks import write_lazy

    data = open_analysis(analysis)
    model = open_forecast(like) if like is not None else None
    if model is not None:
        plan = plan_like(model, data)
    else:
        plan = plan_dates(data, inits_of(data, 1, None, start, stop, every, None, days), days)
    target = out or (like.parent if like is not None else analysis.parent / "forecasts") / f"{kind}.zarr"
    if kind == "persistence":
        made = baselines.persistence(data, plan)
    elif kind == "climatology":
        made = baselines.climatology(data, plan, _period(training, model, "training"), window_days)
    else:
        periods = _period(training, model, "training"), _period(validation, model, "validation")
        made = baselines.linear(data, plan, *periods, members=members, seed=seed)
    with ProgressDisplay(kind, "initialisations") as bar:
        write_lazy(made, target, bar)
    typer.echo(
        f"{made.attrs['model']}: {target}\nnext: plumecast verify {like or target} --truth {analysis} --reference {target}"
    )


def demo(
    members: Annotated[int, typer.Option(min=1, help="ensemble size")] = 24,
    out: Annotated[Path, typer.Option(help="work folder")] = Path("runs/demo"),
) -> None:
    """The whole flow on the packaged planet: ingest, 10-day ensembles with the shipped checkpoint, baselines, scores, report.

    Example: plumecast demo --members 50

    Forecasts 8 initialisations spread over the test year. A second run recomputes nothing that is there.
    """
    from forecast.demo import run_demo

    run_demo(out, members)


def _period(given: tuple[str, str] | None, model: xr.Dataset | None, kind: str) -> tuple[str, str]:
    from data_pipeline.errors import InputError

    if given is not None:
        return given
    stored = str(model.attrs.get(f"{kind}_period", "")) if model is not None else ""
    first, slash, last = stored.partition("/")
    if not slash:
        raise InputError(f"no {kind} period is known: give --{kind} FIRST LAST, or --like a forecast that names one")
    return first, last
