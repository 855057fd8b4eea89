"""A forecast by the workers of a dask cluster: each writes its parts of the shared store itself. Paths travel, not arrays.

A task is some member blocks of an initialisation, see `forecast.shares`. It can be run any number of times, anywhere: parts that
are there are passed over, and a member has the same bits on every worker with the same versions and threads.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from data_pipeline.errors import InputError, NotReadyError, PlumecastError
from data_pipeline.recipe import fingerprint
from data_pipeline.workers import connected, cores
from forecast.extend import recipe_of
from forecast.gate import Gate
from forecast.inputs import Inputs, Opened
from forecast.outputs import Outputs, make
from forecast.plan import ForecastPlan
from forecast.rollout import Progress, versions
from forecast.shares import Task, still_missing, tasks_of
from forecast.writing import WAITING, ZarrSink

if TYPE_CHECKING:
    from distributed import Client

THREAD_VARIABLES = ("PLUMECAST_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
RETRIES = 2  # of a task that failed for no reason that we know
PATIENCE = 300  # seconds without any worker, or until the first one comes
AHEAD = 4  # tasks a worker thread that are sent ahead
PROCESS_BYTES = 600 << 20  # Python with torch, xarray and numba, measured


@dataclass(frozen=True)
class Job:
    """What a worker is told. Paths are absolute; threads: of torch in each worker, on which the bits depend."""

    inputs: Inputs
    plan: ForecastPlan
    outputs: Outputs
    device: str
    threads: int


class Answer(NamedTuple):
    """What a task brings back: remarks for the person, or the error that ends the forecast."""

    remarks: list[str]
    error: PlumecastError | None = None


def run_on(
    cluster: str, inputs: Inputs, plan: ForecastPlan, outputs: Outputs, *, device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None, remark: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Make the forecast of `plan` by the workers of the dask scheduler at the address `cluster`, and publish its store.

    The workers see the same paths and use as many threads as torch does here. Those that come later help; the tasks of one that
    dies are run elsewhere. Raises InputError before any work if no scheduler or worker is there, or their memory is too small;
    NotReadyError if all workers have gone; the error of a part that cannot be made; nothing is published then.
    """
    if outputs.store is None or outputs.scores is not None:
        raise InputError("scores need all members in one process: workers write a store, which plumecast verify scores")
    job = Job(inputs.absolute(), replace(plan), outputs.absolute(), device, torch.get_num_threads())
    sink = ZarrSink(outputs.store, only=())
    try:
        sink.open(plan)
        size = {part.name: plan.leads.size * (part.members.stop - part.members.start) for part in plan.parts}
        tasks = tasks_of(plan, len(inputs.checkpoints), device)
        todo = [task for task in tasks if not set(task) <= sink.done]
        done, total = sum(size.values()) - sum(size[name] for task in todo for name in task), sum(size.values())
        if todo:
            with connected(cluster) as client:
                _check_workers(client, cluster, job, todo)
                for task, answer in _answers(client, job, todo):
                    for text in answer.remarks:
                        remark(text)
                    done += sum(size[name] for name in task)
                    report(Progress(done, total))
        sink.close()
    finally:
        sink.release()
    if (missing := still_missing(outputs.store)) is not None:
        raise NotReadyError(f"{outputs.store}: {missing}; run the same command again when the others are done")


def engaged(cluster: str | None, workers: int | None, *, alone: bool) -> contextlib.AbstractContextManager[str] | None:
    """The address of the scheduler whose workers make a forecast, theirs for a `with`; None where this process makes it.

    workers: processes that are started here and share the cores; torch then counts its threads as one of them does. alone: False
    where this process has been told already to share the work. Raises InputError if that is said in two ways.
    """
    if cluster is None and workers is None:
        return None
    if not alone or (cluster is not None and workers is not None):
        raise InputError("work is shared out in one way: --cluster, --workers, --share (or torchrun), or several --device")
    if cluster is not None:
        return contextlib.nullcontext(cluster)
    assert workers is not None
    torch.set_num_threads(max(1, cores() // workers))
    return local_cluster(workers, torch.get_num_threads())


@contextlib.contextmanager
def local_cluster(workers: int, threads: int) -> Iterator[str]:
    """The address of a cluster on this machine: so many processes of so many threads, which share its memory."""
    import dask
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": RETRIES}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=MEMORY_LIMIT // workers, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", env=limits,
        ) as started,
    ):  # fmt: skip
        yield started.scheduler_address


