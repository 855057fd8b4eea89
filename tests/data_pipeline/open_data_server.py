"""A loopback server in the layout of ECMWF's open data: seeded GRIB 2 files, their indices, byte ranges, and faults on demand.

    with OpenData() as server:
        server.publish("2026-11-26T00", step=0)
        ecmwf_server.Server(server.url)

Fields are on a global 4-degree grid, north first, from 180 east as the real ones; `written` is what they hold.
FRAMES are the two stamps that WANTED needs for INIT.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.sources.ecmwf_live import open_cycle
from data_pipeline.sources.ecmwf_plan import Wanted
from data_pipeline.sources.ecmwf_server import Server

INIT = pd.Timestamp("2026-11-26T00")
NOW = pd.Timestamp("2026-11-26T10:20")
FRAMES = ("2026-11-25T12", "2026-11-26T00")
GRID = Grid(np.arange(-90.0, 90.1, 4.0), np.arange(0.0, 360.0, 4.0))
CHANNELS = ("geopotential_500", "temperature_850", "2m_temperature", "total_precipitation_12hr")
STATIC = ("geopotential_at_surface", "land_sea_mask")
WANTED = Wanted(tuple(map(Channel.parse, CHANNELS)), GRID, frames=2, step_hours=12, static=STATIC)
BOUNDARY = b"part-of-several"


@dataclass(frozen=True)
class Param:
    """A parameter: its GRIB keys, and the range in which `written` draws it. total: grows from the start of the run."""

    param_id: int
    low: float
    high: float
    level_type: str
    level: int = 0
    total: bool = False


PARAMS = {
    "2t": Param(167, 230, 310, "heightAboveGround", 2),
    "10u": Param(165, -20, 20, "heightAboveGround", 10),
    "msl": Param(151, 97000, 104000, "meanSea"),
    "z": Param(129, -500, 40000, "surface"),
    "lsm": Param(172, 0, 1, "surface"),
    "tp": Param(228228, 0, 6, "surface", total=True),
    **{f"{name}{level}": Param(param_id, low, high, "isobaricInhPa", level)
       for level in (500, 850)
       for name, param_id, low, high in (
           ("gh", 156, 1000, 5900), ("t", 130, 230, 300), ("u", 131, -30, 30), ("v", 132, -30, 30), ("q", 133, 0, 0.015))},
}  # fmt: skip
TP_IN_METRES = {"tp": Param(228, 0, 6e-3, "surface", total=True)}


def written(name: str, cycle: str, step: int, params: Mapping[str, Param] = PARAMS) -> np.ndarray:
    """The field of a parameter (latitude ascending, longitude from 0 east), in the units of its GRIB message.

    An accumulated one is 0 at step 0 and grows in every 3 h; the same run in other units has the same water.
    """
    param = params[name]
    if param.total:
        parts = [_draw(name, cycle, hour) for hour in range(3, step + 1, 3)]
        return param.high * np.sum([np.clip(part - 0.5, 0, None) for part in parts], axis=0)
    share = _draw(name, "static" if name in ("z", "lsm") else cycle, step)
    return np.round(share) if name == "lsm" else param.low + (param.high - param.low) * share


def _draw(name: str, cycle: str, step: int) -> np.ndarray:
    seed = [*f"{name} {pd.Timestamp(cycle) if cycle != 'static' else cycle} {step}".encode()]
    return np.random.default_rng(seed).random(GRID.shape)


@cache
def _drawn(name: str, param: Param, cycle: str, step: int) -> bytes:
    return message(param, written(name, cycle, step, {name: param}), cycle, step)


def message(param: Param, values: np.ndarray, cycle: str, step: int) -> bytes:
    """One GRIB 2 message; `values` as of `written`, NaN for missing."""
    handle = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    first = pd.Timestamp(cycle)
    keys: dict[str, Any] = {
        "centre": "ecmf", "dataDate": int(f"{first:%Y%m%d}"), "dataTime": first.hour * 100,
        "Ni": GRID.longitude.size, "Nj": GRID.latitude.size,
        "latitudeOfFirstGridPointInDegrees": 90.0, "latitudeOfLastGridPointInDegrees": -90.0,
        "longitudeOfFirstGridPointInDegrees": 180.0, "longitudeOfLastGridPointInDegrees": 176.0,
        "iDirectionIncrementInDegrees": 4.0, "jDirectionIncrementInDegrees": 4.0, "packingType": "grid_ccsds", "bitsPerValue": 24,
        "typeOfProcessedData": "fc", "paramId": param.param_id, "typeOfLevel": param.level_type, "level": param.level,
    }  # fmt: skip
    keys |= {"stepRange": f"0-{step}"} if param.total else {"step": step}
    if np.isnan(values).any():
        keys |= {"bitmapPresent": 1, "missingValue": 9999.0}
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    west_first = np.roll(np.where(np.isnan(values), 9999.0, values), GRID.longitude.size // 2, axis=1)
    eccodes.codes_set_values(handle, west_first[::-1].ravel())
    packed: bytes = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return packed


def path_of(cycle: str, step: int, stream: str = "oper") -> str:
    """The file of a run and step, without its ending."""
    first = pd.Timestamp(cycle)
    return f"/{first:%Y%m%d}/{first:%H}z/ifs/0p25/{stream}/{first:%Y%m%d%H}0000-{step}h-{stream}-fc"


class OpenData:
    """The server; a context manager. `asked` is the log of requests as (method, path)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.product = "loopback"
        self._faults: list[list[Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> OpenData:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *trouble: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def client(self, lines: list[str] | None = None) -> Server:
        """Our side of it, with no waits between the tries; what it reports goes to `lines`."""
        return Server(self.url, report=(lines if lines is not None else []).append, wait=lambda seconds: None)

    @property
    def downloads(self) -> list[str]:
        """Paths of the GRIB files that were read from, in order."""
        return [path for method, path in self.asked if method == "GET" and path.endswith(".grib2")]

    def publish(
        self, cycle: str, step: int = 0, *, without: Collection[str] = (), stream: str = "oper",
        params: Mapping[str, Param] = PARAMS, changed: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        """Put the file of a run and step on the server: totals from step 3 on, statics at step 0 only. changed: other values."""
        body, lines = b"", []
        for name, param in params.items():
            if name in without or (param.total and step == 0) or (name in ("z", "lsm") and step > 0):
                continue
            other = (changed or {}).get(name)
            packed = _drawn(name, param, cycle, step) if other is None else message(param, other, cycle, step)
            lines.append(json.dumps(_entry(name, param, cycle, step, stream) | {"_offset": len(body), "_length": len(packed)}))
            body += packed
        self.files[path_of(cycle, step, stream) + ".grib2"] = body
        self.files[path_of(cycle, step, stream) + ".index"] = ("\n".join(lines) + "\n").encode()

    def publish_frames(self, *cycles: str, hours: int = 12, **options: Any) -> None:
        """The analyses of these cycles, and the forecasts that give their precipitation of the last `hours`."""
        for cycle in cycles:
            self.publish(cycle, **options)
            self.publish(f"{pd.Timestamp(cycle) - pd.Timedelta(hours=hours)}", hours, **options)

    def fail(self, part: str, *, times: int, status: int | None = None) -> None:
        """Answer the next `times` downloads of paths with `part` by a status, or by half the body."""
        self._faults.append([part, times, status])

    def fault_of(self, path: str) -> tuple[bool, int | None]:
        """(whether this download fails, with which status); counts it."""
        for fault in self._faults:
            if fault[0] in path and fault[1] > 0:
                fault[1] -= 1
                return True, fault[2]
        return False, None


def _entry(name: str, param: Param, cycle: str, step: int, stream: str) -> dict[str, Any]:
    first, on_level = pd.Timestamp(cycle), param.level_type == "isobaricInhPa"
    entry = {
        "domain": "g", "date": f"{first:%Y%m%d}", "time": f"{first:%H}00", "expver": "0001", "class": "od", "type": "fc",
        "stream": stream, "step": str(step), "levtype": "pl" if on_level else "sfc",
    }  # fmt: skip
    entry |= {"levelist": str(param.level)} if on_level else {}
    return entry | {"param": name.removesuffix(str(param.level)) if on_level else name}


def _handler(data: OpenData) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def version_string(self) -> str:
            return data.product

        def log_message(self, *words: Any) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            data.asked.append((self.command, self.path))
            content = data.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            broken, status = data.fault_of(self.path) if with_body else (False, None)
            if status is not None:
                self.send_error(status)
                return
            ranges = [(int(a), int(b)) for a, b in re.findall(r"(\d+)-(\d+)", self.headers.get("Range", ""))]
            body, headers = _body(content, ranges if with_body else [])
            self.send_response(206 if with_body and ranges else 200)
            for key, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body[: len(body) // 2] if broken else body)

    return Handler


def _body(content: bytes, ranges: list[tuple[int, int]]) -> tuple[bytes, dict[str, str]]:
    if not ranges:
        return content, {}
    if len(ranges) == 1:
        first, last = ranges[0]
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return content[first : last + 1], headers
    parts = b"".join(
        b"--%s\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%s\r\n" % (BOUNDARY, first, last, len(content), content[first : last + 1])
        for first, last in ranges
    )
    return parts + b"--%s--\r\n" % BOUNDARY, {"Content-Type": f"multipart/byteranges; boundary={BOUNDARY.decode()}"}


def opened(
    data: OpenData, folder: Path, wanted: Wanted = WANTED, init: pd.Timestamp = INIT, now: pd.Timestamp = NOW
) -> xr.Dataset:
    """A cycle as the real client gets it from the server."""
    return open_cycle(init, wanted, folder=folder / "grib", server=data.client(), now=now)
