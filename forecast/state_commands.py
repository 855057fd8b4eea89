"""`plumecast initial-states members | lagged | differences`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from data_pipeline.grid import Grid
    from forecast.perturbations import Frames, Kind, Size
    from models.contract import Spec

HELP = """Initial states around an analysis for `plumecast forecast --initial-states`: one a member, recorded in the forecast.

Example: plumecast initial-states differences ANALYSIS.zarr --init 2007-01-11 --error geopotential_500=80 --out STATES.zarr

Without them all members start from the one analysis, those of a vae from its own perturbation of it.
"""

AnalysisArgument = Annotated[Path, typer.Argument(help="analysis store that forecasts start from")]
OutOption = Annotated[Path, typer.Option(help="store of initial states, for `plumecast forecast --initial-states`")]
MembersOption = Annotated[int, typer.Option(min=1, help="members besides the analysis, which is number 0")]
InitOption = Annotated[list[str] | None, typer.Option(help="initialisation, as 2007-01-11T00; may be repeated")]
StartOption = Annotated[str | None, typer.Option(help="first initialisation of a range")]
StopOption = Annotated[str | None, typer.Option(help="last initialisation of a range, included")]
EveryOption = Annotated[str, typer.Option(help="interval of the range")]
CheckpointOption = Annotated[
    list[Path] | None, typer.Option(help="checkpoint whose frames, step, fields and training period to take; may be repeated")
]
FramesOption = Annotated[int, typer.Option(min=1, help="without --checkpoint: analyses that a state holds")]
StepOption = Annotated[str | None, typer.Option(help="interval of the frames, as 12h; the checkpoint's or the analysis' own")]
ErrorOption = Annotated[
    list[str] | None,
    typer.Option(
        help="wanted rms of the perturbations (SI units), as geopotential_500=80: one scales all fields alike; repeat it for "
        "fields or variables with a size of their own"
    ),
]
UnperturbedOption = Annotated[
    list[str] | None, typer.Option(help="field that all members take from the analysis, as total_precipitation_12hr; repeat it")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="check all inputs, show the plan and stop")]


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    states = typer.Typer(no_args_is_help=True, help=HELP)
    states.command()(members)
    states.command()(lagged)
    states.command()(differences)
    app.add_typer(states, name="initial-states")


def members(
    analysis: AnalysisArgument,
    ensemble: Annotated[
        list[Path], typer.Option(help="analysis members, such as ERA5's ten: GRIB, NetCDF or a store; repeat it")
    ],
    out: OutOption,
    paired: Annotated[
        bool, typer.Option("--paired", help="the analysis + and - each member's departure from their mean, not the members")
    ] = False,
    inflation: Annotated[float, typer.Option(min=0, help="multiplies the departures of --paired")] = 1.0,
    members: MembersOption = 50,
    init: InitOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    every: EveryOption = "24h",
    checkpoint: CheckpointOption = None,
    frames: FramesOption = 2,
    step: StepOption = None,
    unperturbed: UnperturbedOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Start member k from analysis member (k - 1) mod n of n; or, paired, from the analysis +/- the members' departures.

    Example: plumecast initial-states members ANALYSIS.zarr --ensemble era5_members.grib --paired --start 2020-01-01
    --stop 2020-12-31 --checkpoint CHECKPOINT --out STATES.zarr

    Members on another grid are regridded to that of the analysis. Beyond n members (2 n paired) the states repeat.
    """
    from data_pipeline import open_forecast
    from data_pipeline.errors import InputError
    from forecast.initialisations import chosen
    from forecast.perturbations import AnalysisMembers

    if inflation != 1 and not paired:
        raise InputError("--inflation multiplies departures: give --paired too")
    wanted, _ = _frames(analysis, checkpoint, frames, step, unperturbed)
    given = _on_grid(open_forecast(ensemble if len(ensemble) > 1 else ensemble[0]), wanted.grid)
    kind = AnalysisMembers(given, paired, inflation)
    _write(kind, wanted, chosen(init, start, stop, every), members, out, dry_run)


