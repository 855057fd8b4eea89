"""`plumecast fit-post-processing` and `plumecast post-process`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.commands import PrecisionOption


def fit_post_processing(
    analysis: Annotated[Path, typer.Argument(help="analysis store that holds the checkpoint's validation period")],
    checkpoint: Annotated[list[Path], typer.Option(help="checkpoint; repeated: those of one ensemble, in its order")],
    method: Annotated[
        Literal["mbm", "emos"], typer.Option(help="member by member, or normal distributions in the order of the members")
    ] = "mbm",
    inits: Annotated[int, typer.Option(help="validation dates")] = 32,
    members: Annotated[int, typer.Option(min=2, help="members a date; forecasts are best calibrated at this number")] = 20,
    days: Annotated[float, typer.Option(help="longest lead; longer forecasts cannot be calibrated")] = 10.0,
    step: Annotated[
        str | None, typer.Option(help="lead interval of the forecasts to come, as 24h; the checkpoint's shortest unless given")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noise and of the points drawn")] = 1,
    noise_scale: Annotated[float | None, typer.Option(help="of the forecasts to come; the checkpoint's own unless given")] = None,
    boundary: Annotated[Literal["truth"] | None, typer.Option(help="ring of a regional model")] = None,
    ring: Annotated[int, typer.Option(min=1, help="width of the ring in cells")] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; several, as cuda:0,cuda:1, share the work")] = "cpu",
    precision: PrecisionOption = "float32",
    out: Annotated[Path | None, typer.Option(help="calibration file; <checkpoint>.calibration.nc unless given")] = None,
) -> None:
    """Fit a calibration of bias and spread on validation dates, to be applied to stored forecasts.

    Example: plumecast fit-post-processing runs/planet/analysis.zarr --checkpoint runs/planet/checkpoint.safetensors

    By field, lead and latitude band; precipitation by quantile mapping. `plumecast calibrate` changes the checkpoint, so it comes
    first. Test dates are never looked at.
    """
    import models
    from data_pipeline import open_analysis
    from data_pipeline.progress import ProgressDisplay
    from forecast import calibrated
    from forecast.boundary import Boundary
    from forecast.plan import whole_hours
    from models.post_processing import write_table

    data, devices = open_analysis(analysis), [name.strip() for name in device.split(",")]
    hours = None if step is None else whole_hours(step)
    generators = [models.load(path, devices[0], step_hours=hours, precision=precision) for path in checkpoint]
    with ProgressDisplay("validation forecasts", "leads") as bar:
        table = calibrated.fit_post_processing(
            generators, data, method=method, inits=inits, members=members, days=days, seed=seed, noise_scale=noise_scale,
            boundary=Boundary(data, ring) if boundary else None, devices=devices if len(devices) > 1 else (),
            report=lambda step: bar(step.done, step.total),
        )  # fmt: skip
    path = write_table(out or checkpoint[0].with_suffix(".calibration.nc"), table)
    typer.echo(
        f"{path}: {method}, {inits} dates of {table.attrs['validation_period']}, {members} members, n {table.attrs['n']} a cell\n"
        f"next: plumecast post-process FORECAST.zarr --calibration {path}"
    )


def post_process(
    forecast: Annotated[Path, typer.Argument(help="forecast store of the checkpoint that was calibrated")],
    calibration: Annotated[Path, typer.Option(help="file of `plumecast fit-post-processing`")],
    out: Annotated[Path | None, typer.Option(help="calibrated store; <forecast>-calibrated.zarr unless given")] = None,
) -> None:
    """Calibrate a stored forecast; the raw one stays, so that both can be verified side by side.

    Example: plumecast post-process runs/planet/forecasts/crps.zarr --calibration runs/planet/checkpoint.calibration.nc

    A calibration of another checkpoint, noise scale, step or boundary is refused.
    """
    from data_pipeline import open_forecast
    from data_pipeline.progress import ProgressDisplay
    from forecast import calibrated
    from models.post_processing import read_table

    table, raw = read_table(calibration), open_forecast(forecast)
    target = out or forecast.with_name(f"{forecast.stem}-calibrated.zarr")
    with ProgressDisplay("calibration", "initialisations") as bar:
        calibrated.post_process(raw, table, target, bar)
    typer.echo(
        f"calibrated: {target}; score with {table.attrs['score_with']}\nnext: plumecast verify {target} --truth ANALYSIS.zarr"
    )
