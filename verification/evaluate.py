"""Forecast store x truth store -> score state, block by block: bounded memory, on threads or a dask cluster, resumable.

A block is some levels of one variable over a run of leads of one initialisation, of at most `BLOCK_BYTES`, or one field of all
members; blocks run side by side. Initialisations form parts; the sums of a finished part are put on the disk, so that a killed
run repeats one part at most. Sums are added in the order of the blocks, whoever computed them: a rerun, resumed or not, gives
the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.disk import Lock, sync
from data_pipeline.errors import InputError
from data_pipeline.memory import keep_freed_memory
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import Channel, channels_of, validate
from data_pipeline.store import open_store
from data_pipeline.workers import in_order, pool
from verification.accumulate import Accumulator, Block, Fields, Sums, climate_of, score_fields
from verification.inputs import Inputs, Request, open_inputs, request
from verification.plan import MissingTruth, Plan, plan_for, truth_rows
from verification.state import FORMAT, assemble, is_state, merge, open_state, save, variables

BLOCK_BYTES = 64 << 20  # members read at once by one thread
PART_BYTES = 256 << 20  # members of a part: what a killed run has to read again
WAITING = 2  # threads more than cores: a reader waits while zarr decodes in threads of its own

CASE_CHOICES = ("cases", "points")

Progress = Callable[[int, int], None]


def evaluate(
    forecast: xr.Dataset | Iterable[xr.Dataset],
    truth: xr.Dataset,
    *,
    climatology: xr.Dataset | None = None,
    missing_truth: MissingTruth = "error",
    progress: Progress | None = None,
    **choice: Any,
) -> xr.Dataset:
    """The score state of a forecast against the analysis at its valid times.

    forecast: in the forecast schema, or several of them with disjoint initialisations. truth: in the analysis schema, on the same
    grid and in the same units; with a land_sea_mask the state can be read for land and sea. climatology: mean and quantiles by
    hour and day of year, for anomalies and events. missing_truth: valid times that the truth lacks are an error that lists them,
    or skipped. progress: called with (initialisations done, of how many). choice: channels, leads, events, radii, cases and
    points, see `verification.plan.plan_for` (those left out are in attrs["not_scored"]). Raises InputError before any forecast
    is read.
    """
    if not isinstance(forecast, xr.Dataset):
        options: dict[str, Any] = {"climatology": climatology, "missing_truth": missing_truth, "progress": progress, **choice}
        cases = options.pop("cases", ())
        return merge(
            [evaluate(part, truth, cases=[case for case in cases if case in part["time"].values], **options) for part in forecast]
        )
    inputs = Inputs(forecast, truth, climatology)
    plan = _plan_of(inputs, choice)
    rows = truth_rows(truth, plan.times, plan.leads, missing_truth)
    with pool(None, waiting=WAITING) as workers:
        return _score(plan, inputs, rows, functools.partial(score_block, inputs), workers, None, progress)


def score_store(
    forecast_path: str | Path,
    truth_path: str | Path,
    out_path: str | Path,
    *,
    climatology_path: str | Path | None = None,
    derived: Sequence[str] = (),
    regrid: bool = False,
    missing_truth: MissingTruth = "error",
    progress: Progress | None = None,
    cluster: str | None = None,
    **choice: Any,
) -> xr.Dataset:
    """Evaluate a stored forecast and save the state at `out_path`; a state made from the same inputs is read, not made again.

    derived: names for `verification.derive.derive`. regrid: put the finer of forecast and truth on the other's grid,
    conservatively; without it unequal grids are an error. cluster: address of a dask.distributed scheduler; its workers must see
    the same paths. Finished parts wait in `<out_path>.parts` until the state is whole, so that a killed run goes on where it was.
    """
    out, wanted = Path(out_path), request(forecast_path, truth_path, climatology_path, derived, regrid)
    identity, core = _inputs_of(wanted, missing_truth, choice)
    if _is_made_from(out, identity, core, choice):
        shutil.rmtree(stash_of(out), ignore_errors=True)  # killed between saving and tidying up
        return open_state(out)
    if out.exists() and not is_state(out):
        raise InputError(f"{out} exists and is not a score state; choose another --out")
    keep_freed_memory()
    inputs = open_inputs(wanted)
    plan = _plan_of(inputs, choice)
    rows = truth_rows(inputs.truth, plan.times, plan.leads, missing_truth)
    score = functools.partial(score_stored_block, wanted) if cluster else functools.partial(score_block, inputs)
    with stash(out, identity) as folder, pool(cluster, waiting=WAITING) as workers:
        state = _score(plan, inputs, rows, score, workers, folder, progress)
        state.attrs |= {"inputs": identity, "inputs_without_cases": core}
        save(state, out)
    return state


def planned(
    forecast_path: str | Path,
    truth_path: str | Path,
    out_path: str | Path,
    *,
    climatology_path: str | Path | None = None,
    derived: Sequence[str] = (),
    regrid: bool = False,
    missing_truth: MissingTruth = "error",
    **choice: Any,
) -> tuple[Plan, bool]:
    """What `score_store` would score, with all its checks, and whether the state is there already."""
    wanted = request(forecast_path, truth_path, climatology_path, derived, regrid)
    inputs = open_inputs(wanted)
    plan = _plan_of(inputs, choice)
    truth_rows(inputs.truth, plan.times, plan.leads, missing_truth)
    return plan, _is_made_from(Path(out_path), *_inputs_of(wanted, missing_truth, choice), choice)


def score_block(inputs: Inputs, plan: Plan, rows: np.ndarray, block: Block) -> Sums:
    """Read one block and make its sums. rows: positions in the truth of its valid times."""
    channels = [Channel.parse(label) for label in block.channels]
    positions = np.searchsorted(inputs.forecast["prediction_timedelta"].values, block.leads)
    chosen = inputs.forecast.sel(time=block.time).isel(prediction_timedelta=_as_slice(positions))
    members, truth = _values(chosen, channels), _values(inputs.truth.isel(time=rows), channels)
    return score_fields(plan, block, Fields(members, truth, *climate_of(plan, inputs.climatology, block)))


def score_stored_block(wanted: Request, plan: Plan, rows: np.ndarray, block: Block) -> Sums:
    """`score_block` for a worker that has paths only."""
    return score_block(open_inputs(wanted), plan, rows, block)


def _inputs_of(wanted: Request, missing_truth: str, choice: Mapping[str, Any]) -> tuple[str, str]:
    """What a saved state is recognised by: the bytes it was made from, and what was asked, with and without cases."""
    asked = {key: None if value is None else list(map(str, value)) for key, value in choice.items() if key not in CASE_CHOICES}
    options = {"derived": list(wanted.derived), "regrid": wanted.regrid, "missing_truth": missing_truth, **asked}
    core = fingerprint({"format": FORMAT, "inputs": wanted.identity, "choice": options})
    cases = {key: str(choice.get(key)) for key in CASE_CHOICES if choice.get(key)}
    return fingerprint({"core": core, "cases": cases}), core


def _is_made_from(out: Path, identity: str, core: str, choice: Mapping[str, Any]) -> bool:
    """True if the state at `out` was made from these inputs; cases that it has beyond those asked for do no harm."""
    if not is_state(out):
        return False
    attrs = open_store(out).attrs
    more = not any(choice.get(key) for key in CASE_CHOICES) and attrs.get("inputs_without_cases") == core
    return attrs.get("inputs") == identity or more


def _plan_of(inputs: Inputs, choice: Mapping[str, Any]) -> Plan:
    validate(inputs.forecast, "forecast")
    validate(inputs.truth, "analysis")
    return plan_for(inputs.forecast, inputs.truth, climatology=inputs.climatology, **choice)


def _score(
    plan: Plan,
    inputs: Inputs,
    rows: np.ndarray,
    score: Callable[[Plan, np.ndarray, Block], Sums],
    workers: Executor,
    folder: Path | None,
    progress: Progress | None,
) -> xr.Dataset:
    """Score part after part; those already in `folder` are read back."""
    parts = [Part(plan, times, folder) for times in _parts(plan)]
    blocks = [_blocks_of(part.plan, inputs.forecast, rows[part.times]) for part in parts]
    wanted = [task for part, own in zip(parts, blocks, strict=True) if not part.is_kept for task in own]
    results = in_order(workers, score, wanted)

    def scored() -> Iterator[Sums]:
        for part, own in zip(parts, blocks, strict=True):
            if part.is_kept:
                yield part.read()
            else:
                accumulator = Accumulator(part.plan)
                for index, (_, _, block) in enumerate(own):
                    accumulator.put(block, next(results))
                    if progress is not None and index + 1 < len(own) and own[index + 1][2].time != block.time:
                        progress(part.times.start + int(np.searchsorted(part.plan.times, block.time)) + 1, len(plan.times))
                part.keep(accumulator.sums)
                yield accumulator.sums
            if progress is not None:
                progress(part.times.stop, len(plan.times))

    return whole_state(plan, scored())


def whole_state(plan: Plan, parts: Iterable[Sums]) -> xr.Dataset:
    """The state of a plan from the sums of its parts, in their order; only the total of the maps is held."""
    found: list[Sums] = []
    maps: Sums = {}
    for part in parts:
        own_maps = {name: part[name] for name in part if name.startswith("map_")}
        maps = {name: maps[name] + values for name, values in own_maps.items()} if maps else own_maps
        found.append({name: values for name, values in part.items() if name not in own_maps})
    joined = {name: _join(dims, name, found) for name, dims in variables(plan).items() if name not in maps}
    return assemble(plan, joined | maps)


class Part:
    """Some initialisations of a plan, and the file that keeps their sums until all are there."""

    def __init__(self, plan: Plan, times: slice, folder: Path | None) -> None:
        self.times = times
        chosen = plan.times[times]
        self.plan = replace(plan, times=chosen, cases=tuple(case for case in plan.cases if case in chosen))
        self._file = None if folder is None else folder / f"{times.start:06d}.npz"

    @property
    def is_kept(self) -> bool:
        return self._file is not None and self._file.is_file()

    def read(self) -> Sums:
        assert self._file is not None
        with np.load(self._file) as held:
            return dict(held)

    def keep(self, sums: Sums) -> None:
        """Write the sums durably: the file is there whole, or not at all."""
        if self._file is None:
            return
        temporary = self._file.with_suffix(".partial")
        with temporary.open("wb") as stream:
            np.savez(stream, **sums)  # type: ignore[arg-type]
        sync(temporary)
        temporary.replace(self._file)
        sync(self._file.parent)


def _blocks_of(plan: Plan, forecast: xr.Dataset, rows: np.ndarray) -> list[tuple[Plan, np.ndarray, Block]]:
    """The arguments of every block of a part, initialisation by initialisation."""
    lean = replace(plan, attrs={})  # what travels to a worker
    tasks = []
    for index, time in enumerate(plan.times):
        present = np.flatnonzero(rows[index] >= 0)
        for channels, leads in _blocks(forecast, plan, present):
            tasks.append((lean, rows[index, leads], Block(time, plan.leads[leads], channels)))
    return tasks


def _parts(plan: Plan) -> Iterator[slice]:
    each = plan.members * plan.leads.size * len(plan.channels) * plan.grid.areas.size * 4
    size = max(1, PART_BYTES // each)
    for start in range(0, len(plan.times), size):
        yield slice(start, min(start + size, len(plan.times)))


def _join(dims: Sequence[str], name: str, parts: Sequence[Sums]) -> np.ndarray:
    """Rows one after the other."""
    axis = list(dims).index("case_time" if "case_time" in dims else "time")
    return np.concatenate([part[name] for part in parts if name in part], axis=axis)


def stash_of(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


@contextlib.contextmanager
def stash(out: Path, identity: str) -> Iterator[Path]:
    """The folder of finished parts of these inputs, held by one process; removed once the state is saved."""
    root = stash_of(out)
    lock = Lock(root / "lock")
    try:
        for other in root.iterdir():
            if other.is_dir() and other.name != identity:
                shutil.rmtree(other)
        (root / identity).mkdir(exist_ok=True)
        yield root / identity
        shutil.rmtree(root)
    finally:
        lock.release()


def _blocks(forecast: xr.Dataset, plan: Plan, leads: np.ndarray) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Work of one initialisation: levels of a variable x a run of leads, whose members fit the bound, or one field of them."""
    known = {channel.label: channel for channel in channels_of(forecast)}
    groups: dict[str, list[str]] = {}
    for label in plan.channels:
        groups.setdefault(known[label].name, []).append(label)
    blocks = []
    field_bytes = plan.members * plan.grid.areas.size * 4
    for name, group in groups.items():
        levels = max(1, BLOCK_BYTES // field_bytes)  # of one lead
        for first in range(0, len(group), levels):
            some = tuple(group[first : first + levels])
            size = max(1, BLOCK_BYTES // (field_bytes * len(some)))
            stored = _stored_run(forecast[name])
            size = size // stored * stored or size  # whole chunks, where they fit
            blocks += [(some, leads[start : start + size]) for start in range(0, len(leads), size)]
    return blocks


def _stored_run(array: xr.DataArray) -> int:
    """Leads that lie in one chunk of the store."""
    chunks = array.encoding.get("chunks") or ()
    return int(chunks[array.dims.index("prediction_timedelta")]) if len(chunks) == array.ndim else 1


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """A run of positions as a slice, which a store reads without picking values one by one."""
    run = positions.size > 0 and np.array_equal(positions, np.arange(positions[0], positions[0] + positions.size))
    return slice(int(positions[0]), int(positions[-1]) + 1) if run else positions


def _values(data: xr.Dataset, group: Sequence[Channel]) -> np.ndarray:
    """The levels of one variable, (lead or time, [member], channel, latitude, longitude), read in one go."""
    array = data[group[0].name]
    if "level" in array.dims:
        levels = array["level"].values.tolist()
        array = array.isel(level=_as_slice(np.array([levels.index(channel.level) for channel in group])))
    else:
        array = array.expand_dims("level")
    first = "prediction_timedelta" if "prediction_timedelta" in array.dims else "time"
    order = [dim for dim in (first, "number", "level", "latitude", "longitude") if dim in array.dims]
    return np.asarray(array.transpose(*order).values)
