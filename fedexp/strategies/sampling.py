"""Sampling of nodes that depends on nothing but a seed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any, cast
from zlib import crc32

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedexp import keys
from fedexp.merged import OrderedGrid
from fedexp.strategies.streaming import unwrapped

_PATIENCE = 60.0  # seconds to wait for another node if no connected node gives an answer


def wait_for_nodes(grid: Grid, minimum: int) -> Sequence[int]:
    """Ids of the connected nodes, once there are ``minimum`` of them, in a fixed order.

    The order is the grid's own if it has one (`OrderedGrid`), otherwise ascending.
    """
    while len(nodes := _in_order(grid)) < minimum:
        log(INFO, "Waiting for nodes to connect: %d of %d.", len(nodes), minimum)
        time.sleep(1)
    return nodes


def _in_order(grid: Grid) -> Sequence[int]:
    ids = grid.get_node_ids()
    return cast(Sequence[int], ids) if isinstance(unwrapped(grid), OrderedGrid) else sorted(ids)


class InPartitionOrder:
    """A grid whose node ids come in the order of the nodes' partitions.

    Flower draws node ids at random, so that a seed alone does not fix which clients train; with
    this order it does. Everything else is the wrapped grid's.

    Args:
        grid: any grid.
        partitions: partition by node id, as ``partitions_of`` returns it.
    """

    def __init__(self, grid: Grid, partitions: Mapping[int, int]) -> None:
        self._grid = grid
        self._partitions = partitions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_node_ids(self) -> list[int]:
        """Ids of connected nodes in partition order; nodes without a partition come last."""
        last = len(self._partitions)
        return sorted(self._grid.get_node_ids(), key=lambda i: (self._partitions.get(i, last), i))


OrderedGrid.register(InPartitionOrder)


def in_partition_order(grid: Grid, partitions: Mapping[int, int]) -> Grid:
    """``grid`` itself if its nodes are in order, else ``InPartitionOrder`` of it."""
    is_ordered = isinstance(unwrapped(grid), OrderedGrid)
    return grid if is_ordered else cast(Grid, InPartitionOrder(grid, partitions))


def partitions_of(grid: Grid) -> dict[int, int]:
    """The partition of every node, once as many are connected as there are partitions.

    Nodes answer ``query`` messages with ``partition-id`` and ``num-partitions``, as
    ``fedexp.clients.client_app`` does. Under ``flwr run`` the ServerApp starts while nodes still
    register; without this wait, the first round would train on those that happen to be connected.
    The number of partitions is what most nodes report. A node without a valid answer is logged, and
    is not in the result.

    Raises:
        ValueError: no node gives a valid answer, and no more nodes connect.
    """
    answers: dict[int, tuple[int, int] | None] = {}
    since = time.monotonic()
    while True:
        nodes = wait_for_nodes(grid, 1)
        if new := [node for node in nodes if node not in answers]:
            answers |= dict.fromkeys(new) | _ask(grid, new)
            since = time.monotonic()
        sound = {node: answer for node in nodes if (answer := answers[node])}
        if sound and len(nodes) >= (expected := _commonest(n for _, n in sound.values())):
            return {node: partition for node, (partition, _) in sound.items()}
        if not sound and time.monotonic() - since > _PATIENCE:
            raise ValueError(
                f"partitions_of(grid of {len(nodes)} nodes): none says which partition it has. "
                "Use fedexp.clients.client_app, or answer query messages as it does."
            )
        if sound:
            log(INFO, "Waiting for nodes to connect: %d of %d.", len(nodes), expected)
        time.sleep(1)


def _ask(grid: Grid, nodes: Sequence[int]) -> dict[int, tuple[int, int]]:
    """``partition-id`` and ``num-partitions`` of the nodes with a valid answer."""
    messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    found = {}
    for reply in grid.send_and_receive(messages):
        node = reply.metadata.src_node_id
        try:
            found[node] = _partition_in(reply)
        except Exception as error:  # a node may send anything
            log(WARNING, "Node %d does not say which partition it has: %s", node, error)
    return found


def _partition_in(reply: Message) -> tuple[int, int]:
    if reply.has_error():
        raise ValueError(reply.error.reason)
    metrics = cast(Mapping[str, Any], reply.content["metrics"])
    partition, count = metrics[keys.PARTITION_ID], metrics[keys.NUM_PARTITIONS]
    if not (isinstance(partition, int) and isinstance(count, int) and 0 <= partition < count):
        raise ValueError(f"partition {partition} of {count}")
    return partition, count


def _commonest(values: Iterable[int]) -> int:
    """The most frequent value; the smallest one if there are several."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def sample(nodes: Sequence[int], size: int, *, seed: int, server_round: int, use: str) -> list[int]:
    """Draw ``size`` of ``nodes`` uniformly without replacement, in their order.

    The draw is a pure function of its arguments. ``use`` is part of the seed, so that training and
    evaluation draw different nodes.

    Example:
        >>> from fedexp.strategies.sampling import sample
        >>> nodes = sample([10, 20, 30, 40], 2, seed=0, server_round=1, use="train")
        >>> nodes == sample([10, 20, 30, 40], 2, seed=0, server_round=1, use="train")
        True
        >>> len(nodes), set(nodes) <= {10, 20, 30, 40}
        (2, True)
    """
    # Not hash(): Python salts it anew in every process.
    rng = np.random.default_rng([seed, server_round, crc32(use.encode())])
    return [nodes[i] for i in sorted(rng.choice(len(nodes), size, replace=False).tolist())]


def cohort_size(num_nodes: int, fraction: float, least: int) -> int:
    """How many of ``num_nodes`` Flower's FedAvg would ask: a fraction, but at least ``least``.

    Example:
        >>> from fedexp.strategies.sampling import cohort_size
        >>> cohort_size(100, 0.29, 2), cohort_size(100, 0.0, 2)
        (29, 2)
    """
    # A product such as 0.29 · 100 comes out as 28.999999999999996, which must not become 28.
    return max(int(num_nodes * fraction + 1e-9), least)


def draw(
    nodes: Sequence[int], fraction: float, least: int, *, seed: int, server_round: int, use: str
) -> list[int]:
    """A ``sample`` of the nodes, as many as Flower's FedAvg would ask.

    Args:
        nodes: that may be asked.
        fraction: of the nodes, to be asked.
        least: how many are asked at least.
        seed: of the draw.
        server_round: the number of the round.
        use: ``train`` or ``evaluate``.
    """
    size = cohort_size(len(nodes), fraction, least)
    log(INFO, "%s: Sampled %s nodes (out of %s)", use, size, len(nodes))
    return sample(nodes, size, seed=seed, server_round=server_round, use=use)
