"""`plumecast forecast`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.commands import PrecisionOption

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from forecast.gate import Report
    from forecast.outputs import Outputs
    from forecast.plan import ForecastPlan

WHAT, FROM, KEPT, HOW = "What is made", "What it starts from", "What is kept", "How it is made"
SHOWN = 6  # warnings of the gate


def forecast(
    analysis: Annotated[Path, typer.Argument(help="analysis store (made by `plumecast data ingest`)")],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="checkpoint; repeated: one ensemble, member k comes from number (k - 1) mod J of J. The shipped one of the "
            "planet unless given",
            rich_help_panel=WHAT,
        ),
    ] = None,
    init: Annotated[
        list[str] | None, typer.Option(help="initialisation, as 2007-01-11T00; may be repeated", rich_help_panel=WHAT)
    ] = None,
    start: Annotated[str | None, typer.Option(help="first initialisation of a range", rich_help_panel=WHAT)] = None,
    stop: Annotated[str | None, typer.Option(help="last initialisation of a range, included", rich_help_panel=WHAT)] = None,
    every: Annotated[str, typer.Option(help="interval of the range", rich_help_panel=WHAT)] = "24h",
    count: Annotated[
        int | None, typer.Option(help="this many, spread evenly over the range, instead of --every", rich_help_panel=WHAT)
    ] = None,
    days: Annotated[float, typer.Option(help="length of the forecast", rich_help_panel=WHAT)] = 10.0,
    step: Annotated[
        str | None,
        typer.Option(
            help="lead interval, as 24h, of those that the checkpoint learned; its shortest unless given", rich_help_panel=WHAT
        ),
    ] = None,
    members: Annotated[
        int, typer.Option(min=1, help="ensemble size; member k is the same whatever the size", rich_help_panel=WHAT)
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noise", rich_help_panel=WHAT)] = 0,
    noise_scale: Annotated[
        float | None, typer.Option(help="multiplies the noise; the checkpoint's own unless given", rich_help_panel=WHAT)
    ] = None,
    name: Annotated[str | None, typer.Option(help="name of the model in tables", rich_help_panel=WHAT)] = None,
    boundary: Annotated[
        str | None, typer.Option(help="ring of a regional model: 'truth', or a host forecast store", rich_help_panel=FROM)
    ] = None,
    ring: Annotated[int, typer.Option(min=1, help="width of the ring in cells", rich_help_panel=FROM)] = 3,
    initial_states: Annotated[
        Path | None,
        typer.Option(
            help="store of initial states: member k starts from number k; its initialisations unless given", rich_help_panel=FROM
        ),
    ] = None,
    initial_number: Annotated[
        int | None, typer.Option(help="start every member from this number (0: the analysis)", rich_help_panel=FROM)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="forecast store; beside the analysis unless given", rich_help_panel=KEPT)
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(help="keep only this variable, or field, as geopotential_500; repeat it", rich_help_panel=KEPT),
    ] = None,
    level: Annotated[list[int] | None, typer.Option(help="keep only this level, hPa; repeat it", rich_help_panel=KEPT)] = None,
    output_lead: Annotated[
        list[str] | None, typer.Option(help="keep only this lead, as 24h or 5d; repeat it", rich_help_panel=KEPT)
    ] = None,
    output_every: Annotated[str | None, typer.Option(help="keep only multiples of this, as 24h", rich_help_panel=KEPT)] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(help="make only these members of the ensemble, as 7 or 11-20; repeat it", rich_help_panel=KEPT),
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="keep only WEST,EAST,SOUTH,NORTH in degrees, as -20,40,30,75", rich_help_panel=KEPT)
    ] = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="keep no fields, only the scores", rich_help_panel=KEPT)] = False,
    keep_states: Annotated[
        bool,
        typer.Option(
            "--keep-states", help="keep each member's last state beside the store, to add leads from there", rich_help_panel=KEPT
        ),
    ] = False,
    score_against: Annotated[
        Path | None,
        typer.Option(help="analysis store to score against while sampling, as `plumecast verify`", rich_help_panel=KEPT),
    ] = None,
    climatology: Annotated[
        Path | None, typer.Option(help="of the scores: for anomalies and events", rich_help_panel=KEPT)
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(help="of the scores: '2m_temperature > 303.15' (SI) or '> q0.95'; repeat it", rich_help_panel=KEPT),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="score state; scores/<model>.scores.zarr unless given", rich_help_panel=KEPT)
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1 ...; several, as cuda:0,cuda:1, share the work", rich_help_panel=HOW)
    ] = "cpu",
    precision: PrecisionOption = "float32",
    no_gate: Annotated[
        bool,
        typer.Option("--no-gate", help="only warn of unsound fields; what is not finite is always refused", rich_help_panel=HOW),
    ] = False,
    share: Annotated[
        str | None, typer.Option(help="make share I of N of the store, as 3/10; the last one publishes it", rich_help_panel=HOW)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes on this machine that share the work and its cores", rich_help_panel=HOW)
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="dask scheduler, as tcp://host:8786, whose workers share the work", rich_help_panel=HOW),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check all inputs, show plan, bytes and time, and stop", rich_help_panel=HOW)
    ] = False,
) -> None:
    """Make an ensemble forecast with a checkpoint, or with several.

    Example: plumecast forecast runs/planet/analysis.zarr --start 2007-01-11 --stop 2007-12-21 --count 36 --members 50

    All input times are checked before the weights are read. A killed run continues with the same command. Given more members,
    more days or other initialisations, a finished store is added to, and what is there is not made again; it can be read all the
    while. Other settings at the same place are an error that shows the difference.

    Every lead passes a gate: physical ranges, members that have blown up or are one, fields that have stopped. An unsound
    forecast is not published (exit code 4).

    Without fields: --score-against runs/planet/analysis.zarr --no-store makes the state that `plumecast verify` would make.

    Several GPUs, or machines: torchrun --nproc-per-node 4 -m -- plumecast forecast ANALYSIS ... --device cuda
    """
    import numpy as np

    import models
    from data_pipeline.errors import InputError
    from data_pipeline.progress import ProgressDisplay, table_console
    from forecast.cluster import engaged, run_on
    from forecast.extend import extended
    from forecast.inputs import Inputs
    from forecast.intention import headline, measured_seconds, require_space, show, work_left
    from forecast.outputs import Outputs, Scores, make
    from forecast.plan import whole_hours
    from forecast.rollout import check_all, make_plan
    from forecast.shares import share_of, still_missing, tasks_of
    from forecast.subset import subset

    if no_store and score_against is None:
        raise InputError("--no-store keeps nothing: give --score-against too")
    if score_against is None and (climatology or event or scores):
        raise InputError("--climatology, --event and --scores are of scores: give --score-against too")
    mine, device = share_of(share, device)
    devices = [name.strip() for name in device.split(",")]
    if score_against is not None and (mine is not None or workers is not None or cluster is not None):
        raise InputError("--score-against needs all members in one process: leave out --share, --workers, --cluster")
    inputs = Inputs(
        analysis, tuple(checkpoint or [models.shipped()]), None if step is None else whole_hours(step), precision, boundary, ring,
        initial_states, initial_number,
    )  # fmt: skip
    outlines = inputs.open(weights=False)
    generators, data, ringed, started = outlines
    spec = generators[0].spec
    if started is not None and not (init or start or stop or count):
        times = started.data["time"].values
    else:
        times = inits_of(data, max(each.spec.frames for each in generators), init, start, stop, every, count, days, spec.step)
    crew = engaged(cluster, workers, alone=mine is None and len(devices) == 1)  # before the plan, which records threads
    plan = make_plan(
        generators, data, times, days=days, members=numbers_of(member) if member else members, seed=seed, boundary=ringed,
        name=name, noise_scale=noise_scale, initial=started,
    )  # fmt: skip
    hours = [_hours(text) for text in output_lead or []] + _multiples(output_every, plan)
    plan = subset(plan, variables=variable or [], levels=level or [], hours=hours, region=_box(region))
    target = out or analysis.parent / "forecasts" / f"{(name or plan.attrs['model']).replace(' ', '-')}.zarr"
    if not no_store:
        plan = extended(plan, target)
    work = work_left(plan, None if no_store else target, spec.step)
    if work.times.size:  # with those of the store that is added to
        steps = spec.step * np.arange(1, round(plan.leads[-1] / spec.step) + 1)
        check_all(generators, data, work.times, steps, plan.members, boundary=ringed, initial=started)
    state = None
    if score_against is not None:
        beside = target.parent.parent if target.parent.name == "forecasts" else target.parent
        state = scores or beside / "scores" / f"{target.stem}.scores.zarr"
    kept = Outputs(
        None if no_store else target, not no_gate, keep_states or work.has_states,
        None if state is None or score_against is None
        else Scores(state, score_against, climatology, None if event is None else tuple(event)),
    )  # fmt: skip
    typer.echo(headline(plan, state if no_store else target))
    if work.goes_on and not work.has_states:
        typer.echo(
            "states of the last leads were not kept (--keep-states): the leads that are there are computed again, with the same "
            "numbers, and only the new ones are written"
        )
    if dry_run:
        seconds = None if work.is_done else measured_seconds(work, inputs.open(devices[0]), devices if len(devices) > 1 else ())
        show(table_console(), work, kept, seconds)
        typer.echo("nothing was written (--dry-run)")
        return
    if work.is_done and state is None:
        typer.echo(f"nothing to do: {target} holds all of it\nnext: plumecast verify {target} --truth {analysis}")
        return
    if not no_store:
        require_space(work, target)
    report: Report | None = None
    with ProgressDisplay(f"forecast {mine}" if mine else "forecast", "fields") as bar:
        if crew is not None:
            with crew as address:
                run_on(
                    address, inputs, plan, kept, device=device, report=lambda step: bar(step.done, step.total), remark=typer.echo
                )  # fmt: skip
        else:
            report = make(
                plan, inputs.open(devices[0]), kept,
                only=None if mine is None else mine.of(tasks_of(plan, len(generators), device)),
                devices=devices if len(devices) > 1 else (), report=lambda step: bar(step.done, step.total), remark=typer.echo,
            ).report  # fmt: skip
    if mine is not None and (left := still_missing(target)):
        typer.echo(f"share {mine} is made; {target}: {left}. Whoever completes the last one publishes it")
        return
    _tell(kept, report, analysis)


def _tell(kept: Outputs, report: Report | None, analysis: Path) -> None:
    """What the gate found, where the result lies, and what to do next."""
    from data_pipeline import open_forecast
    from forecast.gate import report_of

    if kept.store is not None:
        report = report_of(open_forecast(kept.store))
    if report is not None:
        warnings = report.of("warn")
        typer.echo(f"gate: {report.checked:,} leads of members, {len(warnings) or 'no'} warning{'s' * (len(warnings) > 1)}")
        for finding in warnings[:SHOWN]:
            typer.echo(f"  {finding}")
    if kept.store is not None:
        typer.echo(f"forecast: {kept.store}")
    if kept.scores is not None:
        typer.echo(f"scores: {kept.scores.out}\nnext: plumecast report {kept.scores.out}")
    else:
        typer.echo(f"next: plumecast verify {kept.store} --truth {analysis}")


def numbers_of(texts: Sequence[str]) -> list[int]:
    """Member numbers, as 7 or 11-20. Raises InputError for anything else."""
    from data_pipeline.errors import InputError

    numbers: set[int] = set()
    for text in texts:
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]):
            raise InputError(f"--member {text!r}: expected a number from 1 on, or a range as 11-20")
        numbers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return sorted(numbers)


def _hours(text: str) -> int:
    from data_pipeline.errors import InputError

    found = re.fullmatch(r"(\d{1,5})([hd])", text.strip())
    if not found or int(found[1]) < 1:
        raise InputError(f"lead {text!r}: expected hours or days, as 24h or 5d")
    return int(found[1]) * (24 if found[2] == "d" else 1)


def _multiples(text: str | None, plan: ForecastPlan) -> list[int]:
    """Leads of a plan, in hours, that are multiples of an interval. Raises InputError if there is none."""
    import numpy as np

    from data_pipeline.errors import InputError

    if text is None:
        return []
    every, hours = _hours(text), (plan.leads / np.timedelta64(1, "h")).astype(int)
    found: list[int] = hours[hours % every == 0].tolist()
    if not found:
        raise InputError(f"--output-every {text}: none of the leads {hours[0]} .. {hours[-1]} h is a multiple of it")
    return found


def _box(text: str | None) -> tuple[float, float, float, float] | None:
    from data_pipeline.errors import InputError

    if text is None:
        return None
    try:
        west, east, south, north = (float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--region {text!r}: expected WEST,EAST,SOUTH,NORTH in degrees, as -20,40,30,75") from None
    return west, east, south, north


def inits_of(
    analysis: xr.Dataset, frames: int, init: list[str] | None, start: str | None, stop: str | None, every: str, count: int | None,
    days: float, step: np.timedelta64 | None = None,
) -> np.ndarray:  # fmt: skip
    """The initialisations that a command names, one by one or as a range. Raises InputError for anything else."""
    import numpy as np

    from forecast.initial_states import spread_evenly
    from forecast.initialisations import chosen, named

    if start and stop and not init and count is not None and step is not None:
        named([start, stop])
        return spread_evenly(analysis, frames, step, (start, stop), count, np.timedelta64(round(days * 24), "h"))
    return chosen(init, start, stop, every, also=" or --count")
