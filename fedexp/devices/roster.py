"""Who the clients of a run on devices are, and how they are numbered."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any, cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedexp import keys
from fedexp.devices.requests import Request, arrivals
from fedexp.devices.told import DEVICE
from fedexp.simulation.grid import FIRST_NODE_ID

_QUERY_PATIENCE = 30.0  # seconds that a new node has to say who it is
_LAST = 1 << 62  # the place of a node that says nothing of itself


@dataclass(frozen=True)
class DeviceClient:
    """A client of the run.

    Attributes:
        name: that its node says.
        node: the node's id.
        own: its position among the clients of its node.
        is_edge: whether its node stands for several.
    """

    name: str
    node: int
    own: int = 0
    is_edge: bool = False


class Roster:
    """The clients of a run, by number: those of new nodes come after all that are known.

    Args:
        grid: Flower's.
        edges: ids of the nodes that may stand for several clients.
    """

    def __init__(self, grid: Grid, edges: Collection[int]) -> None:
        self.grid, self.edges = grid, frozenset(edges)
        self.clients: list[DeviceClient] = []
        self._asked: dict[int, tuple[float, int]] = {}  # when a node may be asked again, how often
        self._least, self._patience = 0, float("inf")
        self._short_since: float | None = None  # when there were first too few clients

    def wait_for(self, number: int, timeout: float = float("inf")) -> None:
        """Wait until ``number`` clients are there; later rounds do the same.

        Raises:
            ValueError: they do not come in ``timeout`` seconds, now or later.
        """
        self._least, self._patience = number, timeout
        self._short_since = None
        while len(there := self.present()) < number:
            log(INFO, "Waiting for devices: %d of %d.", len(there), number)
            time.sleep(1)

    def present(self) -> list[int]:
        """The clients whose nodes are there, in their order.

        Raises:
            ValueError: for longer than ``wait_for`` allows they are fewer than it waits for.
        """
        nodes = set(self.grid.get_node_ids())
        self._meet(nodes)
        there = [p + FIRST_NODE_ID for p, x in enumerate(self.clients) if x.node in nodes]
        now = time.monotonic()
        if len(there) >= self._least:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        elif now - self._short_since > self._patience:
            raise ValueError(
                f"{len(there)} of {self._least} devices came within {self._patience:g} s."
            )
        return there

    def _meet(self, nodes: Collection[int]) -> None:
        """Ask nodes that nobody knows who they are, and number their clients."""
        now, known = time.monotonic(), {client.node for client in self.clients}
        new = [
            node
            for node in sorted(nodes)
            if node not in known and now >= self._asked.get(node, (now, 0))[0]
        ]
        if not new:
            return
        for node in new:  # less and less often, since all others wait for the answer
            times = self._asked.get(node, (0.0, 0))[1]
            self._asked[node] = now + _QUERY_PATIENCE * (1 + 2**times), times + 1
        query = RecordDict({"config": ConfigRecord({DEVICE: True})})
        messages = [Message(query, node, MessageType.QUERY) for node in new]
        found: list[tuple[int, DeviceClient]] = []
        requests = [Request(message, (0, 1), is_edge=False) for message in messages]
        for request, reply in arrivals(self.grid, requests, _QUERY_PATIENCE):
            node = request.message.metadata.dst_node_id  # whatever the reply says
            try:
                found += self._introduced(node, reply)
            except Exception as error:  # a node may send anything
                log(WARNING, "Node %d does not say who it is: %s", node, error)
        self.clients += [x for _, x in sorted(found, key=lambda item: (item[0], item[1].name))]

    def _introduced(self, node: int, reply: Message) -> list[tuple[int, DeviceClient]]:
        """The clients of a node, each with the partition that it plays, if it does."""
        if reply.has_error():  # an app that answers no queries, on Flower's own node
            return [(_LAST, DeviceClient(f"node {node:020d}", node))]
        metrics: Mapping[str, Any] = reply.content.metric_records.get("metrics", {})
        partition = int(metrics.get(keys.PARTITION_ID, _LAST))
        if DEVICE not in reply.content:  # Flower's own node, with a ClientApp of `client_app`
            return [(partition, DeviceClient(f"partition {partition:06d}", node))]
        told = reply.content.config_records[DEVICE]
        names = [str(x)[:200] for x in cast(list[str], told["names"])]
        is_edge = bool(told["edge"])
        if (is_edge or len(names) != 1) and node not in self.edges:
            raise ValueError("it wants to answer for others, and is not listed as an edge.")
        place = 0 if partition == _LAST else partition
        return [(place, DeviceClient(x, node, i, is_edge)) for i, x in enumerate(names)]
