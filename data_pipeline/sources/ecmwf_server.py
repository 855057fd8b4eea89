"""The server of ECMWF's open data: which fields of a cycle are there, and files that hold exactly the fields asked for.

Everything goes through the client `ecmwf-opendata` (extra `live`). It only warns about fields that it does not find, once a
process, and leaves a file short where the connection broke: here the index is read first, and a file gets its name only when it
holds every field asked for, by paramId, level, date and step, and nothing else.
"""

from __future__ import annotations

import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from data_pipeline.disk import sync
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import Channel
from data_pipeline.sources.grib import Header, scan
from data_pipeline.variables import UnknownVariableError, identify, lookup

CYCLE_50R1 = pd.Timestamp("2026-05-12")  # from here on the 06 and 18 UTC runs are in `oper`; before, in `scda`
SECONDS = 60.0  # a connection that is silent for longer is given up
TRIES = 6
FIRST_WAIT = 5.0  # seconds; doubled at each try, 155 s in all
_PASSING = (408, 429, 500, 502, 503, 504)  # answers of a busy server, or of what stands before it

Result = TypeVar("Result")


@dataclass(frozen=True, order=True)
class Field:
    """One field of the server: cycle (initialisation), step in hours, and its channel, without hours if it is accumulated."""

    cycle: pd.Timestamp
    step: int
    channel: Channel

    def __str__(self) -> str:
        return f"{self.channel} at step {self.step} of {self.cycle:%Y-%m-%dT%H}"


@dataclass(frozen=True)
class Gap:
    """A field that is not there: `filed` if the file of its cycle and step is, but without it."""

    field: Field
    filed: bool


@dataclass(frozen=True)
class Entry:
    """What an index says of a field: the server's name of the parameter, and its bytes."""

    param: str
    length: int


