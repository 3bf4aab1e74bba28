"""Where the clients of a run train: in this process, or on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from logging import WARNING

import torch
from flwr.common.logger import log

from fedexp.clients import Examples
from fedexp.clients.groups.group import ClientGroup
from fedexp.clients.losses import default_loss
from fedexp.clients.module import layout_of
from fedexp.clients.objective import loss_at
from fedexp.config import Config
from fedexp.foreign_draws import seeded
from fedexp.runs.federation import Federation
from fedexp.simulation.grid import FIRST_NODE_ID, LocalGrid, context_of
from fedexp.simulation.serial import SerialGrid

SMALL_SECONDS = 20.0
"""A run whose clients take less than this one by one is over before Ray pays off."""
_MOST_STEPS, _ENOUGH_SECONDS = 6, 0.2  # that a model is tried for


def check_engine(federation: Federation, engine: str) -> None:
    """Find out now what would fail in round 1.

    Args:
        federation: the clients.
        engine: ``serial`` or ``ray``.

    Raises:
        ValueError: no such device here, or clients that cannot be vectorised as asked.
    """
    config = federation.config
    device = device_of(config)
    if config.device or engine == "serial":  # RayGrid counts GPUs itself
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"Config(device={device!r}): {reason}. Use cpu.") from None
    if config.vectorize == "on":
        context = context_of(FIRST_NODE_ID, 1, {**config.values(), "device": device}, None)
        ClientGroup.of(federation.client_app, "on", context)


def device_of(config: Config) -> str:
    """Where the clients' tensors are."""
    return config.device or ("cuda" if config.num_gpus else "cpu")


def engine_of(config: Config, seconds: Callable[[], float]) -> str:
    """``serial`` or ``ray``: what ``auto`` comes to. It never changes a result.

    Ray takes seconds to start. Where all clients one after the other take less than
    ``SMALL_SECONDS``, they run in this process. So they do where Ray is not installed, where one
    worker is asked for, and where the clients share the GPU that ``device`` names.

    Args:
        config: of the run.
        seconds: tells how long its clients take, where it matters: ``seconds_of``.
    """
    if config.engine != "auto":
        return config.engine
    if config.num_gpus or config.ray_address or config.num_workers > 1:
        return "ray"
    if config.num_workers == 1 or config.device not in ("", "cpu") or find_spec("ray") is None:
        return "serial"
    return "serial" if seconds() < SMALL_SECONDS else "ray"


def seconds_of(federation: Federation) -> float:
    """About how long the clients of a run of one strategy take one by one, from a few steps.

    Infinite for a ClientApp that is not ours, and for a model that fails: the run will say why.
    """
    config = federation.config
    if federation.own.client_app:
        return float("inf")
    cohort = max(1, round(config.fraction_train * federation.num_clients))
    steps = cohort * config.local_steps * config.num_server_rounds
    try:
        return steps * _seconds_of_a_step(federation)
    except Exception:  # of the user's own model or loss
        return float("inf")


def _seconds_of_a_step(federation: Federation) -> float:
    """Of one minibatch, forward and backward.

    The first step warms up. Of those that follow the shortest counts: whatever else the machine
    does makes a step longer, never shorter. A slow model takes two steps.
    """
    module, data = federation.model(), Examples(*federation.dataset.train)
    size = min(federation.config.batch_size, len(data))
    inputs, targets = data.take(torch.arange(size))
    inputs, loss_fn = layout_of(module)(inputs), federation.own.loss or default_loss
    threads, taken = torch.get_num_threads(), list[float]()
    torch.set_num_threads(1)  # as clients have
    try:
        with torch.random.fork_rng(devices=[]), seeded(0, 0):
            while len(taken) < 2 or (len(taken) < _MOST_STEPS and sum(taken) < _ENOUGH_SECONDS):
                start = time.perf_counter()
                _, loss = loss_at(module, loss_fn, inputs, targets)
                loss.backward()  # type: ignore[no-untyped-call]
                taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(taken[1:])


def grid_of(config: Config, federation: Federation | None = None, engine: str = "") -> LocalGrid:
    """The grid of a run: that of ``engine``, or the serial one with a line if Ray is missing.

    Args:
        config: of the run.
        federation: its clients, if they are not those of ``config`` alone.
        engine: ``serial`` or ``ray``; by default what ``config`` comes to.

    Raises:
        ValueError: more workers or GPUs than there are.
    """
    federation = federation or Federation(config)
    run_config = {**config.values(), "device": device_of(config)}
    if (engine or engine_of(config, partial(seconds_of, federation))) == "ray":
        try:
            from fedexp.simulation.ray.grid import RayGrid
        except ModuleNotFoundError as error:
            log(WARNING, "Clients run in this process: %s", error)
        else:
            return RayGrid(
                federation.client_app,
                federation.num_clients,
                run_config=run_config,
                num_workers=config.num_workers or None,
                num_gpus=config.num_gpus,
                ray_address=config.ray_address or None,
                vectorize=config.vectorize,
                worker_log=config.worker_log,
            )
    return SerialGrid(
        federation.client_app,
        federation.num_clients,
        run_config=run_config,
        vectorize=config.vectorize,
    )
