"""`plumecast train` and `plumecast calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from models.validation import Validation

TFLOPS = 989.0  # peak of an H100 SXM in bfloat16, dense (NVIDIA's data sheet)
UTILISATION = 0.3  # of the peak; what convolutions and norms of this size leave of it, an assumption


PrecisionOption = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(help="of the networks; bfloat16 is up to three times faster where the processor has units for it"),
]


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    app.command()(train)
    app.command()(calibrate)
    app.command()(fit_climate)
    app.command()(checkpoint)


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe, for example recipes/planet.toml")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="override, as training.seed=1")] = None,
    out: Annotated[Path | None, typer.Option(help="work folder; runs/<recipe name> unless given")] = None,
    analysis: Annotated[Path | None, typer.Option(help="analysis store; <out>/analysis.zarr unless given")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done with this analysis, and stop")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="show what it takes in memory and hours, and stop; no analysis")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="--plan: GPUs that share the work")] = 1,
    grid: Annotated[str | None, typer.Option(help="--plan: another grid, as 240x121 or 1440x721")] = None,
    tflops: Annotated[float, typer.Option(help="--plan: peak 1e12 operations a second of one; default: H100, bfloat16")] = TFLOPS,
    utilisation: Annotated[float, typer.Option(help="--plan: share of the peak that is reached; an assumption")] = UTILISATION,
) -> None:
    """Train a generator on an ingested analysis.

    Example: plumecast train recipes/planet.toml

    Reads the analysis (made by `plumecast data ingest`), writes <out>/checkpoint.safetensors: the averaged weights with
    the best validation score. Stop it at any time: the same command continues where its state was last saved.
    Several processes or GPUs: torchrun --nproc-per-node 2 -m plumecast train RECIPE [--device cuda]
    """
    from data_pipeline import open_analysis
    from data_pipeline.kept import read_kept
    from data_pipeline.recipe import read_recipe, section
    from models.checkpoint import check_device
    from models.curriculum import TrainingOptions
    from models.distributed import joined
    from models.progress import TrainingDisplay, show_plan
    from models.recipe import periods_of, plan_training, run_training

    parts = read_recipe(recipe, settings or [])
    folder = out or Path("runs") / parts["name"]
    path = analysis or folder / "analysis.zarr"
    if plan:
        _show_plan(parts, path, gpus=gpus, grid=grid, tflops=tflops, utilisation=utilisation)
        return
    check_device(device)
    data, kept = open_analysis(path), read_kept(path)
    if dry_run:
        show_plan(*plan_training(parts, data, kept)[:3])
        return
    periods_of(parts, data)  # a recipe without periods is no recipe for training, whatever else it lacks
    with joined(device, section(parts, "training", TrainingOptions).members_over) as (ranks, own_device):
        with TrainingDisplay(quiet=not ranks.leads) as display:
            checkpoint = run_training(parts, data, folder, device=own_device, report=display, kept=kept, ranks=ranks)
        if ranks.leads:
            typer.echo(f"checkpoint: {checkpoint}\nnext: plumecast forecast {path} --checkpoint {checkpoint} ...")


def _show_plan(recipe: dict[str, Any], analysis: Path, *, gpus: int, grid: str | None, tflops: float, utilisation: float) -> None:
    """Requirements of a recipe, and below them those of every preset of its network."""
    from data_pipeline import open_analysis
    from data_pipeline.grid import Grid
    from data_pipeline.recipe import section
    from models.backbones.network import PRESETS
    from models.curriculum import TrainingOptions
    from models.planning import plan_run, planned_spec, with_preset
    from models.progress import show_requirements, show_sizes

    chosen = Grid.named(grid) if grid else None
    if chosen is None and recipe.get("analysis", {}).get("grid", "native") == "native" and analysis.exists():
        chosen = Grid.of(open_analysis(analysis))
    options, spec = section(recipe, "training", TrainingOptions), planned_spec(recipe, chosen)
    show_requirements(plan_run(spec, options, gpus=gpus), tflops=tflops, utilisation=utilisation)
    if spec.options.get("backbone") in PRESETS:
        presets = PRESETS[spec.options["backbone"]]
        plans = {name: plan_run(planned_spec(with_preset(recipe, name), chosen), options, gpus=gpus) for name in presets}
        show_sizes(plans, tflops=tflops, utilisation=utilisation)


def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint of `plumecast train`")],
    analysis: Annotated[Path, typer.Argument(help="analysis store that holds the checkpoint's validation period")],
    scale: Annotated[list[float] | None, typer.Option(help="noise scale to try; repeat it")] = None,
    inits: Annotated[int, typer.Option(help="validation dates")] = 16,
    members: Annotated[int, typer.Option(help="members a date")] = 10,
    days: Annotated[float, typer.Option(help="leads that count")] = 7.0,
    criterion: Annotated[
        Literal["crps", "ssr"], typer.Option(help="lowest mean fair CRPS, or geometric mean of spread-skill ratios nearest to 1")
    ] = "crps",
    precision: PrecisionOption = "float32",
) -> None:
    """Choose the scale of the noise on validation dates and keep it in the checkpoint.

    Example: plumecast calibrate runs/planet/checkpoint.safetensors runs/planet/analysis.zarr

    Forecasts use the scale that wins unless --noise-scale is given. Both criteria are shown. Test dates are never looked at.
    """
    import models
    from data_pipeline import open_analysis
    from models import calibration

    step = models.load(checkpoint).spec.step_hours

    def show(scale: float, measured: Validation) -> None:
        ssr, mean = [sum(row) / len(row) for row in measured.ssr], calibration.mean_ssr(measured)
        typer.echo(
            f"noise x {scale:g}: fair CRPS / tendency std {measured.score:.4f}, "
            f"SSR {mean:.3f}, {ssr[0]:.2f} (first) to {ssr[-1]:.2f}"
        )

    best = calibration.calibrate(
        checkpoint, open_analysis(analysis), scales=scale or calibration.SCALES, inits=inits, members=members,
        steps=int(days * 24 / step), criterion=criterion, precision=precision, report=show,
    )  # fmt: skip
    typer.echo(f"{checkpoint}: noise scale {best:g}\nnext: plumecast forecast {analysis} --checkpoint {checkpoint} ...")


def fit_climate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint of `plumecast train`")],
    analysis: Annotated[Path, typer.Argument(help="analysis store that holds the checkpoint's training period")],
    out: Annotated[Path, typer.Option(help="the new checkpoint")],
    conserve: Annotated[
        list[str] | None, typer.Option(help="channel whose global mean forecasts keep from now on, as mean_sea_level_pressure")
    ] = None,
    inits: Annotated[int, typer.Option(min=1, help="dates, spread over the training period")] = 16,
    days: Annotated[float, typer.Option(help="length of each roll-out; its second half counts")] = 60.0,
    rounds: Annotated[int, typer.Option(min=1, help="roll-outs of all dates")] = 12,
    precision: PrecisionOption = "float32",
) -> None:
    """Let long forecasts of a checkpoint keep the climate: power at every zonal wavenumber, and global means.

    Example: plumecast fit-climate runs/mine/checkpoint.safetensors runs/mine/analysis.zarr --out runs/mine/steady.safetensors

    Fits a gain for each wavenumber and an offset for each channel to roll-outs from dates of the training period, at the noise
    scale that the checkpoint has by then; weights stay. Check with `plumecast calibrate` on validation that scores do too.
    """
    from data_pipeline import open_analysis
    from models import climate_fit

    def show(done: int, found: climate_fit.Departure) -> None:
        typer.echo(
            f"round {done:>2}/{rounds}: power off by a factor of {found.typical_factor:.2f}, at worst {found.worst_factor:.1f}; "
            f"global means by {found.typical_drift:.2f}, at worst {found.worst_drift:.2f} of their own standard deviation"
        )

    made = climate_fit.fit_climate(
        checkpoint, open_analysis(analysis), out, conserve=conserve or (), inits=inits, days=days, rounds=rounds,
        precision=precision, report=show,
    )  # fmt: skip
    typer.echo(f"{made}\nnext: plumecast calibrate {made} {analysis}")


def checkpoint(
    path: Annotated[Path | None, typer.Argument(help="checkpoint; the shipped one unless given")] = None,
    prove: Annotated[bool, typer.Option("--prove", help="compute its sample forecast again and compare")] = False,
    add_proof: Annotated[bool, typer.Option("--add-proof", help="write a sample forecast into a file that has none")] = False,
    device: Annotated[str, typer.Option(help="where to compute: cpu, cuda, cuda:1 ...")] = "cpu",
) -> None:
    """Show what a checkpoint is, or prove that this installation computes what its maker did.

    Example: plumecast checkpoint runs/planet/checkpoint.safetensors --prove

    A checkpoint carries a small sample forecast with its hash. --prove says whether it comes out bit-identical or within the
    tolerance, and leaves with exit code 4 if it does not.
    """
    import models
    from models import proof
    from models.description import describe

    chosen = path or models.shipped()
    if add_proof:
        proof.attach(chosen)
    if prove:
        verdict = proof.prove(chosen, device)
        typer.echo(f"{chosen}: sample forecast {verdict}, made with {proof.installation_text(verdict.made_with)}")
        return
    for title, text in describe(chosen):
        typer.echo(f"{title:<16} {text}")
