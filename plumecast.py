"""The command line: mounts each package's commands, settles threads first, turns errors into a message and an exit code.

Exit codes: 0 done, 2 wrong input or configuration, 3 data not there yet, 4 the run failed its own gate, 130 interrupted.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from data_pipeline.errors import PlumecastError

PACKAGES = ("data_pipeline", "models", "forecast", "verification")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def main() -> None:
    """Entry point of `plumecast`."""
    try:
        # The numerical libraries read these once, when they load, which is before any option is parsed.
        settle_threads(sys.argv[1:])
        application()(prog_name="plumecast")
    except PlumecastError as error:
        if os.environ.get("PLUMECAST_DEBUG"):
            raise
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def application() -> typer.Typer:
    """The Typer app with the commands of all packages mounted."""
    app = typer.Typer(name="plumecast", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_globals)
    for package in PACKAGES:
        importlib.import_module(f"{package}.commands").register(app)
    return app


def settle_threads(arguments: Sequence[str]) -> None:
    """Set the thread count of every numerical library: `--threads`, else PLUMECAST_THREADS, else what is set, else
    OMP_NUM_THREADS, else the cores."""
    asked = _threads_asked(arguments) or os.environ.get("PLUMECAST_THREADS", "")
    shared = os.environ.get("OMP_NUM_THREADS", "")
    for variable in ("PLUMECAST_THREADS", *THREAD_VARIABLES):
        if asked.isdecimal() and int(asked) > 0:
            os.environ[variable] = asked
        else:
            os.environ.setdefault(variable, shared if shared.isdecimal() else str(_cores()))


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"plumecast {importlib.metadata.version('plumecast')}")
        raise typer.Exit


def _globals(
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, envvar="PLUMECAST_THREADS", show_envvar=True, help="Threads of the numerical libraries; default: the cores."
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")] = False,
) -> None:
    """Calibrated ensemble weather forecasts from gridded reanalysis, with honest probabilistic scores.

    Example: plumecast demo

    From data to a report: plumecast data ingest, train, forecast, verify, report. Every command has --help with an example.
    PLUMECAST_DEBUG=1 shows tracebacks.
    """
    import xarray as xr

    # xarray's default joins on the common labels: two grids that differ in the last digit would give an empty result.
    # bottleneck, where it is installed, would average float32 fields in float32.
    xr.set_options(arithmetic_join="exact", use_bottleneck=False)


def _threads_asked(arguments: Sequence[str]) -> str:
    for position, word in enumerate(arguments):
        if word == "--threads":
            return "".join(arguments[position + 1 : position + 2])
        if word.startswith("--threads="):
            return word.partition("=")[2]
        if not word.startswith("-"):
            break
    return ""


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # processes of torchrun share them


if __name__ == "__main__":
    main()
