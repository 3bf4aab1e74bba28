"""A draw of nodes that a seed fixes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from logging import INFO
from typing import Any, cast
from zlib import crc32

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid


def wait_for_nodes(grid: Grid, minimum: int) -> Sequence[int]:
    """Ids of the connected nodes, once there are ``minimum`` of them, in a fixed order.

    The order is the grid's own if it has one (``in_order``, ``InPartitionOrder``), else ascending.
    """
    while len(nodes := _in_order(grid)) < minimum:
        log(INFO, "Waiting for nodes to connect: %d of %d.", len(nodes), minimum)
        time.sleep(1)
    return nodes


def _in_order(grid: Grid) -> Sequence[int]:
    ids = grid.get_node_ids()
    return cast(Sequence[int], ids) if getattr(grid, "in_order", False) else sorted(ids)


class InPartitionOrder:
    """A grid whose node ids come in the order of the nodes' partitions.

    Flower draws node ids at random, so that a seed does not fix who trains. This asks every node
    for its partition once. Everything else is the wrapped grid's.

    Args:
        grid: any grid.
        partitions: partition by node id, see ``partitions_of``.
    """

    in_order = True

    def __init__(self, grid: Grid, partitions: Mapping[int, int]) -> None:
        self._grid = grid
        self._partitions = partitions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_node_ids(self) -> list[int]:
        """Ids of connected nodes in partition order; nodes that came later at the end."""
        last = len(self._partitions)
        return sorted(self._grid.get_node_ids(), key=lambda i: (self._partitions.get(i, last), i))


Grid.register(InPartitionOrder)


def partitions_of(grid: Grid) -> dict[int, int]:
    """The partition of every node, once as many are connected as there are partitions.

    Nodes answer ``query`` messages with ``partition-id`` and ``num-partitions``, as those of
    ``fedexp.clients.client_app`` do. Under ``flwr run`` the ServerApp starts while nodes still
    register; without this the first round would train on whichever are there.
    """
    first = wait_for_nodes(grid, 1)[:1]
    expected = next(iter(_ask(grid, first).values()))["num-partitions"]
    nodes = wait_for_nodes(grid, expected)
    return {node: reply["partition-id"] for node, reply in _ask(grid, nodes).items()}


def _ask(grid: Grid, nodes: Sequence[int]) -> dict[int, dict[str, int]]:
    messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    replies = grid.send_and_receive(messages)
    return {
        reply.metadata.src_node_id: cast(dict[str, int], reply.content["metrics"])
        for reply in replies
    }


def sample(nodes: Sequence[int], size: int, *, seed: int, server_round: int, use: str) -> list[int]:
    """Draw ``size`` of ``nodes`` uniformly without replacement, in their order.

    The draw is a pure function of its arguments; ``use`` keeps training and evaluation apart.
    """
    rng = np.random.default_rng([seed, server_round, crc32(use.encode())])
    return [nodes[i] for i in sorted(rng.choice(len(nodes), size, replace=False).tolist())]
