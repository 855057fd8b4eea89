"""`plumecast live`, `plumecast forecast`, `plumecast baseline`, `plumecast demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from forecast import calibration_commands, product_commands, state_commands, store_commands
from forecast.cycle import commands as cycle_commands
from models.commands import PrecisionOption

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    app.command()(live)
    state_commands.register(app)
    store_commands.register(app)
    app.command()(forecast)
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


def forecast(
    analysis: Annotated[Path, typer.Argument(help="analysis store (made by `plumecast data ingest`)")],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="checkpoint; repeated: one ensemble, members shared out. The shipped one of the planet unless given"),
    ] = None,
    init: Annotated[list[str] | None, typer.Option(help="initialisation, as 2007-01-11T00; may be repeated")] = None,
    start: Annotated[str | None, typer.Option(help="first initialisation of a range")] = None,
    stop: Annotated[str | None, typer.Option(help="last initialisation of a range, included")] = None,
    every: Annotated[str, typer.Option(help="interval of the range")] = "24h",
    count: Annotated[int | None, typer.Option(help="this many, spread evenly over the range, instead of --every")] = None,
    days: Annotated[float, typer.Option(help="length of the forecast")] = 10.0,
    step: Annotated[
        str | None, typer.Option(help="lead interval, as 24h, of those that the checkpoint learned; its shortest unless given")
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="ensemble size; member k is the same whatever the size")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noise")] = 0,
    noise_scale: Annotated[float | None, typer.Option(help="multiplies the noise; the checkpoint's own unless given")] = None,
    boundary: Annotated[str | None, typer.Option(help="ring of a regional model: 'truth', or a host forecast store")] = None,
    ring: Annotated[int, typer.Option(min=1, help="width of the ring in cells")] = 3,
    initial_states: Annotated[
        Path | None, typer.Option(help="store of initial states: member k starts from number k; its initialisations unless given")
    ] = None,
    initial_number: Annotated[int | None, typer.Option(help="start every member from this number (0: the analysis)")] = None,
    name: Annotated[str | None, typer.Option(help="name of the model in tables")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; several, as cuda:0,cuda:1, share the work")] = "cpu",
    precision: PrecisionOption = "float32",
    out: Annotated[Path | None, typer.Option(help="forecast store; beside the analysis unless given")] = None,
    share: Annotated[str | None, typer.Option(help="make share I of N of the store, as 3/10; the last one publishes it")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes on this machine that share the work and its cores")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="dask scheduler, as tcp://host:8786, whose workers share the work")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all inputs, show the plan and stop")] = False,
) -> None:
    """Make an ensemble forecast with a checkpoint, or with several: member k comes from number (k - 1) mod J of J.

    Example: plumecast forecast runs/planet/analysis.zarr --start 2007-01-11 --stop 2007-12-21 --count 36 --members 50

    All input times are checked before anything is computed. A killed run continues with the same command; a finished one is left
    alone; other settings at the same place are an error that shows the difference. Several GPUs, or machines:
    torchrun --nproc-per-node 4 -m plumecast forecast ANALYSIS ... --device cuda
    """
    import models
    from data_pipeline.progress import ProgressDisplay
    from forecast.cluster import engaged, run_on
    from forecast.inputs import Inputs
    from forecast.plan import whole_hours
    from forecast.rollout import make_plan, run
    from forecast.shares import share_of, still_missing, tasks_of
    from forecast.sinks import ZarrSink

    mine, device = share_of(share, device)
    devices = [name.strip() for name in device.split(",")]
    inputs = Inputs(
        analysis, tuple(checkpoint or [models.shipped()]), None if step is None else whole_hours(step), precision, boundary, ring,
        initial_states, initial_number,
    )  # fmt: skip
    generators, data, ringed, started = inputs.open(devices[0])
    spec = generators[0].spec
    if started is not None and not (init or start or stop or count):
        times = started.data["time"].values
    else:
        times = _inits(data, max(each.spec.frames for each in generators), init, start, stop, every, count, days, spec.step)
    crew = engaged(cluster, workers, alone=mine is None and len(devices) == 1)
    plan = make_plan(
        generators, data, times, days=days, members=members, seed=seed, boundary=ringed, name=name, noise_scale=noise_scale,
        initial=started,
    )  # fmt: skip
    target = out or analysis.parent / "forecasts" / f"{(name or plan.attrs['model']).replace(' ', '-')}.zarr"
    typer.echo(
        f"{plan.attrs['model']}: {plan.times.size} initialisations x {members} members x {plan.leads.size} leads of "
        f"{len(plan.channels)} fields on {plan.grid}; {plan.bytes / 1e6:,.0f} MB before compression -> {target}"
    )
    if dry_run:
        typer.echo(f"{plan.times.size * members * plan.leads.size:,} network passes; nothing was written (--dry-run)")
        return
    with ProgressDisplay(f"forecast {mine}" if mine else "forecast", "fields") as bar:
        if crew is not None:
            with crew as address:
                run_on(
                    address,
                    inputs,
                    plan,
                    target,
                    device=device,
                    report=lambda step: bar(step.done, step.total),
                    remark=typer.echo,
                )
        else:
            sink = ZarrSink(target, only=None if mine is None else mine.of(tasks_of(plan, len(generators), device)))
            try:
                run(
                    generators, data, plan, [sink], boundary=ringed, initial=started, devices=devices if len(devices) > 1 else (),
                    report=lambda step: bar(step.done, step.total),
                )  # fmt: skip
            finally:
                sink.release()
    if mine is not None and (left := still_missing(target)):
        typer.echo(f"share {mine} is made; {target}: {left}. Whoever completes the last one publishes it")
        return
    typer.echo(f"forecast: {target}\nnext: plumecast verify {target} --truth {analysis}")


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
    from forecast.plan import plan_dates, plan_like
    from forecast.sinks import write_lazy

    data = open_analysis(analysis)
    model = open_forecast(like) if like is not None else None
    if model is not None:
        plan = plan_like(model, data)
    else:
        plan = plan_dates(data, _inits(data, 1, None, start, stop, every, None, days), days)
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


def _inits(
    analysis: xr.Dataset, frames: int, init: list[str] | None, start: str | None, stop: str | None, every: str, count: int | None,
    days: float, step: np.timedelta64 | None = None,
) -> np.ndarray:  # fmt: skip
    import numpy as np
    import pandas as pd

    from data_pipeline.errors import InputError
    from forecast.initial_states import spread_evenly

    try:
        if init and not (start or stop):
            return pd.DatetimeIndex(init).to_numpy()
        if start and stop and not init:
            if count is None or step is None:
                return pd.date_range(start, stop, freq=every).to_numpy()
            return spread_evenly(analysis, frames, step, (start, stop), count, np.timedelta64(round(days * 24), "h"))
    except ValueError as error:
        raise InputError(f"initialisations: {error}; write stamps as 2007-01-11T00, intervals as 24h") from None
    raise InputError("give --init (repeated), or --start and --stop with --every or --count")


def _period(given: tuple[str, str] | None, model: xr.Dataset | None, kind: str) -> tuple[str, str]:
    from data_pipeline.errors import InputError

    if given is not None:
        return given
    stored = str(model.attrs.get(f"{kind}_period", "")) if model is not None else ""
    first, slash, last = stored.partition("/")
    if not slash:
        raise InputError(f"no {kind} period is known: give --{kind} FIRST LAST, or --like a forecast that names one")
    return first, last
