"""Durable files: what is written stays written after a kill or a power cut, and one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import InputError


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(files: Iterable[Path], root: Path) -> None:
    """Force files and every folder between them and `root` to the disk."""
    folders = {root}
    for file in files:
        sync(file)
        parent = file.parent
        while parent not in folders:
            folders.add(parent)
            parent = parent.parent
    for folder in folders:
        sync(folder)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically and durably: a reader sees the old content or the new one, never a piece."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Attributes as strict JSON: numpy scalars and arrays become numbers and lists, NaN becomes null, the rest text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


class Lock:
    """An exclusive lock on a file, held by this process until `release`; the kernel drops it when the process dies.

    The file names the holder for the message only. Raises InputError if another writer is alive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = path.open("a+")
            except FileNotFoundError:  # the folder was published and removed in between
                continue
            self._acquire()
            if self._is_current():
                break
            self._file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read() or "another process"
            self._file.close()
            raise InputError(
                f"{self.path.parent} is being written by {holder}; wait for it to end, or stop it, and run again"
            ) from None

    def _is_current(self) -> bool:
        """False if the file was removed between opening and locking it: the lock would guard nothing."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False
