"""Restart states on the disk: one npz a stamp, float32, without pickles, `state_YYYY-MM-DDTHH.npz`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.disk import sync
from data_pipeline.errors import InputError
from data_pipeline.planet.model import DYNAMICS, State

PHYSICS = "physics/"


def find(folder: str | Path) -> dict[pd.Timestamp, Path]:
    """{stamp: file} of the restart states in a folder, ascending. Raises InputError if there are none."""
    files = sorted(Path(folder).expanduser().glob("state_*.npz"))
    if not files:
        raise InputError(f"{folder} holds no restart state (state_YYYY-MM-DDTHH.npz); a nature run leaves them")
    return {pd.Timestamp(file.stem.removeprefix("state_")): file for file in files}


def save(folder: Path, state: State) -> Path:
    """Write a state, whole or not at all; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state_{state.time:%Y-%m-%dT%H}.npz"
    write_arrays(path, {**state.dynamics, **{PHYSICS + name: array for name, array in state.physics.items()}})
    return path


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Replace an npz file atomically and durably."""
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote. Raises InputError for a damaged file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is no restart state, or damaged: {error}") from None


def load(path: Path) -> State:
    """The state of a file; `physics` is empty where only the dynamics were kept. Raises InputError for a damaged file."""
    arrays = read_arrays(path)
    absent = [name for name in DYNAMICS if name not in arrays]
    if absent:
        raise InputError(f"{path} lacks {', '.join(absent)}; a restart state holds {', '.join(DYNAMICS)}")
    physics = {name.removeprefix(PHYSICS): array for name, array in arrays.items() if name.startswith(PHYSICS)}
    time = pd.Timestamp(path.stem.removeprefix("state_"))
    return State(time, {name: arrays[name] for name in DYNAMICS}, physics)
