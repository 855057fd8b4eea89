"""`plumecast train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    app.command()(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe, for example recipes/planet.toml")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="override, as training.seed=1")] = None,
    out: Annotated[Path | None, typer.Option(help="work folder; runs/<recipe name> unless given")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan and stop")] = False,
) -> None:
    """Train a generator on an ingested analysis.

    Example: plumecast train recipes/planet.toml

    Reads <out>/analysis.zarr (made by `plumecast data ingest`), writes <out>/checkpoint.safetensors: the averaged weights with
    the best validation score. Stop it at any time: the same command continues from the last validation.
    """
    from data_pipeline import open_analysis
    from data_pipeline.recipe import read_recipe
    from models.checkpoint import check_device
    from models.progress import TrainingDisplay, show_plan
    from models.recipe import plan_training, run_training

    check_device(device)
    parts = read_recipe(recipe, settings or [])
    folder = out or Path("runs") / parts["name"]
    analysis = open_analysis(folder / "analysis.zarr")
    if dry_run:
        show_plan(*plan_training(parts, analysis)[:3])
        return
    with TrainingDisplay() as display:
        checkpoint = run_training(parts, analysis, folder, device=device, report=display)
    typer.echo(f"checkpoint: {checkpoint}\nnext: plumecast forecast {folder / 'analysis.zarr'} --checkpoint {checkpoint} ...")
