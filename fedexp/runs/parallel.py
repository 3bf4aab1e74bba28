"""Units in processes of their own, each in one thread: the same bits as one after the other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from logging import getLogger
from multiprocessing.connection import Connection, wait
from typing import Any

from fedexp.federation import Federation
from fedexp.runs.engines import grid_of
from fedexp.runs.job import Job, OnUnitRow, Outcome, run_job
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


def run_in_processes(
    jobs: Sequence[Job], on_row: OnUnitRow, stop: Stop | None = None
) -> Iterator[Outcome]:
    """Run ``jobs`` in as many processes as there are cores; outcomes in their order.

    Raises:
        RuntimeError: a process ended by itself.
        Exception: whatever a job raised.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    workers = [_started(context) for _ in range(min(len(jobs), os.cpu_count() or 1))]
    waiting, outcomes = list(range(len(jobs))), dict[int, Outcome]()
    try:
        while len(outcomes) < len(jobs):
            for worker in workers:
                if worker.job is None and waiting:
                    worker.job = waiting.pop(0)
                    worker.connection.send_bytes(_pickled(jobs[worker.job]))
            for ready in wait([worker.connection for worker in workers if worker.job is not None]):
                worker = next(w for w in workers if w.connection is ready)
                _hear(worker, jobs, on_row, outcomes)
    finally:
        _end(workers)
    return iter([outcomes[i] for i in range(len(jobs))])


def _hear(
    worker: _Worker, jobs: Sequence[Job], on_row: OnUnitRow, outcomes: dict[int, Outcome]
) -> None:
    assert worker.job is not None
    job = jobs[worker.job]
    try:
        kind, value = pickle.loads(worker.connection.recv_bytes())
    except (EOFError, ConnectionError):
        raise RuntimeError(f"{job.unit.folder}: its process ended by itself.") from None
    if kind == _ROW:
        on_row(job.unit, value)
    elif kind == _ERROR:
        raise value
    else:
        outcomes[worker.job], worker.job = value, None


def can_be_sent(job: Job) -> bool:
    """Whether another process could run ``job``, whatever objects it has."""
    if not job.own.names() and job.strategy is None:
        return True
    try:
        return _by_value() is not None and bool(_pickled(job))
    except Exception:  # of any kind: they are the user's objects
        return False


def _started(context: Any) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, getLogger("flwr").level), daemon=True)
    with _without_main():
        process.start()
    there.close()
    return _Worker(process, here)


def _end(workers: Sequence[_Worker]) -> None:
    """Let the workers go; one in the middle of a round ends at once, its rounds are recorded."""
    for worker in workers:
        worker.connection.close()
        if worker.job is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_END_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()


def _serve(connection: Connection, log_level: int) -> None:
    """Run jobs until nobody listens."""
    getLogger("flwr").setLevel(log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the user's Ctrl-C is for the one who asked
    while True:
        try:
            job: Job = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            outcome = _run(job, connection)
            connection.send_bytes(pickle.dumps((_OUTCOME, outcome)))
        except (BrokenPipeError, ConnectionError):
            return
        except Exception as error:
            connection.send_bytes(_error(error))


def _run(job: Job, connection: Connection) -> Outcome:
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


def _pickled(job: Job) -> bytes:
    """With the classes of a script or of a notebook's cells in it, where that is possible."""
    return bytes((_by_value() or pickle).dumps(job))


def _by_value() -> Any:
    """A pickle that does that, if one is installed."""
    for name in ("cloudpickle", "ray.cloudpickle"):
        if find_spec(name.partition(".")[0]):
            return import_module(name)
    return None


@contextmanager
def _without_main() -> Iterator[None]:
    """Start a process that does not run the user's script again, as ``spawn`` would have it."""
    main = sys.modules["__main__"].__dict__
    kept: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.pop("__spec__")
        main.update(kept)
