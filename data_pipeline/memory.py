"""Memory that is used again: what the C library does with what numpy gives back, and buffers that are lent."""

from __future__ import annotations

import ctypes
import math
import sys
import weakref
from collections import deque

import numpy as np

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GB for the next read instead of returning them to the system; elsewhere, nothing.

    A store is read in blocks of tens of MB. Each would be mapped, filled with zeros page by page, and unmapped again: without it
    a campaign of 2 GB was scored 10 to 25 % faster (measured), at the same peak of memory.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl and others
        return
    mallopt(M_MMAP_THRESHOLD, KEPT)
    mallopt(M_TRIM_THRESHOLD, KEPT)


class Buffers:
    """Float32 arrays whose memory is lent again once nobody holds them nor a view of them; fresh pages cost more than a copy.

    kept: free ones of a size that are kept; more are given back to the system. Safe to use from several threads.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._free: dict[int, deque[np.ndarray]] = {}

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """A writable array of this shape; its content is arbitrary."""
        size = max(math.prod(shape), 1)
        free = self._free.setdefault(size, deque(maxlen=self._kept))
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, np.float32)
        # over a memoryview, because the base of a view is the last *array* of the chain: all views hold `lent`, none skips it
        lent = np.frombuffer(memory.data, np.float32)
        weakref.finalize(lent, free.append, memory).atexit = False
        return lent[: math.prod(shape)].reshape(shape)
