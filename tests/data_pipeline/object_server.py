"""A small object store on the loopback: GET, HEAD and byte ranges as http, Google Cloud Storage and S3 have them, with faults."""

from __future__ import annotations

import itertools
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = Literal["503", "404", "403", "reset", "cut"]
GOOGLE = re.compile(r"/download/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<key>.+)")


@dataclass
class ObjectServer:
    """Serves the files below `root` at `url`; the first folder is the bucket of gs:// and s3:// addresses.

    fault: what goes wrong with a request, given its number (from 1) and its key, or None. keys: what was asked for, in order.
    most: requests that were answered at one time, at most.
    """

    root: Path
    url: str
    fault: Callable[[int, str], Fault | None] = lambda number, key: None
    keys: list[str] = field(default_factory=list)
    most: int = 0

    @property
    def chunks(self) -> list[str]:
        """The keys of chunks of fields that were asked for."""
        return [key for key in self.keys if re.search(r"/(c/)?\d+[./]\d", key)]


def every_third(fault: Fault, *, of: str = "") -> Callable[[int, str], Fault | None]:
    """Every third request for a key that holds `of` goes wrong, but none three times in a row: requests come in any order."""
    counted, in_a_row = itertools.count(1), Counter[str]()

    def fails(number: int, key: str) -> Fault | None:
        wrong = of in key and next(counted) % 3 == 0 and in_a_row[key] < 2
        in_a_row[key] = in_a_row[key] + 1 if wrong else 0
        return fault if wrong else None

    return fails


def first_times(count: int, fault: Fault) -> Callable[[int, str], Fault | None]:
    """The first requests for each key go wrong."""
    asked: Counter[str] = Counter()

    def fails(number: int, key: str) -> Fault | None:
        asked[key] += 1
        return fault if asked[key] <= count else None

    return fails


@contextmanager
def serve(root: Path) -> Iterator[ObjectServer]:
    """A server of the files below `root`, in threads of its own, until the block ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        state = ObjectServer(root, f"http://127.0.0.1:{server.server_port}")
        server.state, server.lock, server.active = state, threading.Lock(), 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state: ObjectServer = self.server.state  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        google = GOOGLE.fullmatch(path)
        key = f"{google['bucket']}/{google['key']}" if google else path.lstrip("/")
        with self.server.lock:  # type: ignore[attr-defined]
            state.keys.append(key)
            number = len(state.keys)
            self.server.active += 1  # type: ignore[attr-defined]
            state.most = max(state.most, self.server.active)  # type: ignore[attr-defined]
            fault = state.fault(number, key)
        try:
            self._answer(state.root / key, fault)
        finally:
            with self.server.lock:  # type: ignore[attr-defined]
                self.server.active -= 1  # type: ignore[attr-defined]

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def _answer(self, file: Path, fault: Fault | None) -> None:
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault in ("503", "403"):
            self._send(int(fault), b"<Error><Code>SlowDown</Code></Error>" if fault == "503" else b"")
        elif fault == "404" or not file.is_file():
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            content, status, extra = self._range(file.read_bytes())
            self._send(status, content, extra, cut=fault == "cut")

    def _range(self, content: bytes) -> tuple[bytes, int, dict[str, str]]:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or match.groups() == ("", ""):
            return content, 200, {}
        first, last = match.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        return content[start:stop], 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}

    def _send(self, status: int, content: bytes, extra: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        stated = {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", "ETag": '"0"', **(extra or {})}
        for name, value in {**stated, "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
