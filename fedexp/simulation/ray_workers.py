"""Persistent Ray actors, replaced when they die. The only module that imports Ray."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import WARNING
from typing import Any
from uuid import uuid4

import numpy as np
from flwr.clientapp import ClientApp

from fedexp.clients.vectorized import check_mode
from fedexp.extras import need
from fedexp.simulation.worker import Worker

need("ray", "simulation")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default
os.environ.setdefault("RAY_worker_niceness", "0")  # the clients are the work; Ray gives them 15
import ray  # noqa: E402
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError  # noqa: E402
from ray.experimental import internal_kv  # noqa: E402

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_PER_CPU = 4  # workers that share a CPU are slow, and more of them only slower
_WATCH_SECONDS = 5.0  # for word from a worker whose client may hang
_FREE_SECONDS = 10.0  # until CPUs of workers that were just ended are free again
# Up to these sizes answers and, for all workers together, contents travel with the call: a way
# through the object store takes 3 ms more.
_INLINE_ANSWER, _INLINE_CONTENTS = 4 << 20, 1 << 20


def _keep_freed_memory() -> None:
    """Let this process keep what it frees, up to a GiB.

    glibc returns large blocks to the system at once, and every client's model and gradients
    would be faulted in anew: measured, 20 % of a round of small clients.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)  # the most it takes


class WorkerDied(Exception):
    """A worker's process ended before it answered."""


class WorkerHangs(Exception):
    """A worker did not answer in time."""


def _keep_store_mapped() -> Any:
    """Something to hold on to as long as this process uses the object store.

    Ray unmaps the store whenever a process holds none of it: each page of a model would be
    faulted in again at every use, measured 20 ms for 34 MB in place of 5.
    """
    reference = ray.put(np.zeros(1 << 18, np.uint8))
    return reference, ray.get(reference)


@ray.remote
class _Actor(Worker):
    def __init__(self, *args: Any) -> None:
        _keep_freed_memory()
        self._mapped = _keep_store_mapped()
        super().__init__(*args)

    def call(self, first: Any, rest: tuple[str, bytes, float | None, tuple[Any, ...]]) -> Any:
        """Run a method; if that takes ``seconds``, note on the board which client runs then.

        Its first argument may come from the object store. Each argument of a call is packed by
        itself, which takes longer than what is in them: the others are one.
        """
        method, board, seconds, args = rest
        # A timer and Ray's own store of small values: a second thread of the actor, to be asked,
        # would cost every call 4 ms.
        timer = threading.Timer(seconds or 0.0, self._note, (board,))
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            return getattr(self, method)(first, *args)
        finally:
            timer.cancel()

    def _note(self, board: bytes) -> None:
        internal_kv._internal_kv_put(board, str(self.position).encode())


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
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(
                f"RayGrid(num_workers={num_workers}): must be at least 1. "
                "Leave it out for one per CPU."
            )
        check_mode(vectorize)
        self._actors: list[Any] = []
        _keep_freed_memory()
        self._started = _connect(num_workers, num_gpus, address)
        available = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
        self.count = num_workers or int(available.get("CPU", 1))
        if self.count > available.get("CPU", 0) or num_gpus > available.get("GPU", 0):
            self.close()
            raise ValueError(
                f"RayGrid(num_workers={self.count}, num_gpus={num_gpus}): the cluster has "
                f"{available.get('CPU', 0):g} CPUs and {available.get('GPU', 0):g} GPUs. "
                "Ask for less."
            )
        self._check_free()
        self._mapped = _keep_store_mapped()
        share = num_gpus / self.count
        self._actor = _Actor.options(num_cpus=1, num_gpus=share)  # type: ignore[attr-defined]
        self._args = ray.put(client_app), num_nodes, dict(run_config), vectorize
        self._actors = [self._new() for _ in range(self.count)]

    def put(self, value: Any, num_bytes: int) -> Any:
        """``value`` for several calls: stored once for all workers, or itself if it is small."""
        return ray.put(value) if num_bytes * self.count > _INLINE_CONTENTS else value

    def submit(
        self, worker: int, method: str, first: Any, *args: Any, seconds: float | None = None
    ) -> Ticket:
        """Start a method of a worker, which is to answer within ``seconds``."""
        actor, board = self._actors[worker], uuid4().bytes
        return Ticket(actor, actor.call.remote(first, (method, board, seconds, args)), board)

    def wait(self, ticket: Ticket, seconds: float | None) -> Any:
        """The answer.

        Raises:
            WorkerDied: its process ended.
            WorkerHangs: no answer within ``seconds``.
        """
        try:
            return ray.get(ticket.answer, timeout=seconds)
        except GetTimeoutError:
            raise WorkerHangs from None
        except RayTaskError as error:
            raise error.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
        except RayActorError as error:
            raise WorkerDied(str(error).splitlines()[0]) from None

    def running(self, ticket: Ticket) -> int | None:
        """Position of the client that ran when the time was up, if the worker could say it."""
        end = time.monotonic() + _WATCH_SECONDS
        while (note := internal_kv._internal_kv_get(ticket.board)) is None:
            if time.monotonic() > end:
                return None
            time.sleep(0.05)
        internal_kv._internal_kv_del(ticket.board)
        return None if note == b"None" else int(note)

    def replace(self, worker: int, ticket: Ticket) -> None:
        """Put a new process in the place of the one that ``ticket`` went to, once."""
        if self._actors[worker] is ticket.actor:
            ray.kill(ticket.actor)
            self._actors[worker] = self._new()
            with suppress(RayActorError):  # dies at once: the next call says so
                ray.get(self._actors[worker].__ray_ready__.remote())

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._mapped = None
        if self._started:
            ray.shutdown()
        self._started = False

    def _new(self) -> Any:
        return self._actor.remote(*self._args)

    def _check_free(self) -> None:
        """Ray would start workers for which there is no CPU as soon as there is one, if ever."""
        end = time.monotonic() + _FREE_SECONDS
        while (free := ray.available_resources().get("CPU", 0)) < self.count:  # type: ignore[no-untyped-call]
            if time.monotonic() > end:
                self.close()
                raise ValueError(
                    f"RayGrid(num_workers={self.count}): only {free:g} CPUs of the cluster are "
                    "free. Close the grid that holds them, or ask for less."
                )
            time.sleep(0.1)


