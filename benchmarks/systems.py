"""The systems, each a process of its own that takes rounds when told to.

python -m benchmarks.systems SYSTEM WORKLOAD ADDRESS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from typing import Any, Protocol

from benchmarks.workloads import LR, SEED, WORKLOADS, Workload


class System(Protocol):
    """Something that takes rounds."""

    def round(self, t: int) -> list[int]:
        """Take round ``t``; the clients that trained."""
        ...

    def arrays(self) -> list[Any]:
        """The model, in the order of its parameters."""
        ...


def serve(system: System, link: Connection) -> None:
    """Take as many rounds as each message says; answer seconds, clients and the model."""
    t = 0
    while count := link.recv():
        seconds, clients = [], []
        for t in range(t + 1, t + 1 + count):  # noqa: B020
            start = time.perf_counter()
            clients.append(system.round(t))
            seconds.append(time.perf_counter() - start)
        link.send((seconds, clients, system.arrays() if t <= 2 else None))


class Strategy:
    """Rounds of a Flower strategy, as its ``start`` takes them, without evaluation."""

    def __init__(self, strategy: Any, grid: Any, workload: Workload) -> None:
        from flwr.app import ArrayRecord, ConfigRecord

        self.strategy, self.grid = strategy, grid
        self.config = ConfigRecord({"workload": workload.title})
        self.model = ArrayRecord(workload.model().state_dict())

    def round(self, t: int) -> list[int]:
        """Take round ``t``; the clients that trained."""
        messages = list(self.strategy.configure_train(t, self.model, self.config, self.grid))
        clients = [message.metadata.dst_node_id - 2 for message in messages]
        replies = self.grid.send_and_receive(messages, timeout=3600)
        if isinstance(replies, list):  # of Flower's grids, whose node ids say nothing
            clients = [int(r.content["metrics"]["client"]) for r in replies]
        self.model, _ = self.strategy.aggregate_train(t, replies)
        return clients

    def arrays(self) -> list[Any]:
        """The model, in the order of its parameters."""
        return [array.numpy() for array in self.model.values()]


def _options(workload: Workload) -> dict[str, Any]:
    return {
        "fraction_train": workload.cohort / workload.num_clients,
        "fraction_evaluate": 0.0,
        "min_available_nodes": workload.num_clients,
    }


def bare(workload: Workload, link: Connection) -> None:
    """Two plain processes."""
    from benchmarks.loops import Bare

    with Bare(workload) as system:
        serve(system, link)


def usual(workload: Workload, link: Connection) -> None:
    """Two plain processes, the steps written as ClientApps have them."""
    from benchmarks.loops import Bare, UsualLoop

    with Bare(workload, UsualLoop) as system:
        serve(system, link)


def sequential(workload: Workload, link: Connection) -> None:
    """One plain process."""
    from benchmarks.loops import Sequential

    serve(Sequential(workload), link)


def flower(workload: Workload, link: Connection) -> None:
    """Flower's simulation, strategy and an ordinary ClientApp."""
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from benchmarks.flower_client import app

    server = ServerApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:
        serve(Strategy(FedAvg(**_options(workload)), grid, workload), link)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, app, workload.num_clients, backend_config=resources)


def foreign(workload: Workload, link: Connection) -> None:
    """The same strategy and ClientApp on RayGrid."""
    from flwr.serverapp.strategy import FedAvg

    from benchmarks.flower_client import app
    from fedexp.simulation.ray.grid import RayGrid

    with RayGrid(app, workload.num_clients) as grid:
        serve(Strategy(FedAvg(**_options(workload)), grid, workload), link)


def ours(workload: Workload, link: Connection) -> None:
    """Fedexp's clients and strategy on RayGrid."""
    from fedexp.simulation.ray.grid import RayGrid
    from fedexp.strategies import FedAvg

    strategy = FedAvg(**_options(workload), seed=SEED)
    with RayGrid(_stock(workload), workload.num_clients, run_config=_run_config(workload)) as grid:
        serve(Strategy(strategy, strategy.streamed(grid), workload), link)


def fedjax(workload: Workload, link: Connection) -> None:
    """FedJAX, compiled."""
    from benchmarks.peers import FedJAX

    serve(FedJAX(workload), link)


def fedlab(workload: Workload, link: Connection) -> None:
    """FedLab's standalone simulation."""
    from benchmarks.peers import FedLab

    serve(FedLab(workload), link)


def _stock(workload: Workload) -> Any:
    from fedexp.clients import Examples, client_app

    def data(context: Any) -> tuple[Examples, Examples]:
        examples = Examples(*workload.data(), workload.rows(context.node_config["partition-id"]))
        return examples, examples

    return client_app(lambda context: workload.model(), data)


def _run_config(workload: Workload) -> dict[str, Any]:
    return {
        "seed": SEED,
        "local-steps": workload.steps,
        "batch-size": workload.batch,
        "learning-rate": LR,
    }


SYSTEMS: dict[str, Callable[[Workload, Connection], None]] = {
    "bare": bare,
    "usual": usual,
    "sequential": sequential,
    "flower": flower,
    "foreign": foreign,
    "ours": ours,
    "fedjax": fedjax,
    "fedlab": fedlab,
}


if __name__ == "__main__":
    name, key, address = sys.argv[1:]
    with Client(address) as link:
        SYSTEMS[name](WORKLOADS[key], link)
