"""Durable files: what is written stays written after a kill or a power cut, and one writer, or one a part, at a time."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from data_pipeline.errors import InputError

MANY = 16  # files


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(files: Iterable[Path], root: Path) -> None:
    """Force files and every folder between them and `root` to the disk.

    Many at once by one call for their filesystem: a call for each file and folder took 80 times as long on a busy disk.
    """
    files = list(files)
    if len(files) > MANY and _sync_filesystem(root):
        return
    folders = {root}
    for file in files:
        sync(file)
        parent = file.parent
        while parent not in folders:
            folders.add(parent)
            parent = parent.parent
    for folder in folders:
        sync(folder)


def _sync_filesystem(path: Path) -> bool:
    """syncfs(2): False where the system has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if call(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)
    return True


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically and durably: a reader sees the old content or the new one, never a piece."""
    temporary = _temporary(path)
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    sync(temporary)
    folder = os.open(path.parent, os.O_RDONLY)  # before: who sees the last marker of a store may publish it and remove the folder
    try:
        temporary.replace(path)
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """What `write_json` wrote. Raises InputError if it is damaged or lacks one of the keys, FileNotFoundError if it is absent."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); copy the store again, or remove it and make it again") from None
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise InputError(f"{path} is damaged: expected {', '.join(keys)}; copy the store again, or remove it and make it again")
    return content


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically, but not yet durably, see `sync_files`. Under another name the old content stays."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")


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
    """A lock on a file, held by this process until `release` or the end of a `with`; the kernel drops it when the process dies.

    mode: "sole", no other holder; "shared", any number of holders that all share; "wait", sole, once the others have gone. The
    folder is made where there is none. The file names a sole holder for the message only. Raises InputError if another process is
    in the way.
    """

    def __init__(self, path: Path, mode: Literal["sole", "shared", "wait"] = "sole") -> None:
        self.path, self.mode = path, mode
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                if os.path.lexists(error.filename):  # and is no folder; else it was removed within mkdir
                    raise
                continue
            try:
                self._file = path.open("a+")
            except FileNotFoundError:  # the folder was published and removed in between
                continue
            self._acquire()
            if self.is_current():
                break
            self._file.close()
        if mode != "shared":
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        self._file.close()

    def is_current(self) -> bool:
        """False once the file was removed, or replaced by another: the lock guards nothing any more."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self) -> None:
        flags = {"sole": fcntl.LOCK_EX | fcntl.LOCK_NB, "shared": fcntl.LOCK_SH | fcntl.LOCK_NB, "wait": fcntl.LOCK_EX}
        try:
            fcntl.flock(self._file, flags[self.mode])
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read() or "another process"
            self._file.close()
            raise InputError(
                f"{self.path.parent} is being written by {holder}; wait for it to end, or stop it, and run again"
            ) from None


def holder(path: Path) -> str | None:
    """Who holds the sole lock on this file, as `Lock` wrote it; None if nobody does."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another process"
    except FileNotFoundError:
        pass
    return None


def exchange(one: Path, other: Path) -> None:
    """Let two folders of one filesystem change names, atomically. Raises OSError where the system cannot."""
    at_folder, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "this system cannot exchange two folders")
    if rename(at_folder, os.fsencode(one), at_folder, os.fsencode(other), flag) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))
