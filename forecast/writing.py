"""The forecast store, written while the next leads are made, part by part: resumable, shared out over processes, added to later.

A part is an initialisation and a member block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import store
from data_pipeline.errors import InputError
from forecast.extend import published, recipe_of
from forecast.gate import GateSink, merged
from forecast.plan import ForecastPlan, Part, as_dataset, template

WAITING = 2  # buffers on their way to the disk while others are filled


class Background:
    """Calls one after the other on a thread of its own, `WAITING` at most. What one raises, a later `put` or `flush` raises."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: list[Future[Any]] = []

    def put(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Waits for the oldest call while there are too many."""
        self._settle(WAITING)
        self._waiting.append(self._thread.submit(call, *arguments))

    def flush(self) -> None:
        """Wait until everything is done."""
        self._settle(0)

    def stop(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def _settle(self, most: int) -> None:
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            self._waiting.pop(0).result()


@dataclass
class _Open:
    """A part in the making: the leads of the chunk that is being filled, and the chunks that are still to come."""

    part: Part
    left: list[slice]
    fields: np.ndarray | None = None
    is_new: np.ndarray = field(default_factory=lambda: np.empty((0, 0), bool))  # (lead, member): to be filled, not taken over
    missing: np.ndarray = field(default_factory=lambda: np.empty((0, 0), bool))  # of them, what has not come yet


class ZarrSink:
    """Writes a forecast store; what a finished store of the same settings holds at `path` is taken over, not asked for again.

    A part is an initialisation and a member block (`plan.parts`), put on the disk by a thread beside the roll-out; a killed run
    continues with the first unfinished one. only: names of the parts that this process is to write where several write one store
    side by side, each its own; whoever closes last publishes. The store stays as it was, and readable, until all is there. gate:
    the sink whose findings are kept in the attribute `gate`, as JSON. remarks: lines for the attribute `remarks`.
    """

    whole = False

    def __init__(self, path: str | Path, *, only: Collection[str] | None = None, gate: GateSink | None = None) -> None:
        self.path, self.only, self.gate = Path(path), only, gate
        self.remarks: list[str] = []
        self._writer: store.StoreWriter | None = None

    def open(self, plan: ForecastPlan) -> np.ndarray:
        """bool (time, lead, member): what is there, or left to others.

        Raises InputError, with the differences, for a store of other settings, or one with something that the plan lacks: see
        `forecast.extend.extended`.
        """
        self.plan, self._old = plan, published(self.path, plan)
        self._places = {member: place for place, member in enumerate(plan.members)}
        self._rows = {time: row for row, time in enumerate(plan.times)}
        held = np.zeros((plan.times.size, plan.leads.size, len(plan.members)), bool)
        if self._old is not None:
            held |= self._old.held(plan)
            if held.all():
                store.is_finished(self.path, self._old.manifest["recipe"])  # tidies up
                return held
            if self._old.missing_from(plan):
                raise InputError(f"{self.path} holds {_extent(self._old.plan)}; asked for {_extent(plan)}: ask for all of them")
        self._writer = store.create(
            self.path, template(plan), parts=[part.name for part in plan.parts], attrs=plan.attrs, chunks=plan.chunks,
            recipe=recipe_of(plan), writers="one" if self.only is None else "many",
            extends=None if self._old is None else self._old.manifest["recipe"],
        )  # fmt: skip
        self._background = Background()
        self._open: dict[str, _Open] = {}
        ours = [self._is_ours(part) for part in plan.parts]
        for part, own in zip(plan.parts, ours, strict=True):
            if not own:
                held[part.row, :, part.members] = True
            elif held[part.row, :, part.members].all():
                self._begin(part, held)
        self._background.flush()
        self._held = held
        return held

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        """Fields (member, channel, latitude, longitude) of some members; what is held is passed over."""
        if self._writer is None:
            return
        row, k = self._rows[time], int(np.flatnonzero(self.plan.leads == lead)[0])
        places = np.array([self._places[member] for member in members])
        block = self.plan.chunks["number"]
        for first in np.unique(places // block) * block:
            inside = (places >= first) & (places < first + block)
            wanted = inside & ~self._held[row, k, places]
            if wanted.any():
                self._fill(self._part_at(row, int(first)), k, places[wanted] - first, fields[wanted])

    @property
    def done(self) -> set[str]:
        """Names of the parts that are on the disk, whoever wrote them."""
        return {part.name for part in self.plan.parts} if self._writer is None else self._writer.done

    def close(self) -> None:
        """Publish the store, if every part is there."""
        if self._writer is None:
            return
        self._background.flush()
        self._background.stop()
        self._writer.refresh()
        if self.only is None or self._writer.done >= set(self._writer.parts):
            self._writer.finish(self._said)
        self.release()

    def release(self) -> None:
        """Drop the lock without publishing; what is complete stays."""
        if self._writer is not None:
            self._background.stop()
            self._writer.close()

    def _is_ours(self, part: Part) -> bool:
        assert self._writer is not None
        if part.name in self._writer.done or (self.only is not None and part.name not in self.only):
            return False
        return self.only is None or self._writer.claim(part.name)

    def _part_at(self, row: int, first: int) -> _Open:
        block = self.plan.chunks["number"]
        part = self.plan.parts[row * -(-len(self.plan.members) // block) + first // block]
        return self._open[part.name] if part.name in self._open else self._begin(part, self._held)

    def _begin(self, part: Part, held: np.ndarray) -> _Open:
        """Take over the chunks that are held whole; a part that has no others is done."""
        size = self.plan.chunks["prediction_timedelta"]
        runs = [slice(first, min(first + size, self.plan.leads.size)) for first in range(0, self.plan.leads.size, size)]
        whole = [run for run in runs if held[part.row, run, part.members].all()]
        self._open[part.name] = opened = _Open(part, [run for run in runs if run not in whole])
        for run in whole:
            self._background.put(self._take_over, part, run)
        self._complete_if_whole(opened)
        return opened

    def _fill(self, opened: _Open, k: int, places: np.ndarray, fields: np.ndarray) -> None:
        run, part = opened.left[0], opened.part
        if opened.fields is None:
            count = part.members.stop - part.members.start
            opened.fields = np.empty((run.stop - run.start, count, *fields.shape[1:]), np.float32)
            opened.is_new = ~self._held[part.row, run, part.members]
            opened.missing = opened.is_new.copy()
        opened.fields[k - run.start, places] = fields
        opened.missing[k - run.start, places] = False
        if not opened.missing.any():
            self._background.put(self._put, part, run, opened.fields, opened.is_new)
            opened.fields = None
            opened.left.pop(0)
            self._complete_if_whole(opened)

    def _complete_if_whole(self, opened: _Open) -> None:
        if not opened.left:
            assert self._writer is not None
            self._background.put(self._writer.complete, opened.part.name, self._note(opened.part))
            del self._open[opened.part.name]

    def _note(self, part: Part) -> dict[str, Any] | None:
        """Kept with a part, so that what was found is not lost when this process is killed."""
        note = {} if self.gate is None else {"gate": self.gate.note(self.plan.times[part.row], self.plan.members[part.members])}
        return note | ({"remarks": self.remarks} if self.remarks else {}) or None

    def _said(self, _: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Attributes of the whole store, from the notes of its parts and those of the store that it takes the place of."""
        assert self._writer is not None
        notes = [note for note in self._writer.notes.values() if note]
        old = {} if self._old is None else self._old.data.attrs
        reports = [note["gate"] for note in notes if "gate" in note] + ([json.loads(old["gate"])] if "gate" in old else [])
        remarks = [*old.get("remarks", "").splitlines(), *(line for note in notes for line in note.get("remarks", ()))]
        attrs = {"gate": json.dumps(merged(reports).as_dict())} if reports else {}
        return attrs | ({"remarks": "\n".join(dict.fromkeys(remarks))} if remarks else {}), {}

    def _take_over(self, part: Part, run: slice) -> None:
        """Chunks of the published store, as they are where they have the same form."""
        assert self._writer is not None
        assert self._old is not None
        source = self._old.box(self.plan, part, run)
        if source is None:
            self._put(part, run, self._old.read(self.plan, part, run), None)
        else:
            self._writer.share(part.name, self.path, self._old.manifest["files"], source, self._region(part, run))

    def _put(self, part: Part, run: slice, fields: np.ndarray, is_new: np.ndarray | None) -> None:
        assert self._writer is not None
        if is_new is not None and not is_new.all():
            assert self._old is not None
            fields = np.where(is_new[..., None, None, None], fields, self._old.read(self.plan, part, run))
        data = as_dataset(
            self.plan, fields[None], self.plan.times[part.row : part.row + 1], self.plan.leads[run],
            self.plan.members[part.members],
        )  # fmt: skip
        self._writer.put(part.name, data, self._region(part, run))

    def _region(self, part: Part, run: slice) -> dict[str, slice]:
        return {"time": slice(part.row, part.row + 1), "prediction_timedelta": run, "number": part.members}


def _extent(plan: ForecastPlan) -> str:
    hours = plan.leads / np.timedelta64(1, "h")
    return f"{plan.times.size} initialisations, {len(plan.members)} members, {plan.leads.size} leads up to {hours[-1]:g} h"
