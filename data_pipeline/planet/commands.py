"""`plumecast data simulate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from data_pipeline.planet.ensembles import Kind


def simulate(
    recipe: Annotated[
        Path | None, typer.Argument(help="TOML recipe with a section nature or ensemble, as recipes/planet_physics.toml")
    ] = None,
    nature: Annotated[int | None, typer.Option(min=1, metavar="YEARS", help="a nature run of this many years")] = None,
    ensemble: Annotated[
        Literal["perfect", "imperfect"] | None,
        typer.Option(
            help="forecasts by the model itself (T31), or by a coarser one (T21), as the recipe's section ensemble says"
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="override, as nature.seed=1")] = None,
    out: Annotated[Path | None, typer.Option(help="work folder; runs/<recipe name> unless given")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes of an ensemble; one a core unless given")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all inputs, show the plan and stop")] = False,
) -> None:
    """Simulate a planet with a known truth: SPEEDY through jcm (extra simulate), on a CPU core or a GPU.

    Example: plumecast data simulate --nature 1 --out runs/nature
    Example: plumecast data simulate recipes/planet_physics.toml --ensemble perfect --set ensemble.restarts=FOLDER

    A nature run writes <out>/analysis.zarr while it runs, and restart states beside it. An ensemble starts from restart states of
    the planet in <out>/analysis.zarr (made by a nature run, or by `plumecast data ingest`): truth + error, members around it; it
    writes <out>/initial_states.zarr, from which any generator can start too (plumecast forecast --initial-states), its analyses
    alone as analyses.nc, and <out>/forecasts/<kind>.zarr. Stop either at any time: the same command continues.
    """
    from data_pipeline.errors import InputError
    from data_pipeline.recipe import read_recipe
    from data_pipeline.workers import cores

    if (nature is None) == (ensemble is None):
        raise InputError("give either --nature YEARS or --ensemble perfect|imperfect")
    overrides = [*(settings or []), *([f"nature.years={nature}"] if nature else [])]
    parts = read_recipe(recipe, overrides) if recipe is not None else read_recipe(_default(), overrides)
    folder = out or Path("runs") / parts["name"]
    if ensemble is None:
        _nature(parts, folder, dry_run)
    else:
        _ensemble(parts, folder, ensemble, workers or cores(), dry_run)


def _nature(recipe: Mapping[str, Any], folder: Path, dry_run: bool) -> None:
    from data_pipeline.planet import nature
    from data_pipeline.progress import ProgressDisplay
    from data_pipeline.recipe import section

    planned = nature.plan(section(recipe, "nature", nature.NatureSection))
    years, settings = len(planned.times) * planned.hours / 24 / 365.25, planned.section
    typer.echo(
        f"T{settings.truncation}, seed {settings.seed}: {settings.spin_up_days} days of spin-up, then {years:.1f} years from "
        f"{planned.times[0]:%Y-%m-%dT%H}, {len(planned.times)} stamps of {len(planned.channels)} fields on {planned.grid}; "
        f"{planned.bytes / 1e6:,.0f} MB before compression, about {planned.seconds / 60:.0f} minutes on one core"
    )
    if dry_run:
        typer.echo(f"{folder / 'analysis.zarr'}: nothing was written (--dry-run)")
        return
    with ProgressDisplay("simulate", "stamps") as progress:
        path = nature.simulate(planned, folder, report=progress)
    typer.echo(f"{path}\nnext: plumecast data info {path}")


def _ensemble(recipe: Mapping[str, Any], folder: Path, kind: Kind, workers: int, dry_run: bool) -> None:
    from data_pipeline.planet import ensembles, nature
    from data_pipeline.progress import ProgressDisplay
    from data_pipeline.recipe import section

    analysis, target = folder / "analysis.zarr", folder / "forecasts" / f"{kind}.zarr"
    given = ensembles.setting(section(recipe, "ensemble", ensembles.EnsembleSection), analysis)
    days = len(given.inits) * given.section.members * given.section.days
    minutes = days * nature.SECONDS_A_DAY[ensembles.TRUNCATION[kind]] / 60
    typer.echo(
        f"{kind} model, T{ensembles.TRUNCATION[kind]}: {len(given.inits)} initialisations x {given.section.members} members x "
        f"{given.section.days:g} days of {len(given.channels)} fields; about {minutes:.0f} core-minutes on {workers} processes"
    )
    if dry_run:
        typer.echo(f"{target}: nothing was written (--dry-run)")
        return
    initial = ensembles.write_initial_states(given, folder / "initial_states.zarr")
    ensembles.write_analyses(initial, folder / "analyses.nc")
    with ProgressDisplay(kind, "initialisations") as progress:
        ensembles.write_ensemble(given, kind, target, workers=workers, report=progress)
    typer.echo(f"{initial}\n{target}\nnext: plumecast verify {target} --truth {analysis}")


def _default() -> Path:
    from importlib import resources

    return Path(str(resources.files("data_pipeline.planet") / "nature.toml"))
