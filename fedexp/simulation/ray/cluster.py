"""Starting Ray on this machine or joining a cluster."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import WARNING
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from fedexp.extras import need
from fedexp.simulation.flower.switch import is_plain
from fedexp.simulation.ray.private import (
    prepare_environment,
    print_plainly,
    start,
)

need("ray", "simulation")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # every client's line is shown
prepare_environment()
import ray  # noqa: E402

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_PER_CPU = 4  # workers that share a CPU at most; more of them would only be slower
_FREE_SECONDS = 10.0  # in which Ray frees the CPUs of workers that have just ended
_LOG_SECONDS = 2.0  # in which the last lines that workers have printed arrive here


class _Session:
    """What the grids of this process, which share one Ray, know of it.

    Attributes:
        users: open grids, and the CPUs of the cluster that each claims.
        ours: address of the Ray that one of them started or joined, for the last one to end.
        local: it was started on this machine, so nobody else runs anything there.
        shows_log: what the workers print comes here.
    """

    users: ClassVar[WeakKeyDictionary[object, int]] = WeakKeyDictionary()
    ours = ""
    local = False
    shows_log = False


def connect(
    user: object,
    num_workers: int | None,
    num_gpus: float,
    address: str | None,
    *,
    shows_log: bool = False,
) -> None:
    """Join or start Ray for a grid, unless that has been done in this process.

    Args:
        user: the grid.
        num_workers: how many CPUs Ray is to have at least.
        num_gpus: that it needs.
        address: of the Ray to join.
        shows_log: print here what workers print, with the worker's process before it.
    """
    if not ray.is_initialized():
        with _keeping_sigterm():
            if address:
                _join(address, shows_log)
            else:
                _start(num_workers, num_gpus, shows_log)
        _Session.ours, _Session.local = _address(), not address
        _Session.shows_log = shows_log
        if shows_log:
            print_plainly()
    elif _address() != _Session.ours:  # the caller's own
        _Session.ours, _Session.local = "", False
    _Session.users[user] = 0


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray lets SIGTERM end this process at once; whoever handles it already has other plans."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def leave(user: object) -> None:
    """End what ``connect`` began, once no grid needs it."""
    known = _Session.users.pop(user, None) is not None
    if known and not _Session.users and ray.is_initialized() and _address() == _Session.ours:
        if _Session.shows_log:
            time.sleep(_LOG_SECONDS)
        ray.shutdown()


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def _start(num_workers: int | None, num_gpus: float, shows_log: bool) -> None:
    _check_count(num_workers or 1)
    if num_gpus:
        import torch

        _check("num_gpus", torch.cuda.device_count(), "GPU", num_gpus)
    with _failing_in_a_line():
        start(
            ray.init,
            ray.shutdown,
            shows_log=shows_log,
            address="local",  # without it, whatever cluster runs on this machine is joined
            num_cpus=num_workers or os.cpu_count(),
            include_dashboard=False,
            log_to_driver=shows_log,
            logging_level=WARNING,
        )


def claim(user: object, num_workers: int | None, num_gpus: float) -> tuple[int, int]:
    """How many workers to start, by default one per CPU of the cluster, once there is room.

    Ray itself would start workers for which no CPU is free as soon as there is one, if ever. Grids
    of one process share its CPUs: they seldom run at the same time.

    Returns:
        The number, and how many CPUs of the cluster each of them claims: 0 or 1.

    Raises:
        ValueError: more workers or GPUs than there are, or than are free.
    """
    there = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    count = num_workers or (os.cpu_count() or 1 if _Session.local else int(cpus))
    if _Session.local:
        _check_count(count)
    if not (0 < count <= cpus or _Session.local) or num_gpus > gpus:
        raise ValueError(
            f"RayGrid(num_workers={count}, num_gpus={num_gpus}): the cluster has {cpus:g} CPUs "
            f"and {gpus:g} GPUs. Ask for less."
        )
    own = math.inf if _Session.local else sum(_Session.users.values())
    end = time.monotonic() + _FREE_SECONDS
    while not _is_room(count - own, num_gpus):
        if time.monotonic() > end:
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            raise ValueError(
                f"RayGrid(num_workers={count}, num_gpus={num_gpus:g}): only "
                f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs of the cluster are "
                "free. Close the grid that holds them, or ask for less."
            )
        time.sleep(0.1)
    # Workers of another grid may have claimed CPUs that Ray still calls free: they are starting.
    each = 0 if _Session.local else int(count + own <= cpus and _is_room(count, 0))
    _Session.users[user] = count * each
    return count, each


def _is_room(num_cpus: float, num_gpus: float) -> bool:
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return bool(free.get("CPU", 0) >= num_cpus and free.get("GPU", 0) >= num_gpus)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to a GiB.

    glibc returns large blocks to the system at once, and every client's model and gradients
    would be faulted in anew: measured, 20 % of a round of small clients. ``FEDEXP_PLAIN=1`` leaves
    the C library as it is.
    """
    if is_plain():
        return
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_MMAP_MAX, 0)  # none has a mapping of its own, however large


def keep_store_mapped() -> Any:
    """Give an object that keeps Ray's store mapped as long as somebody holds it.

    Ray unmaps the store whenever a process holds none of it: each page of a model would be
    faulted in again at every use, measured 20 ms for 34 MB in place of 5. ``FEDEXP_PLAIN=1`` lets
    it.
    """
    if is_plain():
        return None
    reference = ray.put(np.zeros(1 << 18, np.uint8))
    return reference, ray.get(reference)


@contextmanager
def _failing_in_a_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises no kind of its own
        ray.shutdown()
        line = str(error).partition("\n")[0].rstrip(".")
        raise RuntimeError(
            f"RayGrid: Ray does not start: {line}. Run again when the machine is less busy, or "
            "use SerialGrid (--engine serial)."
        ) from error


def _join(address: str, shows_log: bool) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=shows_log, logging_level=WARNING)
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"RayGrid(ray_address={address!r}): no cluster answers there ({error}). "
            "Start one with `ray start --head`."
        ) from None


def _check_count(num_workers: int) -> None:
    limit = _PER_CPU * (os.cpu_count() or 1)
    if num_workers > limit:
        raise ValueError(
            f"RayGrid(num_workers={num_workers}): at most {limit} here, {_PER_CPU} per CPU. "
            "Ask for less, or 0 for one per CPU."
        )


def _check(argument: str, have: float, noun: str, need_: float) -> None:
    if have < need_:
        raise ValueError(
            f"RayGrid({argument}={need_:g}): needs {need_:g} {noun}s, this machine has {have:g}. "
            "Ask for less."
        )
