"""Units in processes of their own: the same bits as one after the other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from logging import getLogger
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from fedexp.logs import without_escape_codes
from fedexp.runs.engines import grid_of
from fedexp.runs.federation import Federation, Own
from fedexp.runs.job import Job, OnUnitRow, UnitOutcome, run_job
from fedexp.runs.unit_run import Stop

_ROW, _OUTCOME, _ERROR = "row", "outcome", "error"
_END_SECONDS = 10.0


@dataclass(eq=False)
class _Worker:
    """A process that runs one job after the other.

    Attributes:
        process: the process.
        connection: to it.
        job: position of the job that it runs; None if it waits.
    """

    process: Any
    connection: Connection
    job: int | None = None

    def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self.connection.send_bytes(data)
        except (BrokenPipeError, ConnectionError):
            raise self.ended() from None

    def ended(self) -> RuntimeError:
        """What to say of a process that has ended by itself."""
        self.process.join(_END_SECONDS)
        code = self.process.exitcode or 0
        how = f"was killed by signal {-code}, if memory ran out" if code < 0 else f"ended ({code})"
        remedy = "--num-workers 1 runs one after the other"
        return RuntimeError(f"the process of a run {how}. {remedy}.")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    jobs: Sequence[Job], on_row: OnUnitRow, stop: Stop | None = None
) -> Iterator[UnitOutcome]:
    """Run ``jobs``, which have the same own objects, in as many processes as there are cores.

    The outcomes are in the order of ``jobs``; none begins once its time is over.

    Raises:
        RuntimeError: a process ended by itself.
        Exception: whatever a job raised.
    """
    waiting, outcomes, workers = list(range(len(jobs))), dict[int, UnitOutcome](), list[_Worker]()
    try:
        _start(workers, min(len(jobs), cores()))
        own = _pickled(jobs[0].own)
        for worker in workers:
            worker.send(own)
        while True:
            for worker in workers:
                if worker.job is None and _may_begin(waiting, jobs):
                    worker.job = waiting.pop(0)
                    worker.send(_pickled(replace(jobs[worker.job], own=Own())))
            busy = [worker.connection for worker in workers if worker.job is not None]
            if not busy:
                break
            for ready in wait(busy):
                worker = next(w for w in workers if w.connection is ready)
                _hear(worker, jobs, on_row, outcomes)
    finally:
        _end(workers)
    return iter([outcomes[i] for i in sorted(outcomes)])


def _may_begin(waiting: Sequence[int], jobs: Sequence[Job]) -> bool:
    """Whether there is time for one more; for the first one there is."""
    is_first = len(waiting) == len(jobs)
    return bool(waiting) and (is_first or time.monotonic() < jobs[waiting[0]].until)


def _hear(
    worker: _Worker, jobs: Sequence[Job], on_row: OnUnitRow, outcomes: dict[int, UnitOutcome]
) -> None:
    assert worker.job is not None
    try:
        kind, value = pickle.loads(worker.connection.recv_bytes())
    except (EOFError, ConnectionError):
        raise worker.ended() from None
    if kind == _ROW:
        on_row(jobs[worker.job].unit, value)
    elif kind == _ERROR:
        raise value
    else:
        outcomes[worker.job], worker.job = value, None


def _start(workers: list[_Worker], count: int) -> None:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with _deaf_children(), _without_main():
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, getLogger("flwr").level), daemon=True
            )
            process.start()
            there.close()
            workers.append(_Worker(process, here))


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that start now not hear of Ctrl-C and SIGTERM, which are for the parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would let them hear again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Let processes that start now not import the program, which may not expect to be imported.

    What it defines travels by value.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end(workers: Sequence[_Worker]) -> None:
    """Let the workers go; one in the middle of a round ends at once, its rounds are recorded."""
    for worker in workers:
        worker.connection.close()
        if worker.job is not None:
            worker.process.kill()
    for worker in workers:
        worker.process.join(_END_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()


def _serve(connection: Connection, log_level: int) -> None:
    """Run jobs until nobody listens."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    getLogger("flwr").setLevel(log_level)
    without_escape_codes()
    own: Own | None = None
    while True:
        try:
            received = pickle.loads(connection.recv_bytes())
            if own is None:
                own = received
                continue
            outcome = _run(replace(received, own=own), connection)
            connection.send_bytes(pickle.dumps((_OUTCOME, outcome)))
        except (EOFError, BrokenPipeError, ConnectionError):
            return
        except Exception as error:
            connection.send_bytes(_error(error))


def _end_with_parent() -> None:
    """End at once when the parent does: whoever resumes the run must not meet this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(job: Job, connection: Connection) -> UnitOutcome:
    federation = Federation(job.unit.config, job.own)
    with grid_of(job.unit.config, federation, "serial") as grid:
        return run_job(
            job,
            federation,
            grid,
            lambda unit, row: connection.send_bytes(pickle.dumps((_ROW, row))),
        )


def _error(error: Exception) -> bytes:
    try:
        pickle.loads(data := pickle.dumps((_ERROR, error)))
    except Exception:  # an exception of the user's own may not survive it
        return pickle.dumps((_ERROR, RuntimeError(f"{type(error).__name__}: {error}")))
    return data


def _pickled(value: Any) -> bytes:
    """By value what a program or a notebook's cells define, where ``_pickler`` finds how."""
    return bytes(import_module(name).dumps(value)) if (name := _pickler()) else pickle.dumps(value)


def can_travel(objects: Any) -> bool:
    """Whether processes can get objects of the user's, whose classes may be in no module."""
    try:
        return bool(_pickler() and _pickled(objects))
    except Exception:  # of any kind: they are the user's
        return False


def _pickler() -> str:
    names = ("cloudpickle", "ray.cloudpickle")  # Ray's own is the same
    return next((name for name in names if find_spec(name.partition(".")[0])), "")
