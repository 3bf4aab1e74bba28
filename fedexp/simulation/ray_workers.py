"""Persistent Ray actors, replaced when they die. The only module that imports Ray."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from logging import WARNING
from typing import Any

from flwr.clientapp import ClientApp

from fedexp.clients.vectorized import check_mode
from fedexp.extras import need
from fedexp.simulation.worker import Worker

need("ray", "simulation")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default
import ray  # noqa: E402
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError  # noqa: E402

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_PER_CPU = 4  # workers that share a CPU are slow, and more of them only slower
_WATCH_SECONDS = 5.0  # for an answer of a worker whose client may hang


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


@ray.remote(concurrency_groups={"watch": 1})  # type: ignore[call-overload]
class _Actor(Worker):
    def __init__(self, *args: Any) -> None:
        _keep_freed_memory()
        super().__init__(*args)

    @ray.method(concurrency_group="watch")
    def running(self) -> int | None:
        """Position of the client that runs now; answered while it runs."""
        return self.position


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
        share = num_gpus / self.count
        self._actor = _Actor.options(num_cpus=1, num_gpus=share)  # type: ignore[attr-defined]
        self._args = ray.put(client_app), num_nodes, dict(run_config), vectorize
        self._actors = [self._new() for _ in range(self.count)]

    def put(self, value: Any) -> Any:
        """Store ``value`` once for all workers."""
        return ray.put(value)

    def submit(self, worker: int, method: str, *args: Any) -> Any:
        """Start a method of a worker; a ticket for ``wait``."""
        actor = self._actors[worker]
        return actor, getattr(actor, method).remote(*args)

    def wait(self, ticket: Any, seconds: float | None) -> Any:
        """The answer.

        Raises:
            WorkerDied: its process ended.
            WorkerHangs: no answer within ``seconds``.
        """
        try:
            return ray.get(ticket[1], timeout=seconds)
        except GetTimeoutError:
            raise WorkerHangs from None
        except RayTaskError as error:
            raise error.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
        except RayActorError as error:
            raise WorkerDied(str(error).splitlines()[0]) from None

    def running(self, worker: int) -> int | None:
        """Position of the client that a worker runs now, if it still answers."""
        try:
            return ray.get(self._actors[worker].running.remote(), timeout=_WATCH_SECONDS)  # type: ignore[no-any-return]
        except (GetTimeoutError, RayActorError):
            return None

    def replace(self, worker: int, ticket: Any) -> None:
        """Put a new process in the place of the one that ``ticket`` went to, once."""
        if self._actors[worker] is ticket[0]:
            ray.kill(ticket[0])
            self._actors[worker] = self._new()

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._started:
            ray.shutdown()
        self._started = False

    def _new(self) -> Any:
        return self._actor.remote(*self._args)


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
    ray.init(
        address="local",  # without it, whatever cluster runs on this machine is joined
        num_cpus=num_workers or os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=WARNING,
    )
    return True


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
