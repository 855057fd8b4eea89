"""Child processes that a test may kill, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run `code` with one thread; returns once it has printed `ready`: a kill is to fall into the work, not the imports."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def contents(path: Path) -> dict[str, bytes]:
    """{file below `path`: its bytes}."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