class Server:
    """ECMWF's own server (`ecmwf`), a mirror (`aws`, `google`, `azure`), or the URL of a copy in the same layout.

    report: called with a line for each file and each trouble. wait: called with the seconds before the next try. Raises
    InputError if the extra `live` is not installed or the source is not known.
    """

    def __init__(
        self, source: str = "ecmwf", *, report: Callable[[str], None] = lambda line: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.source, self.report, self.wait = source, report, wait
        self.client = _client(source)
        self._indices: dict[tuple[pd.Timestamp, int], dict[Channel, Entry]] = {}

    def gaps(self, fields: Iterable[Field]) -> list[Gap]:
        """Those of the fields that are not there (yet)."""
        found = []
        for field in sorted(set(fields)):
            index = self.index(field.cycle, field.step)
            if index is None or field.channel not in index:
                found.append(Gap(field, filed=index is not None))
        return found

    def index(self, cycle: pd.Timestamp, step: int) -> dict[Channel, Entry] | None:
        """The known fields of one file, or None if it is not there. Raises NotReadyError if the server does not answer."""
        key = (cycle, step)
        if key not in self._indices:
            text = self._read(f"{self.client.url}/{_path(cycle, step)}.index")
            parsed = None if text is None else _parse(text, step)
            if parsed is None:  # asked again at the next call: it may be there by then
                return None
            self._indices[key] = parsed
        return self._indices[key]

    def size(self, fields: Iterable[Field]) -> int:
        """Bytes of fields that are there."""
        return sum((self.index(field.cycle, field.step) or {})[field.channel].length for field in set(fields))

    def fetch(self, fields: Iterable[Field], folder: Path) -> dict[tuple[pd.Timestamp, int], list[Path]]:
        """Files in `folder` with exactly these fields, by cycle and step; those that are there already are checked and kept.

        Raises NotReadyError if the server does not give them, whole, in the end.
        """
        wanted: dict[tuple[pd.Timestamp, int], list[Channel]] = defaultdict(list)
        for field in sorted(set(fields)):
            wanted[field.cycle, field.step].append(field.channel)
        return {key: [self._file(*key, group, folder) for group in _blocks(channels)] for key, channels in wanted.items()}

    def _file(self, cycle: pd.Timestamp, step: int, channels: list[Channel], folder: Path) -> Path:
        index = self.index(cycle, step) or {}
        request = _request(cycle, step, channels, index)
        target = folder / f"{cycle:%Y%m%d%H}-{step}h-{request['levtype']}-{fingerprint(request)[:8]}.grib2"
        size = sum(index[channel].length for channel in channels)
        what = f"{cycle:%Y-%m-%dT%H} step {step}: {len(channels)} {request['levtype']} fields, {size / 1e6:.1f} MB"
        if target.exists() and not _faults(target, cycle, step, channels):
            self.report(f"{what}, there already")
            return target
        temporary = target.with_name(target.name + ".partial")

        def download() -> None:
            with _quiet():
                self.client.retrieve(request, target=str(temporary))
            faults = _faults(temporary, cycle, step, channels)
            if faults:
                raise _DamagedError(faults)

        self._persistently(what, download)
        sync(temporary)
        temporary.replace(target)
        self.report(what)
        return target

    def _read(self, url: str) -> str | None:
        """The text at a URL, None if there is nothing."""

        def get() -> str | None:
            answer = self.client.session.get(url, verify=self.client.verify)
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            return str(answer.text)

        return self._persistently(url, get)

    def _persistently(self, what: str, call: Callable[[], Result]) -> Result:
        import requests

        trouble: Exception | None = None
        for attempt in range(TRIES):
            if attempt:
                self.report(f"{what}: {_told(trouble)}; try {attempt + 1} of {TRIES}")
                self.wait(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return call()
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code not in _PASSING:
                    raise InputError(f"{what}: the server refuses, {error}; name another --source") from None
                trouble = error
            # the client's streams answer a short body with an assertion or a RuntimeError, a missing header with a KeyError
            except (requests.RequestException, _DamagedError, AssertionError, RuntimeError, KeyError) as error:
                trouble = error
        raise NotReadyError(
            f"{what}: gave up after {TRIES} tries, {_told(trouble)}. Run the same command again later (what has come is kept), "
            f"or name another --source; now {self.source}, {self.client.url}"
        )


class _DamagedError(Exception):
    """A file that is not what was asked for."""


def stream(cycle: pd.Timestamp) -> str:
    """The stream of the high-resolution run of a cycle."""
    return "scda" if cycle < CYCLE_50R1 and cycle.hour in (6, 18) else "oper"


def _client(source: str) -> Any:
    try:
        from ecmwf.opendata import Client
        from requests.adapters import HTTPAdapter
    except ImportError:
        raise InputError("live data need the extra `live`: pip install plumecast[live]") from None

    class Impatient(HTTPAdapter):
        """The client sets no time limit: a connection that hangs would hang for ever."""

        def send(self, *args: Any, **kwargs: Any) -> Any:
            return super().send(*args, **(kwargs | {"timeout": kwargs.get("timeout") or SECONDS}))

    try:
        with _quiet():  # the stream is ours (old clients do not know 50r1), and so are the tries
            client = Client(source, infer_stream_keyword=False, maximum_retries=1, retry_after=0)
    except ValueError:
        raise InputError(f"source {source!r} is not known; choose ecmwf, aws, google, azure or an http URL") from None
    client.session.mount("https://", Impatient())
    client.session.mount("http://", Impatient())
    return client


def _path(cycle: pd.Timestamp, step: int) -> str:
    name = stream(cycle)
    return f"{cycle:%Y%m%d}/{cycle:%H}z/ifs/0p25/{name}/{cycle:%Y%m%d%H}0000-{step}h-{name}-fc"


def _parse(text: str, step: int) -> dict[Channel, Entry] | None:
    """The known fields of an index, or None if it is not one (being written, or a page of something in between)."""
    found: dict[Channel, Entry] = {}
    try:
        for entry in map(json.loads, text.splitlines()):
            channel = _indexed(entry)
            if channel is not None and (entry["type"], entry["step"]) == ("fc", str(step)):
                found.setdefault(channel, Entry(entry["param"], int(entry["_length"])))
    except (ValueError, KeyError, TypeError):
        return None
    return found


def _indexed(entry: dict[str, Any]) -> Channel | None:
    if entry["levtype"] == "pl":
        return _channel(entry["param"], {}, int(entry["levelist"]))
    return _channel(entry["param"], {}, None) if entry["levtype"] == "sfc" else None


def _channel(name: str, attrs: dict[str, Any], level: int | None) -> Channel | None:
    """The channel of a parameter on a pressure level, or at the surface; None if the table does not know it."""
    try:
        canonical = identify(name, attrs, on_levels=level is not None, height=0.0 if level is None else None)
    except UnknownVariableError:
        return None
    known = lookup(canonical)
    return Channel(canonical, level) if known is not None and known.on_levels == (level is not None) else None


def _blocks(channels: Sequence[Channel]) -> list[list[Channel]]:
    """Channels that one request gives: the surface, and variables that are wanted on the same levels."""
    levels: dict[str, list[int | None]] = defaultdict(list)
    for channel in channels:
        levels[channel.name].append(channel.level)
    blocks: dict[tuple[int | None, ...], list[Channel]] = defaultdict(list)
    for channel in channels:
        blocks[tuple(levels[channel.name])].append(channel)
    return list(blocks.values())


def _request(cycle: pd.Timestamp, step: int, channels: list[Channel], index: dict[Channel, Entry]) -> dict[str, Any]:
    levels = sorted({channel.level for channel in channels if channel.level is not None})
    request = {
        "date": f"{cycle:%Y%m%d}", "time": cycle.hour, "stream": stream(cycle), "type": "fc", "step": step,
        "levtype": "pl" if levels else "sfc", "param": sorted({index[channel].param for channel in channels}),
    }  # fmt: skip
    return {**request, "levelist": levels} if levels else request


def _faults(path: Path, cycle: pd.Timestamp, step: int, channels: list[Channel]) -> str:
    """What a file lacks or has too much of the fields asked for; empty if it is right."""
    try:
        found = [_described(header) for header in scan(path)]
    except InputError as error:
        return str(error)
    wanted = [(int(f"{cycle:%Y%m%d}"), cycle.hour * 100, step, channel) for channel in channels]
    missing = [str(one[-1]) for one in wanted if one not in found]
    other = [
        f"{name} of {date}, {hour} UTC, step {end}" for date, hour, end, name in found if (date, hour, end, name) not in wanted
    ]
    faults = [f"{', '.join(missing)} did not come"] if missing else []
    faults += [f"{', '.join(other)} came unasked"] if other else []
    faults += [f"{len(found)} messages for {len(wanted)} fields"] if len(found) != len(wanted) else []
    return "; ".join(faults)


def _described(header: Header) -> tuple[int, int, int, Channel | None]:
    """(date, time, step, channel) of a message, known by its paramId."""
    param_id, level_type = header.group[:2]
    _, date, hour, end, level = header.place
    return date, hour, end, _channel(header.name, {"GRIB_paramId": param_id}, level if level_type == "isobaricInhPa" else None)


def _told(error: Exception | None) -> str:
    return f"{error}".strip() or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's bars and notes: what they tell is checked and reported here."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
