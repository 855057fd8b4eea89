"""From a source to a published analysis store: parts by threads, processes or a cluster, resumable, extendable in time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline import quality, store
from data_pipeline.errors import InputError, PlumecastError
from data_pipeline.kept import PARTS, content, read_edges, read_kept
from data_pipeline.memory import keep_freed_memory
from data_pipeline.parts import make_part
from data_pipeline.plan import AnalysisSection, Plan, attributes, plan, template
from data_pipeline.recipe import section
from data_pipeline.source import SourceSection, identify_source
from data_pipeline.workers import cores, in_order, pool

FINDINGS = 20  # kept in the store
WAITING = 1  # threads more than cores: one waits for the disk
EXTEND = "to add what is new and keep what is there: --extend\n"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """An ingest as a worker of a cluster gets it: recipe, identity and the recipe that is extended, as JSON; the store's path."""

    recipe: str
    identity: str
    extends: str
    out: str


def ingest(
    recipe: Mapping[str, Any],
    out: Path,
    *,
    extend: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build the analysis store that `recipe` describes at `out`; returns its path.

    Killed at any point and run again, it continues; the result has the same bytes. A finished one is left untouched. Parts are
    made side by side: by threads, or by the workers of the dask scheduler at the address `cluster` (they must see the same
    paths); several processes that run the same recipe share the parts, and one of them publishes. extend: a finished store of an
    earlier analysis.stop, or of fewer files, is replaced by the longer one at once, when that is whole; readers of the old one
    read on. `progress` is called with (stamps done, stamps in all). Every field passes `quality.check`; its table and findings
    are the attribute `quality`. Raises InputError for anything wrong with the recipe or the source, before the first block is
    written where it can be known; for an `out` made by another recipe, with the differences.
    """
    source, analysis = section(recipe, "source", SourceSection), section(recipe, "analysis", AnalysisSection)
    identity = identify(source, analysis)
    old = store.read_manifest(out)["recipe"] if store.is_store(out) else None
    longer = old is not None and _is_extension(old, identity)
    if not (extend and longer) and store.is_finished(out, identity, hint=EXTEND if longer else ""):
        return out
    extends = old if extend and longer else None
    job = Job(json.dumps(dict(recipe), default=str), json.dumps(identity), json.dumps(extends), str(out))
    keep_freed_memory()
    try:
        if extends is not None:
            _check_beginning(out, extends, _prepared(job)[0])
        with _open(job) as writer:
            return _run(job, writer, source, cluster, progress)
    except OSError as error:
        raise PlumecastError(
            f"{store.partial_path(out)} cannot be written: {error.strerror or error}; what is done stays, and the same command "
            "continues once it can"
        ) from error
    finally:
        _prepare.cache_clear()  # and with it, what holds the source's files open


def identify(source: SourceSection, analysis: AnalysisSection) -> dict[str, Any]:
    """What decides the content of the store: both sections, with the place of the source replaced by what it is recognised by."""
    return {"source": identify_source(source), "analysis": analysis.model_dump(mode="json")}


def _run(job: Job, writer: store.StoreWriter, source: SourceSection, cluster: str | None, progress: Progress | None) -> Path:
    if writer.finished:
        return writer.path
    planned, _, _ = _prepared(job)
    if job.extends != "null":
        _adopt(planned, writer)
    missing = [(part,) for part in planned.parts if part not in writer.done]
    make = partial(make_part, planned, writer, faults=source.faults) if cluster is None else partial(_make_remote, job)
    with pool(cluster, waiting=WAITING) as workers:
        for _ in in_order(workers, make, missing):
            _tell(progress, planned, writer)
    for part in planned.parts:  # those that other processes have: when one dies, its part is free
        make_part(planned, writer, part, faults=source.faults, wait=True)
    writer.refresh()
    _tell(progress, planned, writer)
    merged = quality.merge([writer.notes[part] for part in planned.parts]) if not writer.finished else {}
    return writer.finish(lambda root: _closing(root, planned, writer, merged))


_OPENING = threading.Lock()


def _prepared(job: Job) -> tuple[Plan, xr.Dataset, dict[str, Any]]:
    """Plan, template and attributes of a job, made once a process: libraries that open files are not safe in threads."""
    with _OPENING:
        return _prepare(job)


@lru_cache(maxsize=1)
def _prepare(job: Job) -> tuple[Plan, xr.Dataset, dict[str, Any]]:
    recipe = json.loads(job.recipe)
    source, analysis = section(recipe, "source", SourceSection), section(recipe, "analysis", AnalysisSection)
    planned = plan(source, analysis)
    return planned, template(planned), attributes(source, analysis, planned)


def _open(job: Job) -> store.StoreWriter:
    """A writer of the job's store, one of several."""
    planned, empty, attrs = _prepared(job)
    return store.create(
        job.out, empty, parts=list(planned.parts), attrs=attrs, chunks={"time": planned.chunk}, recipe=json.loads(job.identity),
        writers="many", extends=json.loads(job.extends),
    )  # fmt: skip


def _make_remote(job: Job, part: str) -> bool:
    """`make_part` on a worker that has the job only."""
    with _open(job) as writer:
        faults = section(json.loads(job.recipe), "source", SourceSection).faults
        return not writer.finished and make_part(_prepared(job)[0], writer, part, faults=faults)


def _tell(progress: Progress | None, planned: Plan, writer: store.StoreWriter) -> None:
    if progress is not None:
        writer.refresh()
        boxes = [box for part, box in planned.parts.items() if part in writer.done]
        progress(sum(box.stop - box.start for box in boxes), len(planned.times))


def _closing(
    root: Path, planned: Plan, writer: store.StoreWriter, merged: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of the whole: attributes, and the file of the parts with the changes from one part to the next."""
    data, notes = store.open_tree(root), {part: dict(writer.notes[part]) for part in planned.parts}
    open_ones = [(part, box) for part, box in planned.parts.items() if "edge" not in notes[part] and box.start]
    with ThreadPoolExecutor(cores()) as threads:
        edges = threads.map(lambda item: read_edges(data, planned.channels, item[1], planned.hours), open_ones)
        for (part, _), edge in zip(open_ones, edges, strict=True):
            notes[part]["edge"] = edge
    findings = [f"{finding['where']}: {finding['message']}" for finding in merged["findings"]][:FINDINGS]
    table = {channel.label: dict(sorted(merged["channels"][channel.label].items())) for channel in planned.channels}
    attrs = {"quality": json.dumps({"table": table, "findings": findings})}
    return attrs, {PARTS: content(planned.hours, planned.parts, notes)}


def _is_extension(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """True if `new` differs from `old` by a later stop, or by files that came to the others, or both."""

    def fixed(recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "source": {key: value for key, value in recipe.get("source", {}).items() if key != "files"},
            "analysis": {key: value for key, value in recipe.get("analysis", {}).items() if key != "stop"},
        }

    files = [recipe.get("source", {}).get("files", {}) for recipe in (old, new)]
    return old != new and fixed(old) == fixed(new) and files[0].items() <= files[1].items()


def _check_beginning(out: Path, extends: Mapping[str, Any], planned: Plan) -> None:
    """Raise InputError, before anything is written, unless the store that is extended is a beginning of the new one."""
    times = store.open_store(out)["time"].values
    fits = np.array_equal(times, planned.times[: times.size]) and times.size < len(planned.times)
    if not fits and store.read_manifest(out)["recipe"] == extends:  # else another process has just published the new one
        raise InputError(
            f"{out} holds {times.size} stamps {times[0]} .. {times[-1]}, which is no beginning of the "
            f"{len(planned.times)} stamps {planned.times[0]} .. {planned.times[-1]}; write to another place (--out)"
        )


def _adopt(planned: Plan, writer: store.StoreWriter) -> None:
    """Take over the whole parts of the store that is extended."""
    kept = read_kept(writer.path)
    if kept is None or store.read_manifest(writer.path)["layout"]["chunks"] != {"time": planned.chunk}:
        return
    old = {(int(start), int(stop)): note for start, stop, note in zip(kept.starts, kept.stops, kept.notes, strict=True)}
    for part, box in planned.parts.items():
        note = old.get((box.start, box.stop))
        if note is not None and kept.hours == planned.hours and writer.claim(part):
            writer.adopt(part, writer.path, {"time": box}, note)
