"""Commands of the operator's on success, failure and staleness: run without a shell, bounded in time, never a danger to a run."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from typing import Literal

from forecast.archive import init_name
from forecast.cycle.job import Job

SHOWN = 4000  # characters of a hook's output that are logged

When = Literal["success", "failure", "stale"]


def run_hooks(job: Job, when: When, init: dt.datetime, *, path: str = "", state: str = "", reason: str = "") -> None:
    """Run the commands of one occasion, one after the other; whatever they do is a line in the cycle's log.

    They find PLUMECAST_EVENT, _INIT (20070711T00), _MODEL, _ROOT, _RUN (path of the run, if there is one), _STATE and _REASON in
    their environment.
    """
    section = job.recipe.hooks
    commands = {"success": section.success, "failure": section.failure, "stale": section.stale}[when]
    facts = {
        "EVENT": when, "INIT": init_name(init), "MODEL": job.archive.model, "ROOT": str(job.archive.root), "RUN": path,
        "STATE": state, "REASON": reason.replace("\0", ""),
    }  # fmt: skip
    environment = os.environ | {f"PLUMECAST_{name}": value for name, value in facts.items()}
    for command in commands:
        job.log(init, f"hook on {when}", argv=command, **_outcome(command, environment, section.timeout.total_seconds()))


def _outcome(command: tuple[str, ...], environment: dict[str, str], seconds: float) -> dict[str, object]:
    try:
        done = subprocess.run(  # in a session of its own: a signal to the schedule's group is not for it
            command, env=environment, timeout=seconds, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {seconds:g} s"}
    except (OSError, ValueError, IndexError) as error:
        return {"error": f"cannot be run: {error}"}
    text = done.stdout.decode(errors="replace")[-SHOWN:]
    return {"code": done.returncode, "output": "".join(letter for letter in text if letter.isprintable() or letter == "\n")}
