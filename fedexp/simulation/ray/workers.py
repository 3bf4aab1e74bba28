"""Persistent Ray actors, replaced when they die."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from flwr.clientapp import ClientApp

from fedexp.simulation.grid import check_vectorize
from fedexp.simulation.guard import nobody_debugs
from fedexp.simulation.ray.cluster import (
    claim,
    connect,
    keep_freed_memory,
    keep_store_mapped,
    leave,
)
from fedexp.simulation.ray.private import read_note, ready, wipe_note, write_note
from fedexp.simulation.worker import Worker

_WATCH_SECONDS = 5.0  # for word from a worker whose client may hang
_INLINE_CONTENTS = 1 << 20  # bytes for all workers together; more of them go through the store
_SMALL = 1 << 17  # bytes that may be copied once more

# After cluster, which says what to install if there is no Ray, and sets its environment.
import ray  # noqa: E402
from ray.exceptions import (  # noqa: E402
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
)


class WorkerDied(Exception):
    """A worker's process ended before it answered."""


class WorkerHangs(Exception):
    """A worker did not answer in time."""


@ray.remote
class _Actor(Worker):
    def __init__(self, *args: Any) -> None:
        nobody_debugs()
        keep_freed_memory()
        if "torch" in sys.modules:  # whoever trains without it need not wait for it
            from fedexp.simulation.flower.profiler_marks import skip_idle_marks

            skip_idle_marks()
        self._mapped = keep_store_mapped()
        self._board: bytes | None = None
        super().__init__(*args)

    def call(self, first: Any, rest: bytes) -> Any:
        """Run a method; if that takes too long, note on the board which client runs then.

        Args:
            first: the method's first argument, which may come from the object store.
            rest: pickled: the method's name, the board, the seconds, whether each client is to be
                noted before it runs, and the other arguments.
        """
        method, board, seconds, noted, args = pickle.loads(rest)
        self._board = board if noted else None
        first = pickle.loads(first) if isinstance(first, bytes) else first
        # The driver cannot ask who runs: this process is busy with the client.
        timer = threading.Timer(seconds or 0.0, self._note, (board,))
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            return _quick(getattr(self, method)(first, *args))
        finally:
            timer.cancel()
            if noted:
                wipe_note(board)

    def begins(self, position: int | None) -> None:
        """Note it on the board, if that is asked for."""
        super().begins(position)
        if self._board:
            self._note(self._board)

    def _note(self, board: bytes) -> None:
        write_note(board, str(self.position))


def _quick(value: Any) -> Any:
    """``value`` as bytes, which Ray passes on as they are, if its arrays are small.

    Ray's own pickler is written in Python, but hands over large arrays without a copy.
    """
    arrays: list[pickle.PickleBuffer] = []
    pickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=arrays.append)
    small = sum(array.raw().nbytes for array in arrays) <= _SMALL
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL) if small else value


@dataclass(frozen=True, eq=False)
class Ticket:
    """A call under way.

    Attributes:
        actor: that it went to.
        answer: Ray's reference to the answer.
        board: where the worker notes who runs when the time is up.
    """

    actor: Any
    answer: Any
    board: bytes


class RayWorkers:
    """One actor per worker slot, made once and kept.

    Args:
        client_app, num_nodes, run_config, vectorize: those of ``Worker``.
        num_workers: by default one per CPU of this machine, or of the cluster.
        num_gpus: shared evenly by the workers.
        address: of a running Ray cluster (``auto`` or ``host:port``); None starts Ray here.
        shows_log: print here what workers print.

    Raises:
        ValueError: more workers or GPUs than there are, or an unknown ``vectorize``.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, Any],
        vectorize: str,
        *,
        num_workers: int | None,
        num_gpus: float,
        address: str | None,
        shows_log: bool = False,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(
                f"RayGrid(num_workers={num_workers}): must be at least 1. "
                "Leave it out for one per CPU."
            )
        check_vectorize("RayGrid", vectorize)
        self._actors: list[Any] = []
        keep_freed_memory()
        try:
            connect(self, num_workers, num_gpus, address, shows_log=shows_log)
            self.count, num_cpus = claim(self, num_workers, num_gpus)
        except ValueError:
            self.close()
            raise
        self._mapped = keep_store_mapped()
        share = num_gpus / self.count
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": share}
        if not num_cpus:  # what claims nothing would all go to one node
            options["scheduling_strategy"] = "SPREAD"
        self._actor = _Actor.options(**options)  # type: ignore[attr-defined]
        self._args = ray.put(client_app), num_nodes, dict(run_config), vectorize
        self._actors = [self._new() for _ in range(self.count)]

    def put(self, value: Any, num_bytes: int) -> Any:
        """``value`` for several calls: stored once for all workers, or as bytes if it is small."""
        small = num_bytes * self.count <= _INLINE_CONTENTS
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL) if small else ray.put(value)

    def submit(
        self,
        worker: int,
        method: str,
        first: Any,
        *args: Any,
        seconds: float | None = None,
        noted: bool = False,
    ) -> Ticket:
        """Start a method of a worker.

        Args:
            worker: its number.
            method: of ``Worker``.
            first: its first argument, what ``put`` gave or a small value.
            args: the others.
            seconds: in which it is to answer.
            noted: let the worker note each client before it runs it, see ``running``.
        """
        actor, board = self._actors[worker], uuid4().bytes
        # Ray passes bytes on as they are; its own pickler is written in Python.
        rest = pickle.dumps((method, board, seconds, noted, args), pickle.HIGHEST_PROTOCOL)
        return Ticket(actor, actor.call.remote(first, rest), board)

    def wait(self, ticket: Ticket, seconds: float | None) -> Any:
        """The answer.

        Raises:
            WorkerDied: its process ended.
            WorkerHangs: no answer within ``seconds``.
        """
        try:
            answer = ray.get(ticket.answer, timeout=seconds)
            return pickle.loads(answer) if isinstance(answer, bytes) else answer
        except GetTimeoutError:
            raise WorkerHangs from None
        except (RayActorError, OutOfMemoryError) as error:  # Ray ends workers before Linux would
            raise WorkerDied(str(error).partition("\n")[0]) from None

    def running(self, ticket: Ticket) -> int | None:
        """Position of the client that ran when the time was up or the worker died, if known."""
        end = time.monotonic() + _WATCH_SECONDS
        while (position := read_note(ticket.board)) is None:
            if time.monotonic() > end:
                return None
            time.sleep(0.05)
        wipe_note(ticket.board)
        return None if position == "None" else int(position)

    def replace(self, worker: int, ticket: Ticket) -> None:
        """Put a new process in the place of the one that ``ticket`` went to, once."""
        if self._actors[worker] is ticket.actor:
            ray.kill(ticket.actor)
            self._actors[worker] = self._new()
            with suppress(RayActorError, OutOfMemoryError):  # dies at once: the next call says so
                if (started := ready(self._actors[worker])) is not None:
                    ray.get(started)

    def close(self) -> None:
        """End the workers; and Ray, if this process started it and no other grid is open."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._mapped = None
        leave(self)

    def _new(self) -> Any:
        return self._actor.remote(*self._args)
