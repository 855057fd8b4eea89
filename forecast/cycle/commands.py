"""`plumecast cycle run | tick | serve | status | verify | list | check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import datetime as dt

    from forecast.cycle.job import Job
    from forecast.cycle.status import Writer
    from forecast.cycle.worker import Outcome

Recipe = Annotated[Path, typer.Argument(help="TOML recipe of a schedule, for example recipes/cycle_planet.toml")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="override, as forecast.members=50")]
Now = Annotated[str | None, typer.Option(help="act as if it were this time, UTC, as 2005-03-01T06:00; for tests")]


def register(app: typer.Typer) -> None:
    """Mount `plumecast cycle`."""
    cycle = typer.Typer(no_args_is_help=True, help="Scheduled forecasts: make what is due, publish, watch, verify.")
    cycle.command(short_help="Make the run of one initialisation.")(run)
    cycle.command(short_help="Do whatever is due and leave: for cron and systemd.")(tick)
    cycle.command(short_help="Stay and do whatever becomes due.")(serve)
    cycle.command(short_help="How things stand; writes the status page.")(status)
    cycle.command(short_help="Score past runs; keep the scorecard.")(verify)
    cycle.command("list", short_help="The published runs.")(listing)
    cycle.command(short_help="Read every byte of published runs again.")(check)
    app.add_typer(cycle, name="cycle")


def run(
    recipe: Recipe,
    init: Annotated[str, typer.Option(help="initialisation, as 2005-03-01T00")],
    settings: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="make a revision of a published run; the published one stays")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check data and disk, show the plan and stop")] = False,
    now: Now = None,
) -> None:
    """Example: plumecast cycle run recipes/cycle_planet.toml --init 2005-03-01T00

    Make and publish one run, whether due or stale. One that is published is left alone; one that was killed goes on from what is
    staged. Leaves with 3 if its data are not there yet, 4 if it fails its gate (then it is in quarantine), 130 if stopped.
    """
    from forecast.archive import parse_init
    from forecast.cycle import status, worker

    stamp = parse_init(init)
    if dry_run:
        _show_plan(_job(recipe, settings, now, looks=True), stamp)
        return
    write = status.Writer()
    job = _job(recipe, settings, now, write)
    published = worker.ask(job, stamp, force=force)
    if published is not None:
        typer.echo(f"{published.path}: published already, nothing to do (--force makes a revision)")
        return
    outcome = worker.run_one(job, stamp)
    worker.settle(job)
    write(job)
    _leave([outcome], job, recipe)


def tick(recipe: Recipe, settings: Settings = None, now: Now = None) -> None:
    """Example: plumecast cycle tick recipes/cycle_planet.toml

    Make and publish every run that is due and leave, newest first. Code 0: all that is due is published; 3: a cycle waits for its
    data; 4: one failed its gate; 2: one had bad data; 1: one is to be tried again, as on a full disk; 130: stopped.
    """
    from forecast.cycle import status, worker

    write = status.Writer()
    job = _job(recipe, settings, now, write)
    outcomes = worker.tick(job, write)
    if not outcomes:
        typer.echo(f"nothing is due; {_coming(job)}")
    _leave(outcomes, job, recipe)


def serve(
    recipe: Recipe,
    settings: Settings = None,
    verify_runs: Annotated[bool, typer.Option("--verify/--no-verify", help="score past runs between cycles")] = True,
) -> None:
    """Example: plumecast cycle serve recipes/cycle_planet.toml

    Stay, and make every run as it becomes due. Ctrl-C or SIGTERM: stop after the present step; what is staged goes on next time.
    A second one aborts.
    """
    from data_pipeline.errors import PlumecastError
    from forecast.cycle import status, verify, worker

    write = status.Writer()
    job = _job(recipe, settings, None, write)
    typer.echo(f"serving {job.archive.folder}; status: {job.archive.folder / 'status.html'}; Ctrl-C stops")
    known: set[str] = set()

    def show(job: Job) -> None:
        write(job)
        names = {run.name for run in job.archive.runs()}
        for name in sorted(names - known):
            typer.echo(f"published: {name}")
        fresh = bool(names - known)
        known.update(names)
        if fresh and verify_runs:
            try:
                verify.verify(job)
            except PlumecastError as error:
                typer.echo(f"not verified: {error}", err=True)
            write(job)

    worker.serve(job, show, lambda text: typer.echo(text, err=True))
    typer.echo(f"stopped by {job.stop.reason}; what is staged goes on at the next start")
    raise typer.Exit(130)


def status(recipe: Recipe, settings: Settings = None, now: Now = None) -> None:
    """Example: plumecast cycle status recipes/cycle_planet.toml

    How things stand: the latest run and its age, what is next, the last cycles and why each was late. Writes status.json,
    status.prom and status.html beside the runs.
    """
    from rich.table import Table

    from data_pipeline.progress import table_console
    from forecast.cycle import status as outputs
    from forecast.cycle.page import health, span, stamp, took

    job = _job(recipe, settings, now)
    found, console = outputs.write(job), table_console()
    latest = found["latest"]
    typer.echo(f"{found['model']}: {health(found)[1]}")
    if latest is not None:
        typer.echo(
            f"latest: {latest['run']}, {span(latest['age_hours'])} after its initialisation"
            + (f"; OLD: {latest['old_because']}" if latest["old"] else "")
        )
    typer.echo(_coming(job))
    table = Table(box=None)
    for name in ("initialisation", "state", "after due", "took", "why"):
        table.add_column(name, justify="right" if name in ("after due", "took") else "left")
    for cycle in found["cycles"][-16:]:
        delay, seconds = cycle["delay_hours"], cycle["seconds"]
        why = cycle["held_up_by"] if cycle["state"] == "published" else [cycle["reason"]]
        table.add_row(
            stamp(cycle["init"]), cycle["label"], "" if delay is None else span(delay), took(seconds) if seconds else "",
            "; ".join(why).replace("\n", " ")[:120],
        )  # fmt: skip
    console.print(table)
    typer.echo(f"page: {(job.archive.folder / 'status.html').resolve()}")


def verify(recipe: Recipe, settings: Settings = None, now: Now = None) -> None:
    """Example: plumecast cycle verify recipes/cycle_planet.toml

    Score every published run whose valid times have analyses by now, compare successive runs for the same valid times, and write
    the scorecard. What was scored before is not scored again; scores that touch the checkpoint's training period are marked.
    """
    from forecast.cycle import status as outputs
    from forecast.cycle import verify as scores
    from forecast.cycle.page import hours, number

    job = _job(recipe, settings, now)
    card = scores.verify(job, typer.echo)
    outputs.write(job)
    typer.echo(f"{card['runs']} runs verified")
    for channel, own in card["channels"].items():
        crps, rmse, ratio = (number(own[name][-1]) for name in ("crps", "rmse", "ssr"))
        typer.echo(
            f"  {channel} {hours(own['lead_hours'][-1])}: fair CRPS {crps}, RMSE {rmse}, spread/skill {ratio}, "
            f"bias {number(own['bias'][-1], signed=True)}, n {own['n'][-1]}"
        )
    if card.get("in_sample"):
        typer.secho(card["in_sample_text"], fg="red")
    typer.echo(f"next: open {(job.archive.folder / 'status.html').resolve()}")


def listing(recipe: Recipe, settings: Settings = None) -> None:
    """Example: plumecast cycle list recipes/cycle_planet.toml

    Each published run, oldest first: when it was published, its size, and what retention would take.
    """
    from forecast.cycle.page import size
    from forecast.retention import removable

    job = _job(recipe, settings, None, looks=True)
    runs, latest = job.archive.runs(), job.archive.latest()
    going = removable(runs, latest, job.recipe.retention.policy, job.clock.now())
    for run in runs:
        about = run.manifest()
        notes = ["latest"] if run == latest else []
        notes += ["protected"] if run.name in job.recipe.retention.protect else []
        notes += ["to be removed"] if run in going else []
        total = sum(count for count, _ in about["files"].values())
        columns = (f"{run.name:16}", about["published_at"], f"{size(total):>8}", f"{about['members']} members", ", ".join(notes))
        typer.echo("  ".join(columns).rstrip())
    typer.echo(f"{len(runs)} runs in {job.archive.folder}\nnext: plumecast cycle check {recipe} reads them again")


def check(recipe: Recipe, settings: Settings = None) -> None:
    """Example: plumecast cycle check recipes/cycle_planet.toml

    Read every file of every published run and compare its SHA-256 with the manifest. Leaves with code 2 if anything differs.
    """
    from data_pipeline.errors import InputError
    from forecast.archive import faults_of

    job = _job(recipe, settings, None, looks=True)
    faults = [f"{run.name}/{fault}" for run in job.archive.runs() for fault in faults_of(run)]
    if faults:
        raise InputError(f"{job.archive.folder}:\n" + "\n".join(f"  - {fault}" for fault in faults))
    typer.echo(f"{job.archive.folder}: all files of {len(job.archive.runs())} runs are as published")


def _job(recipe: Path, settings: list[str] | None, now: str | None, writer: Writer | None = None, *, looks: bool = False) -> Job:
    """The schedule of a recipe, with its clock; signals ask it to stop. looks: no ledger is made where there is none yet."""
    import datetime as dt

    from data_pipeline.errors import InputError
    from forecast.cycle import clock as clocks
    from forecast.cycle.job import Job, Stop, ledger_path
    from forecast.cycle.ledger import Ledger
    from forecast.cycle.recipe import read_cycle

    found = read_cycle(recipe, settings or [])
    clock = clocks.Clock()
    if now is not None:
        try:
            given = dt.datetime.fromisoformat(now)
            clock = clocks.fixed(given.astimezone(dt.UTC).replace(tzinfo=None) if given.tzinfo else given)
        except ValueError:
            raise InputError(f"--now {now!r}: expected a time in UTC, as 2005-03-01T06:00") from None
    kept = ledger_path(found.place)
    ledger = Ledger(Path(":memory:") if looks and not kept.exists() else kept, clock)
    if now is None and found.clock is not None:
        begun = ledger.noted("clock begun")
        if begun is None:
            begun = clocks.utc_now().isoformat()
            ledger.note("clock begun", begun)
        start = dt.datetime.fromisoformat(found.clock.start)
        clock = ledger.clock = clocks.simulated(start, found.clock.speed, dt.datetime.fromisoformat(begun))
    stop = Stop()
    stop.on_signals()
    if writer is None:
        return Job(found, ledger, clock, stop)
    return Job(found, ledger, clock, stop, writer.sometimes)


def _show_plan(job: Job, init: dt.datetime) -> None:
    import tempfile

    import numpy as np

    from forecast import retention
    from forecast.archive import init_name
    from forecast.cycle import source, stages, states

    section = job.recipe.forecast
    generators = stages.loaded(section)
    with tempfile.TemporaryDirectory() as folder:
        frames = source.fetch(
            job.recipe.analyses, job.recipe.schedule, generators[0].spec, init, job.clock.now(), Path(folder) / "initial.zarr"
        )
        if section.initial_states is not None:
            states.check(section.initial_states, frames, generators[0].spec, np.datetime64(init, "ns"), section.members)
        plan = stages.planned(section, generators, frames, init, job.archive.model)
    free = retention.free_bytes(job.archive.folder)
    typer.echo(
        f"{init_name(init)}: {len(plan.members)} members x {plan.leads.size} leads of {len(plan.channels)} fields, {plan.grid}; "
        f"{plan.bytes / 1e6:,.0f} MB before compression, {free / 1e6:,.0f} MB free -> {job.archive.run(init)}\n"
        "its data are there and in order; nothing was written (--dry-run)"
    )


def _coming(job: Job) -> str:
    from forecast.archive import init_name
    from forecast.cycle import schedule

    init, at = schedule.next_due(job.recipe.schedule, job.clock.now())
    return f"next: {init_name(init)}, due at {at:%Y-%m-%d %H:%M} UTC (now {job.clock.now():%Y-%m-%d %H:%M})"


def _leave(outcomes: list[Outcome], job: Job, recipe: Path) -> None:
    from forecast.archive import init_name
    from forecast.cycle.worker import exit_code

    for outcome in outcomes:
        typer.echo(f"{init_name(outcome.init)} {outcome.kind}: {outcome.reason}", err=outcome.code not in (0, 3))
    typer.echo(f"status: {job.archive.folder / 'status.html'}\nnext: plumecast cycle status {recipe}")
    code = exit_code(outcomes)
    if code:
        raise typer.Exit(code)