def lagged(
    analysis: AnalysisArgument,
    out: OutOption,
    forecast: Annotated[
        Path | None, typer.Option(help="store of forecasts from this analysis; without it analyses 1, 2, 3 ... days old")
    ] = None,
    oldest: Annotated[str, typer.Option(help="age of the oldest run of --forecast, as 48h")] = "48h",
    error: ErrorOption = None,
    members: MembersOption = 10,
    init: InitOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    every: EveryOption = "24h",
    checkpoint: CheckpointOption = None,
    frames: FramesOption = 2,
    step: StepOption = None,
    unperturbed: UnperturbedOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Start members from older runs valid at the initialisation, youngest first; with --error from the analysis +/- their errors.

    Example: plumecast initial-states lagged ANALYSIS.zarr --forecast runs/forecasts/crps.zarr --init 2007-01-11 --members 8
    --error geopotential_500=80 --out STATES.zarr

    --error scales all departures to one size, so that old runs err no more than young ones, and uses them in pairs. Without
    --forecast, departures are those of the analyses of the same hour 1, 2, 3 ... days before: rough, but any centre has them.
    """
    import numpy as np

    from data_pipeline import open_forecast
    from forecast.initialisations import chosen
    from forecast.perturbations import Lagged
    from forecast.plan import whole_hours

    wanted, _ = _frames(analysis, checkpoint, frames, step, unperturbed)
    older = open_forecast(forecast) if forecast is not None else None
    kind = Lagged(older, _size(error) if error else None, np.timedelta64(whole_hours(oldest), "h"))
    _write(kind, wanted, chosen(init, start, stop, every), members, out, dry_run)


def differences(
    analysis: AnalysisArgument,
    out: OutOption,
    error: ErrorOption = None,
    training: Annotated[
        tuple[str, str] | None, typer.Option(help="period of the differences, FIRST LAST; the checkpoint's unless given")
    ] = None,
    season_days: Annotated[float, typer.Option(min=1, help="how far from the date in the year they may lie")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the dates")] = 0,
    members: MembersOption = 50,
    init: InitOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    every: EveryOption = "24h",
    checkpoint: CheckpointOption = None,
    frames: FramesOption = 2,
    step: StepOption = None,
    unperturbed: UnperturbedOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Start members from the analysis +/- scaled differences of two analyses of the season and hour (random-field perturbations).

    Example: plumecast initial-states differences ANALYSIS.zarr --error geopotential_500=80 --start 2007-01-11 --stop 2007-12-21
    --every 240h --checkpoint CHECKPOINT --out STATES.zarr

    Dates are drawn from the training period alone. Member k is the same whatever the number of members.
    """
    from data_pipeline.errors import InputError
    from forecast.initialisations import chosen
    from forecast.perturbations import Differences

    wanted, specs = _frames(analysis, checkpoint, frames, step, unperturbed)
    known = specs[0].training_period.split("/") if specs else []
    period = training or (tuple(known) if len(known) == 2 else None)
    faults = [] if period else ["no training period is known: give --training FIRST LAST, or --checkpoint"]
    faults += [] if error else ["give the size of the perturbations, as --error geopotential_500=80"]
    if period is None or not error:
        raise InputError("; ".join(faults))
    kind = Differences((period[0], period[1]), _size(error), season_days, seed)
    _write(kind, wanted, chosen(init, start, stop, every), members, out, dry_run)


def _frames(
    analysis: Path, checkpoint: list[Path] | None, number: int, step: str | None, unperturbed: list[str] | None
) -> tuple[Frames, list[Spec]]:
    """What a state holds, as the checkpoints want it or as was said."""
    import numpy as np

    from data_pipeline import open_analysis
    from data_pipeline.errors import InputError
    from data_pipeline.schema import channels_of
    from forecast.initial_states import fit_faults
    from forecast.members import check_together
    from forecast.perturbations import Frames
    from forecast.plan import whole_hours
    from models.checkpoint import outline

    data, hours = open_analysis(analysis), None if step is None else whole_hours(step)
    specs = [outline(path, step_hours=hours).spec for path in checkpoint or []]
    if specs:
        check_together(specs)
        channels = tuple(specs[0].parsed_channels)
        number, apart = max(spec.frames for spec in specs), specs[0].step
        if faults := fit_faults(data, specs[0], "analysis"):
            raise InputError("; ".join(faults))
    else:
        channels = tuple(channels_of(data))
        apart = np.diff(data["time"].values).min() if hours is None else np.timedelta64(hours, "h")
    return Frames(data, channels, apart.astype("timedelta64[ns]"), number, tuple(unperturbed or ())), specs


def _on_grid(data: xr.Dataset, grid: Grid) -> xr.Dataset:
    """By area where the grid is coarser than the data, between points where it is finer."""
    from data_pipeline.grid import Grid
    from data_pipeline.regrid import regrid

    own = Grid.of(data)
    if own.matches(grid):
        return data
    coarser = abs(grid.latitude[1] - grid.latitude[0]) >= abs(own.latitude[1] - own.latitude[0])
    method: Literal["conservative", "bilinear"] = "conservative" if coarser else "bilinear"
    typer.echo(f"analysis members: {method} from {own} to {grid}")
    return regrid(data, grid, method)


def _size(error: list[str]) -> Size:
    from data_pipeline.errors import InputError
    from forecast.perturbations import Size

    wanted = {}
    for text in error:
        name, sign, value = text.partition("=")
        try:
            wanted[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise InputError(f"--error {text!r}: expected FIELD=VALUE in SI units, as geopotential_500=80")
    return Size(wanted)


def _write(kind: Kind, frames: Frames, inits: np.ndarray, members: int, out: Path, dry_run: bool) -> None:
    from data_pipeline.progress import ProgressDisplay
    from data_pipeline.store import open_store
    from forecast.initial_states import check_states, write_states

    check_states(kind, frames, inits, members)
    size = inits.size * (members + 1) * frames.number * len(frames.channels) * frames.grid.areas.size * 4
    typer.echo(
        f"{kind.said()['initial_state']}\n{inits.size} initialisations x (analysis + {members} members) x {frames.number} frames "
        f"of {len(frames.channels)} fields; {size / 1e6:,.0f} MB before compression -> {out}"
    )
    if dry_run:
        typer.echo("nothing was written (--dry-run)")
        return
    with ProgressDisplay("initial states", "initialisations") as bar:
        write_states(kind, frames, inits, members, out, bar)
    typer.echo(f"rms of the members' departures from the analysis: {open_store(out).attrs['departure_rms']}")
    typer.echo(f"next: plumecast forecast ANALYSIS.zarr --initial-states {out} --members {members}")