def _connect(num_workers: int | None, num_gpus: float, address: str | None) -> bool:
    """Join or start Ray; whether it was started here."""
    if ray.is_initialized():
        return False
    if address:
        _join(address)
        return True
    limit = _PER_CPU * (os.cpu_count() or 1)
    if (num_workers or 1) > limit:
        raise ValueError(
            f"RayGrid(num_workers={num_workers}): at most {limit} here, {_PER_CPU} per CPU. "
            "Ask for less, or 0 for one per CPU."
        )
    if num_gpus:
        import torch

        _check("num_gpus", torch.cuda.device_count(), "GPU", num_gpus)
    with _without_idle_processes():
        ray.init(
            address="local",  # without it, whatever cluster runs on this machine is joined
            num_cpus=num_workers or os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=WARNING,
            _system_config={
                "max_direct_call_object_size": _INLINE_ANSWER,
                # A model that nobody needs any more makes room at once, not within a second:
                # else every process maps the models of some ten rounds.
                "free_objects_period_milliseconds": 0,
            },
        )
    return True


@contextmanager
def _without_idle_processes() -> Iterator[None]:
    """Start Ray without what has nothing to do on one machine: 270 MB, and half a second.

    These are the autoscaler, what would send us the workers' output, and the server of the web
    page and of the job interface. Ray has no option for it; what it does not know any more is
    left alone.
    """
    from ray._private.node import Node

    idle = {
        "start_monitor": lambda node: None,
        "start_log_monitor": lambda node: None,
        "start_api_server": lambda node, **_: setattr(node, "_webui_url", ""),
    }
    kept = {name: vars(Node)[name] for name in idle if name in vars(Node)}
    for name in kept:
        setattr(Node, name, idle[name])
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level=WARNING)
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"RayGrid(ray_address={address!r}): no cluster answers there ({error}). "
            "Start one with `ray start --head`."
        ) from None


def _check(argument: str, have: float, noun: str, need_: float) -> None:
    if have < need_:
        raise ValueError(
            f"RayGrid({argument}={need_:g}): needs {need_:g} {noun}s, this machine has {have:g}. "
            "Ask for less."
        )
