"""`plumecast data ingest | info | check | statistics | climatology`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(help="TOML recipe, for example recipes/planet.toml")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="override, as source.path=FOLDER")]
Out = Annotated[Path | None, typer.Option(help="work folder; runs/<recipe name> unless given")]
Store = Annotated[Path, typer.Argument(help="an analysis store, for example runs/planet/analysis.zarr")]


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    data = typer.Typer(no_args_is_help=True, help="Analyses: ingest, look at, check, statistics, climatology.")
    data.command(short_help="Bring a source into an analysis store.")(ingest)
    data.command(short_help="What a store holds and where it comes from.")(info)
    data.command(short_help="Read every byte and value of a store again.")(check)
    data.command(short_help="Mean, std and tendency std of the training period.")(statistics)
    data.command(short_help="Mean, std and quantiles by hour and day of year.")(climatology)
    app.add_typer(data, name="data")


def ingest(
    recipe: Recipe,
    settings: Settings = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check recipe and source, show the plan and stop")] = False,
) -> None:
    """Example: plumecast data ingest recipes/planet.toml --set source.path=FOLDER

    Bring a source into <out>/analysis.zarr: chosen channels, one grid, one step, every block checked. Stop it at any time: the
    same command continues. Run again when finished, it changes nothing.
    """
    from data_pipeline import ingest as ingesting
    from data_pipeline import store
    from data_pipeline.listing import show_plan
    from data_pipeline.progress import ProgressDisplay
    from data_pipeline.recipe import read_recipe

    parts = read_recipe(recipe, settings or [])
    path = _folder(parts["name"], out) / "analysis.zarr"
    if dry_run:
        show_plan(parts, path)
        return
    was_there = store.is_store(path)
    with ProgressDisplay("ingest", "stamps") as progress:
        ingesting.ingest(parts, path, progress=progress)
    state = "already finished by this recipe, nothing to do" if was_there else "finished"
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

    Read a finished store again: every file against the manifest, the schema, stamps, missing values, physical ranges. Leaves with
    code 2 if anything is wrong.
    """
    from data_pipeline import quality
    from data_pipeline.errors import InputError
    from data_pipeline.opening import open_analysis
    from data_pipeline.store import read_manifest, verify_store

    faults = verify_store(store)
    if not faults:
        data = open_analysis(store)
        report = quality.check(data, step=data.attrs.get("step"), gaps="allow" if data.attrs.get("gaps") else "error")
        faults = [str(finding) for finding in report.errors]
        for finding in report.findings:
            if finding.severity == "note":
                typer.echo(f"note: {finding}")
    if faults:
        raise InputError(f"{store} is damaged or faulty; remove it and ingest again:\n" + "\n".join(f"  - {f}" for f in faults))
    files = read_manifest(store)["files"]
    size = sum(entry[0] for entry in files.values()) / 1e6
    typer.echo(f"{store}: {len(files)} files, {size:.1f} MB, all as written; schema and values are in order")


def statistics(recipe: Recipe, settings: Settings = None, out: Out = None) -> None:
    """Example: plumecast data statistics recipes/planet.toml

    Mean, standard deviation and one-step tendency of each channel over the training period, into <out>/statistics.zarr.
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
    cluster: Annotated[str | None, typer.Option(help="dask scheduler, as tcp://host:8786; default: threads here")] = None,
) -> None:
    """Example: plumecast data climatology recipes/planet.toml --quantile 0.1 --quantile 0.9

    Mean, standard deviation and quantiles by hour and day of year over the training period, into <out>/climatology.zarr. Killed
    and run again, it continues.
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


def _again(out: Path | None) -> str:
    return f" --out {out}" if out else ""


def _folder(name: str, out: Path | None) -> Path:
    return out or Path("runs") / name
