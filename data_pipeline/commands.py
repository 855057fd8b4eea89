"""`plumecast data ingest | info | check | statistics | climatology`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(help="TOML recipe, for example recipes/planet.toml")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="override, as source.path=FOLDER")]
Cluster = Annotated[str | None, typer.Option(help="dask scheduler, as tcp://host:8786; default: threads here")]
Out = Annotated[Path | None, typer.Option(help="work folder; runs/<recipe name> unless given")]
Store = Annotated[Path, typer.Argument(help="an analysis store, for example runs/planet/analysis.zarr")]


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    from data_pipeline.planet.commands import simulate

    data = typer.Typer(no_args_is_help=True, help="Analyses: ingest, look at, check, statistics, climatology.")
    data.command(short_help="Bring a source into an analysis store.")(ingest)
    data.command(short_help="What a store holds and where it comes from.")(info)
    data.command(short_help="Read every byte and value of a store again.")(check)
    data.command(short_help="Mean, std and tendency std of the training period.")(statistics)
    data.command(short_help="Mean, std and quantiles by hour and day of year.")(climatology)
    data.command(short_help="A planet with a known truth: nature runs, physics ensembles.")(simulate)
    app.add_typer(data, name="data")


def ingest(
    recipe: Recipe,
    settings: Settings = None,
    out: Out = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="add later stamps to a finished store; it is replaced at once")
    ] = False,
    cluster: Cluster = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check recipe and source, show the plan and stop")] = False,
) -> None:
    """Example: plumecast data ingest recipes/planet.toml --set source.path=FOLDER

    Bring a source into <out>/analysis.zarr: chosen channels, one grid, one step, every field checked. Stop it at any time: the
    same command continues. Started several times at once, the processes share the work. Run again when finished, it changes
    nothing; with a later analysis.stop and --extend, it adds what is new.
    """
    from data_pipeline import ingest as ingesting
    from data_pipeline.listing import show_plan
    from data_pipeline.progress import ProgressDisplay
    from data_pipeline.recipe import read_recipe

    parts = read_recipe(recipe, settings or [])
    path = _folder(parts["name"], out) / "analysis.zarr"
    if dry_run:
        show_plan(parts, path)
        return
    before = _published(path)
    with ProgressDisplay("ingest", "stamps") as progress:
        ingesting.ingest(parts, path, extend=extend, cluster=cluster, progress=progress)
    nothing = before is not None and before == _published(path)
    state = "already finished by this recipe, nothing to do" if nothing else "finished" if before is None else "extended"
    typer.echo(f"{path}: {state}\nnext: plumecast data info {path}, or plumecast train {recipe}{_again(out)}")


def info(
    store: Annotated[Path, typer.Argument(help="an analysis store, or anybody's files: GRIB, NetCDF, zarr")],
) -> None:
    """Example: plumecast data info runs/planet/analysis.zarr

    What a store holds: grid, period, step, holes, each channel's range and share of finite values, how the source was mapped, and
    where it comes from. For other people's files: what they would be in the schema, and what they lack.
    """
    from data_pipeline.listing import show_files, show_store
    from data_pipeline.opening import open_analysis
    from data_pipeline.store import is_store, partial_path

    if not is_store(store) and not partial_path(store).exists():
        show_files(store)
        return
    show_store(open_analysis(store, allow_incomplete=True), store)
    typer.echo(f"{store}\nnext: plumecast data check {store} reads every byte and every value again")


def check(store: Store) -> None:
    """Example: plumecast data check runs/planet/analysis.zarr

    Read a finished store again: every file against the manifest, every chunk against its checksum, the schema, stamps, missing
    values, physical ranges, and each part against what was noted when it was written. Leaves with code 2 if anything is wrong.
    """
    import pandas as pd

    from data_pipeline import quality
    from data_pipeline.errors import InputError
    from data_pipeline.kept import read_kept, unlike
    from data_pipeline.opening import open_analysis
    from data_pipeline.schema import channels_of
    from data_pipeline.store import read_manifest, verify_store

    faults = verify_store(store)
    if not faults:
        data, kept = open_analysis(store), read_kept(store)
        measures = quality.measured(data, channels_of(data))
        report = quality.judge(measures)
        report.findings += quality.check_stamps(
            pd.DatetimeIndex(data["time"].values),
            step=data.attrs.get("step"),
            gaps="allow" if data.attrs.get("gaps") else "error",
        )
        accepted = '"faults": "allow"' in data.attrs.get("recipe", "")
        faults = [] if accepted else [str(finding) for finding in report.errors]
        faults += unlike(kept, measures) if kept is not None else []
        for finding in report.findings:
            if accepted or finding.severity == "note":
                typer.echo(f"note: {finding}")
    if faults:
        raise InputError(f"{store} is damaged or faulty; remove it and ingest again:\n" + "\n".join(f"  - {f}" for f in faults))
    files = read_manifest(store)["files"]
    size = sum(entry[0] for entry in files.values()) / 1e6
    typer.echo(f"{store}: {len(files)} files, {size:.1f} MB, all as written; schema and values are in order")


def statistics(recipe: Recipe, settings: Settings = None, out: Out = None) -> None:
    """Example: plumecast data statistics recipes/planet.toml

    Mean, standard deviation and tendency over the step and over 6, 12 and 24 h of each channel in the training period, into
    <out>/statistics.zarr. Whole parts are not read again: the ingest summed them up. After ingest --extend they are made again.
    """
    from data_pipeline.derived import make_statistics
    from data_pipeline.listing import show_statistics
    from data_pipeline.recipe import read_recipe
    from data_pipeline.store import open_store

    parts = read_recipe(recipe, settings or [])
    path = make_statistics(parts, _folder(parts["name"], out))
    show_statistics(open_store(path))
    typer.echo(f"{path}\nnext: plumecast train {recipe}{_again(out)}")


def climatology(
    recipe: Recipe,
    settings: Settings = None,
    out: Out = None,
    window_days: Annotated[int, typer.Option(help="days either side, weights falling linearly to zero")] = 30,
    quantile: Annotated[list[float] | None, typer.Option(help="quantile between 0 and 1; repeat for more")] = None,
    cluster: Cluster = None,
) -> None:
    """Example: plumecast data climatology recipes/planet.toml --quantile 0.1 --quantile 0.9

    Mean, standard deviation and quantiles by hour and day of year over the training period, into <out>/climatology.zarr. Killed
    and run again, it continues. After ingest --extend it is made again.
    """
    from data_pipeline.derived import make_climatology
    from data_pipeline.errors import InputError
    from data_pipeline.progress import ProgressDisplay
    from data_pipeline.recipe import read_recipe

    levels = sorted(quantile or [])
    if any(not 0 <= level <= 1 for level in levels):
        raise InputError(f"--quantile {levels}: expected numbers from 0 to 1")
    parts = read_recipe(recipe, settings or [])
    with ProgressDisplay("climatology", "boxes") as progress:
        path = make_climatology(
            parts, _folder(parts["name"], out), window_days=window_days, quantiles=levels, cluster=cluster, progress=progress
        )
    typer.echo(f"{path}\nnext: open it with xarray.open_zarr, or draw it with plumecast map")


def _published(path: Path) -> str | None:
    """What is published there, to see whether it changed."""
    from data_pipeline.store import MANIFEST, is_store

    return (path / MANIFEST).read_text() if is_store(path) else None


def _again(out: Path | None) -> str:
    return f" --out {out}" if out else ""


def _folder(name: str, out: Path | None) -> Path:
    return out or Path("runs") / name
