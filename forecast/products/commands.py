"""`plumecast products`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from forecast.products.plan import Plan


def products(
    forecast: Annotated[Path, typer.Argument(help="forecast store, or anybody's ensemble files")],
    climatology: Annotated[
        Path | None, typer.Option(help="climatology store with quantiles, for percentiles, EFI and SOT")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file with a section `products`; its defaults unless given")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="override, as products.quantiles=[0.5]")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="event besides the others: '2m_temperature > 30 degC', '> q95', 'max(10m_wind_speed, 24h) > 17 m s-1'; two "
            "joined by 'and' happen together; repeat it"
        ),
    ] = None,
    point: Annotated[list[str] | None, typer.Option(help="NAME,LATITUDE,LONGITUDE of a plume; repeat it")] = None,
    points: Annotated[Path | None, typer.Option(help="CSV (name,latitude,longitude) or TOML file of points")] = None,
    static: Annotated[Path | None, typer.Option(help="analysis store with the land-sea mask, for nearest_land")] = None,
    init: Annotated[list[str] | None, typer.Option(help="only this initialisation, as 2007-01-11T00; repeat it")] = None,
    out: Annotated[Path | None, typer.Option(help="zarr store, or NetCDF (.nc); <forecast>-products.zarr unless given")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all inputs, show what would be made and stop")] = False,
) -> None:  # fmt: skip
    """Make ensemble products: mean, spread, quantiles, probabilities, EFI and SOT, plumes, stamps, tracked lows and strikes.

    Example: plumecast products runs/planet/forecasts/crps.zarr --climatology runs/planet/climatology.zarr
    --point Bergen,60.39,5.32 --threshold "2m_temperature > 30 degC"

    One CF store that explains itself: every variable names its estimator, threshold, ensemble size and climatology. A killed run
    continues with the same command; a finished one is left alone; other settings at the same place are an error.
    """
    from data_pipeline.errors import InputError
    from data_pipeline.opening import open_analysis
    from data_pipeline.progress import ProgressDisplay
    from forecast.initialisations import named
    from forecast.products import making
    from forecast.products.plan import make_plan
    from forecast.products.points import parse_place, read_places
    from forecast.products.recipe import ProductsSection, read_products

    if recipe is None and settings:
        raise InputError("--set overrides a recipe: give one (--recipe)")
    section = read_products(recipe, settings or []) if recipe is not None else ProductsSection()
    places = [*(read_places(points) if points else []), *map(parse_place, point or [])]
    plan = make_plan(
        forecast, section, climatology, thresholds=threshold or [], places=places,
        static=None if static is None else open_analysis(static), inits=list(named(init)) if init else None,
    )  # fmt: skip
    target = out or forecast.with_name(f"{forecast.stem}-products.zarr")
    typer.echo("\n".join([*_described(plan), f"-> {target}"]))
    if dry_run:
        typer.echo("nothing was written (--dry-run)")
        return
    with ProgressDisplay("products", "jobs") as bar:
        making.run(plan, target, bar)
    opener = "open_dataset" if target.suffix == ".nc" else "open_zarr"
    typer.echo(f"products: {target}\nnext: python -c \"import xarray; print(xarray.{opener}('{target}'))\"")


def _described(plan: Plan) -> list[str]:
    """What will be made, for a person."""
    from forecast.products.layout import template

    form = template(plan)
    size = sum(array.nbytes for array in form.data_vars.values()) / 1e6
    kinds = {
        "statistics": [task.label for task in plan.tasks if task.stored is not None],
        "probabilities": [event.label for task in plan.tasks for event in task.events] + [event.label for event in plan.joint],
        "EFI": [task.name for task in plan.tasks if task.efi is not None],
        "SOT": [task.name for task in plan.tasks if task.tails],
        "plumes": list(plan.points.names) if plan.points is not None else [],
        "stamps": [task.name for task in plan.tasks if task.stamps is not None],
        "tracks": [f"lows, strikes within {plan.tracks.strike_km:g} km in {plan.tracks.strike_window}"] if plan.tracks else [],
    }
    lines = [
        f"{plan.inits.size} initialisations x {plan.members.size} members x {plan.members.hours.size} leads on "
        f"{plan.members.grid}: {len(form.data_vars)} variables, {size:,.0f} MB before compression, {plan.block} leads at a time"
    ]
    lines += [f"  {kind}: {', '.join(what)}" for kind, what in kinds.items() if what]
    return [*lines, *(f"  note: {note}" for note in plan.notes)]
