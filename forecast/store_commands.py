"""`plumecast pool` and `plumecast export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from forecast.plan import ForecastPlan


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command()(pool)
    app.command()(export)


def pool(
    forecasts: Annotated[list[Path], typer.Argument(help="forecast stores, or anybody's ensemble files")],
    out: Annotated[Path, typer.Option(help="the pooled forecast store")],
    weight: Annotated[
        list[float] | None,
        typer.Option(help="of each forecast, in their order; equal unless given: a weight is a number of members"),
    ] = None,
    members: Annotated[
        int | None, typer.Option(min=2, help="size of the pool; all members, or as many as the weights allow, unless given")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="pool the initialisations, leads and fields that all have, where they differ")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all forecasts, show the shares and stop")] = False,
) -> None:
    """Pool the members of several forecasts into one, with recorded weights: each member keeps its bits, its origin is named.

    Example: plumecast pool crps.zarr vae.zarr diffusion.zarr --weight 2 --weight 1 --weight 1 --members 48 --out pool.zarr

    Members are dealt out so that the first 10 or 20 of the pool are balanced too. A killed run continues with the same command.
    """
    from data_pipeline import open_forecast
    from data_pipeline.progress import ProgressDisplay
    from forecast.pool import plan_pool, write_pool

    names = [path.name.removesuffix(".zarr") for path in forecasts]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{name}" for path, name in zip(forecasts, names, strict=True)]
    planned = plan_pool([open_forecast(path) for path in forecasts], names, weights=weight, members=members, common=common)
    shown = zip(planned.shares, planned.names, planned.weights, planned.forecasts, strict=True)
    for share, name, own, forecast in shown:
        typer.echo(
            f"{share:4d} of {forecast.sizes['number']} members of {name}: {share / sum(planned.shares):.3f} (weight {own:.3f})"
        )
    typer.echo(
        f"{planned.times.size} initialisations x {sum(planned.shares)} members x {planned.leads.size} leads of "
        f"{len(planned.channels)} fields on {planned.grid}; {planned.bytes / 1e6:,.0f} MB before compression -> {out}"
    )
    if dry_run:
        typer.echo("nothing was written (--dry-run)")
        return
    with ProgressDisplay("pool", "parts") as bar:
        write_pool(planned, out, bar)
    typer.echo(f"pooled: {out}\nnext: plumecast verify {out} --truth ANALYSIS.zarr")


def export(
    forecast: Annotated[Path, typer.Argument(help="forecast store, or anybody's ensemble files")],
    out: Annotated[Path, typer.Option(help="one file (x.nc, x.grib2), or a folder: one file an initialisation")],
    format: Annotated[  # noqa: A002
        Literal["netcdf", "grib2"] | None, typer.Option(help="of the files of a folder; netcdf unless given")
    ] = None,
    variable: Annotated[
        list[str] | None, typer.Option(help="only this one, as geopotential or geopotential_500; repeat it")
    ] = None,
    level: Annotated[list[int] | None, typer.Option(help="only this pressure level, hPa; repeat it")] = None,
    member: Annotated[list[int] | None, typer.Option(help="only this member; repeat it")] = None,
    init: Annotated[list[str] | None, typer.Option(help="only this initialisation, as 2007-01-11T00; repeat it")] = None,
    region: Annotated[str | None, typer.Option(help="only inside west,east,south,north, as -20,40,30,75")] = None,
    packing: Annotated[Literal["ccsds", "simple"], typer.Option(help="of GRIB2: small files, or any decoder")] = "ccsds",
    bits: Annotated[Literal["16", "24"], typer.Option(help="of a GRIB2 value")] = "16",
    centre: Annotated[str, typer.Option(help="originating centre in GRIB2, as ecmf; 255: missing")] = "255",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all fields, say what would be written and stop")] = False,
) -> None:
    """Write a forecast as CF-1.11 NetCDF or GRIB2, all of it or a part.

    Example: plumecast export runs/planet/forecasts/crps.zarr --out crps.grib2 --variable 2m_temperature --region=-20,40,30,75

    Files appear whole, with their SHA-256 in a JSON file beside them. Every field, lead and member is read once, block by block.
    """
    from data_pipeline import open_forecast
    from data_pipeline.progress import ProgressDisplay
    from forecast.export import Settings, files
    from forecast.export.grib import Packing
    from forecast.plan import plan_of
    from forecast.subset import subset

    data = open_forecast(forecast)
    plan = subset(plan_of(data), variables=variable or (), levels=level or (), region=_region(region))
    plan = _some(plan, init or [], member or [])
    settings = Settings.of(out, format, Packing(16 if bits == "16" else 24, packing, centre))
    fields = files.check(data, plan, settings)
    typer.echo(
        f"{settings.format}: {plan.times.size} initialisations x {len(plan.members)} members x {plan.leads.size} leads of "
        f"{len(fields)} fields on {plan.grid}; {plan.bytes / 1e6:,.0f} MB before packing -> {out}"
    )
    if dry_run:
        typer.echo("nothing was written (--dry-run)")
        return
    with ProgressDisplay("export", "initialisations") as bar:
        files.export(data, plan, out, settings, bar)
    typer.echo(f"exported: {out}")


def _region(text: str | None) -> tuple[float, float, float, float] | None:
    from data_pipeline.errors import InputError

    if text is None:
        return None
    try:
        west, east, south, north = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--region {text!r}: expected west,east,south,north in degrees, as -20,40,30,75") from None
    return west, east, south, north


def _some(plan: ForecastPlan, inits: list[str], members: list[int]) -> ForecastPlan:
    """The plan of some initialisations and members; of all where none is named."""
    from dataclasses import replace

    import numpy as np

    from data_pipeline.errors import InputError
    from forecast.initialisations import named

    wanted = named(inits) if inits else plan.times
    gone = [f"initialisation {np.datetime_as_string(time, 'h')}" for time in wanted if time not in plan.times]
    gone += [f"member {member}" for member in members if member not in plan.members]
    if gone:
        raise InputError(f"the forecast has no {', '.join(gone)}")
    kept = tuple(member for member in plan.members if not members or member in members)
    return replace(plan, times=plan.times[np.isin(plan.times, wanted)], members=kept)
