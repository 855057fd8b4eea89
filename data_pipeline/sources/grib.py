"""GRIB files through cfgrib, every message accounted for.

cfgrib alone skips messages that it cannot decode, drops fields that do not fit its first hypercube, and fills absent ones with
NaN. Here the headers are scanned first: a cut file, a repeated field and an absent field are errors, and each parameter is opened
by itself, so that control and members, or fields with other steps, do not hide each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import eccodes
import xarray as xr
from cfgrib.messages import FileStream

from data_pipeline.errors import InputError

GRID_TYPES = ("regular_ll", "regular_gg")
_CUBE = ("number", "dataDate", "dataTime", "step", "level")

FieldId = int | tuple[int, int]  # byte offset, and the place in a multi-field message


@dataclass(frozen=True)
class Header:
    """What the scan keeps of one message."""

    id: FieldId
    group: tuple[Any, ...]  # messages of one group form one hypercube
    place: tuple[Any, ...]  # of the message in it, by _CUBE
    name: str
    window: tuple[int, int] | None  # hours of the run over which it is accumulated, or the mean or extreme of


class Messages(Mapping[FieldId, Any]):
    """Some messages of a file, read when asked for: what cfgrib calls a fieldset."""

    def __init__(self, path: str, ids: list[FieldId]) -> None:
        self.path = path
        self.ids = ids

    def __getitem__(self, field_id: FieldId) -> Any:
        return FileStream(self.path, errors="raise")[field_id]

    def __iter__(self) -> Iterator[FieldId]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def open_grib(path: Path) -> list[xr.Dataset]:
    """One lazy dataset per parameter, level type and data type, in cfgrib's form; step and number as cfgrib gives them.

    Raises InputError for a file that is not GRIB, is cut (with the byte offset and the messages before it), holds a field twice,
    lacks a field of its own block, or is not on a latitude-longitude grid.
    """
    groups: dict[tuple[Any, ...], list[Header]] = defaultdict(list)
    for header in scan(path):
        groups[header.group].append(header)
    return [_open_group(path, headers) for headers in groups.values()]


def scan(path: Path) -> list[Header]:
    """The header of every message, in file order. Raises InputError for a file that is not GRIB or is cut."""
    if b"GRIB" not in _bytes(path, 0, 512):
        raise InputError(f"{path} is none of NetCDF, GRIB and zarr: its first bytes are {_bytes(path, 0, 8)!r}")
    headers: list[Header] = []
    end = 0
    try:
        for field_id, message in FileStream(str(path), errors="raise").items():
            headers.append(_header(path, field_id, message))
            start = field_id[0] if isinstance(field_id, tuple) else field_id
            _check_gap(path, end, start, len(headers) - 1)
            end = max(end, start + int(message["totalLength"]))
            if _bytes(path, end - 4, end) != b"7777":
                raise InputError(_cut(path, start, len(headers) - 1, "a message lacks its end mark 7777"))
    except (EOFError, eccodes.CodesInternalError) as error:
        raise InputError(_cut(path, end, len(headers), str(error))) from None
    rest = _bytes(path, end, path.stat().st_size).strip(b"\0\r\n\3 ")
    if rest:
        raise InputError(_cut(path, end, len(headers), f"{len(rest)} more bytes are no message"))
    return headers


def _cut(path: Path, offset: int, messages: int, what: str) -> str:
    size = path.stat().st_size
    return (
        f"{path} is cut or damaged: after {messages} whole messages, at byte {offset} of {size}, {what.rstrip('.')}; "
        "get the file again"
    )


def _check_gap(path: Path, start: int, stop: int, messages: int) -> None:
    if stop > start and b"GRIB" in _bytes(path, start, stop):
        raise InputError(_cut(path, start, messages, "a message cannot be decoded"))


def _bytes(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(max(0, stop - start))


def _header(path: Path, field_id: FieldId, message: Any) -> Header:
    def key(name: str) -> Any:
        try:
            return message[name]
        except KeyError:
            return None

    name = str(key("shortName"))
    if key("gridType") not in GRID_TYPES:
        raise InputError(f"{path}: {name} is on a {key('gridType')} grid; regrid it to latitude and longitude first")
    level_type = key("typeOfLevel")
    apart = key("level") if level_type != "isobaricInhPa" else None
    group = (key("paramId"), level_type, apart, key("dataType"), key("stepType"), key("md5GridSection"))
    place = tuple(key("endStep" if part == "step" else part) for part in _CUBE)
    window = (key("startStep"), key("endStep")) if key("stepType") != "instant" else None
    known = window is not None and all(isinstance(step, int) for step in window) and key("stepUnits") == 1
    return Header(field_id, group, place, name, window if known else None)


def _open_group(path: Path, headers: list[Header]) -> xr.Dataset:
    _check_block(path, headers)
    messages = Messages(str(path), [header.id for header in headers])
    windows = sorted({header.window for header in headers if header.window is not None})
    data: xr.Dataset = xr.open_dataset(
        messages,  # type: ignore[arg-type]
        engine="cfgrib", chunks=None, cache=False, decode_timedelta=False, backend_kwargs={"errors": "raise"},
    )  # fmt: skip
    for name, array in data.data_vars.items():
        fields = array.size // (array.sizes["latitude"] * array.sizes["longitude"])
        if fields != len(headers):
            raise InputError(
                f"{path}: {name} opens with {fields} fields, the file has {len(headers)}; split the file by parameter"
            )
        if windows:
            array.attrs["windows"] = windows
    return data


def _check_block(path: Path, headers: list[Header]) -> None:
    name, places = headers[0].name, {header.place for header in headers}
    windows: dict[tuple[Any, ...], set[tuple[int, int]]] = defaultdict(set)
    for header in headers:
        windows[header.place] |= {header.window} if header.window else set()
    several = next((sorted(found) for found in windows.values() if len(found) > 1), [])
    if several:
        shown = ", ".join(f"{start}-{end} h" for start, end in several)
        raise InputError(f"{path}: {name} is there over {shown}, of which one is wanted; take the others out")
    if len(places) < len(headers):
        raise InputError(f"{path}: {name} has {len(headers) - len(places)} fields twice; remove the repeated messages")
    parts = (slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 5))  # date and time of a run belong together
    axes = [sorted({place[part] for place in places}, key=str) for part in parts]
    missing = [place for found in product(*axes) if (place := sum(found, ())) not in places]
    if missing:
        first = ", ".join(f"{part} {value}" for part, value in zip(_CUBE, missing[0], strict=True) if value is not None)
        raise InputError(
            f"{path}: {name} lacks {len(missing)} of {len(missing) + len(places)} fields, first {first}; "
            "the file is incomplete, or mixes runs: get it again, or split it"
        )
