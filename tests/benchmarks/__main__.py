"""Run the benchmarks: python -m tests.benchmarks [WORD ...] runs all of this folder, or those whose name holds a word.

Each runs in its own process, so that peak memory and thread settings are its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Run the benchmarks, one process each.")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only benchmarks whose name holds one of these words")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    arguments = parser.parse_args()
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    chosen = [name for name in names if not arguments.words or any(word in name for word in arguments.words)]
    if not chosen:
        print(f"no benchmark named like {' or '.join(arguments.words) or 'anything'}; there are: {', '.join(names) or 'none'}")
        return 2
    if arguments.list:
        print("\n".join(chosen))
        return 0
    failed = [name for name in chosen if run(name) != 0]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def run(name: str) -> int:
    """Run one benchmark's `main()` in a process of its own; its exit code."""
    print(f"== {name}", flush=True)
    code = f"from tests.benchmarks import {name}; {name}.main()"
    return subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
