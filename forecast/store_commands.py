"""`plumecast pool`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command()(pool)


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