def make_parts(job: Job, task: Task) -> Answer:
    """On a worker: make the parts of a task that nobody has made or is making.

    One task at a time in a process: torch has threads of its own.
    """
    import dask

    remarks: list[str] = []
    try:
        # on a worker dask would send the reading of a store to the cluster, whose threads all wait for it
        with _WORKING, dask.config.set(scheduler="synchronous"):
            torch.set_num_threads(job.threads)
            opened = _opened(job.inputs, job.device)
            _check_alike(opened, job.plan)
            make(job.plan, opened, job.outputs, only=task, gate=_gate(job, opened), remark=remarks.append)
    except PlumecastError as error:
        return Answer(remarks, error)
    return Answer(remarks)


_WORKING = threading.Lock()


@lru_cache(maxsize=1)
def _opened(inputs: Inputs, device: str) -> Opened:
    return inputs.open(device)


_gates: dict[str, Gate] = {}  # of the last plan: it has read analyses of the whole archive


def _gate(job: Job, opened: Opened) -> Gate:
    key = fingerprint({"inputs": str(job.inputs), "plan": recipe_of(job.plan), "channels": str(job.plan.channels)})
    if key not in _gates:
        _gates.clear()
        _gates[key] = Gate.of(opened.generators[0].spec, job.plan, opened.analysis)
    return _gates[key]


def _check_alike(opened: Opened, plan: ForecastPlan) -> None:
    """Raise InputError unless this process would make the forecast of the plan, to the bit."""
    here = {
        "checkpoint_sha256": ",".join(each.sha256 for each in opened.generators),
        "source_recipe_hash": str(opened.analysis.attrs.get("recipe_hash", "")),
        "versions": versions(),
    }
    faults = [f"{key} is {value}, asked for {plan.attrs[key]}" for key, value in here.items() if value != plan.attrs[key]]
    if faults:
        raise InputError(f"{_name()} would make another forecast: {'; '.join(faults)}")


def _name() -> str:
    from distributed import get_worker

    return f"worker {get_worker().address}"


def _check_workers(client: Client, address: str, job: Job, todo: Sequence[Task]) -> None:
    """Wait for the first worker. Raises InputError if none comes, or if a task does not fit the memory of one."""
    from distributed import TimeoutError as Late

    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except Late:
        raise InputError(f"--cluster {address}: no worker came within {PATIENCE} s; start some: dask worker ADDRESS") from None
    needed = _task_bytes(job, len(todo[0]))
    limits = {name: worker["memory_limit"] for name, worker in client.scheduler_info(n_workers=-1)["workers"].items()}
    small = [name for name, limit in limits.items() if limit and limit < needed]
    if small:
        raise InputError(
            f"{len(small)} of {len(limits)} workers have too little memory: {small[0]} has "
            f"{limits[small[0]] / 1e9:.1f} GB, a task needs about {needed / 1e9:.1f} GB; start them with a higher --memory-limit"
        )


def _task_bytes(job: Job, blocks: int) -> int:
    """Memory of a worker at least: the process, the weights, states of the members, and fields on their way to the disk."""
    weights = sum(path.stat().st_size for path in job.inputs.checkpoints)
    plan = job.plan
    lead = blocks * plan.chunks["number"] * plan.lead_bytes // len(plan.members)
    return PROCESS_BYTES + weights + lead * (4 + (WAITING + 2) * plan.chunks["prediction_timedelta"])


def _answers(client: Client, job: Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, Answer]]:
    """The tasks and what they bring back, as it comes. Raises their errors; what is still under way is then dropped."""
    from distributed import TimeoutError as Late
    from distributed import wait

    left = iter(tasks)
    pending: dict[Any, Task] = {}
    try:
        while True:
            room = max(1, AHEAD * sum(client.nthreads().values()) - len(pending))
            for task in itertools.islice(left, room):
                pending[client.submit(make_parts, job, task, pure=False, retries=RETRIES)] = task
            if not pending:
                return
            try:
                done = wait(list(pending), timeout=PATIENCE, return_when="FIRST_COMPLETED").done
            except Late:
                if not client.nthreads():
                    raise NotReadyError(
                        f"no worker is left, since {PATIENCE} s; start others and run the same command again: it goes on"
                    ) from None
                continue
            for future in done:
                task = pending.pop(future)
                yield task, _result(future, task)
    finally:
        client.cancel(list(pending))


def _result(future: Any, task: Task) -> Answer:
    """Raises PlumecastError for what a task failed with, of the kind that it raised itself."""
    from distributed import KilledWorker

    try:
        answer: Answer = future.result()
    except KilledWorker as error:
        raise PlumecastError(
            f"{task[0]}: every worker that made it died, the last one {error.last_worker.address}; out of memory? See their logs"
        ) from None
    except Exception as error:  # whatever a library raises on a worker
        raise PlumecastError(f"{task[0]} failed {RETRIES + 1} times on the workers: {type(error).__name__}: {error}") from error
    if answer.error is not None:
        raise answer.error
    return answer
