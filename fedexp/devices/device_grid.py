"""Real devices as the clients of a simulation: numbered, in order, and added up alike."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedexp.devices.branches import Branches
from fedexp.devices.data_description import KEY as DESCRIPTION
from fedexp.devices.edge import MERGE, OWN_POSITION
from fedexp.devices.merged_records import reading_text
from fedexp.devices.requests import Request, arrivals, reply_to_asked
from fedexp.devices.roster import DeviceClient, Roster
from fedexp.devices.told import CLIENT_NUMBER, NUM_CLIENTS
from fedexp.merged import Merged, MergingGrid, OrderedGrid
from fedexp.records import from_record, records_of
from fedexp.simulation.grid import FIRST_NODE_ID
from fedexp.wire import ReplyFormat


class DeviceGrid(OrderedGrid, MergingGrid):
    """A grid of devices: client ``p`` of the run is node ``p + 2``, as in a simulation.

    Clients are numbered by the names of their nodes; who comes later gets the next numbers. A
    device that was away has the number that it had. Results are added up along the tree of the
    cohort, whenever they come, so that the model has the bits of ``SerialGrid``'s.

    Args:
        grid: Flower's.
        description: text of the `DataDescription` that every message brings.
        edges: ids of the nodes whose sums are believed.
        enough: so many replies end a round; the others are late. 0: all.
    """

    def __init__(
        self, grid: Grid, *, description: str = "", edges: Collection[int] = (), enough: int = 0
    ) -> None:
        self.grid, self.description, self.enough = grid, description, enough
        self.roster = Roster(grid, edges)
        self.states: dict[int, Any] = {}  # stays empty: devices keep their own
        self._pushed: dict[str, Message] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the grid below."""
        return self.grid.create_message(*args, **kwargs)

    def forget(self) -> None:
        """Nothing: a device forgets with a new run."""

    def wait_for(self, number: int, timeout: float = float("inf")) -> None:
        """Wait until ``number`` clients are there; later rounds do the same.

        Raises:
            ValueError: they do not come in ``timeout`` seconds, now or later.
        """
        self.roster.wait_for(number, timeout)

    def get_node_ids(self) -> list[int]:
        """The clients whose nodes are there, in their order.

        Raises:
            ValueError: for longer than ``wait_for`` allows they are fewer than it waits for.
        """
        return self.roster.present()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to clients; the ids of the messages to their nodes."""
        asked = list(messages)
        ids = list(self.grid.push_messages([self._single(message) for message in asked]))
        self._pushed |= {i: message for i, message in zip(ids, asked, strict=True) if i}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, as their clients'."""
        return [
            reply_to_asked(self._pushed.pop(i), reply)
            for reply in self.grid.pull_messages(message_ids)
            if (i := reply.metadata.reply_to_message_id) in self._pushed
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and wait for the replies."""
        return list(self.send_and_stream(messages, timeout))

    def send_and_stream(
        self, messages: Iterable[Message], timeout: float | None
    ) -> Iterator[Message]:
        """As ``send_and_receive``, handing over each reply as it comes; late ones never come."""
        asked = list(messages)
        requests = [
            Request(self._single(message), (p, p + 1), is_edge=False)
            for p, message in enumerate(asked)
        ]
        for request, reply in arrivals(self.grid, requests, timeout, self.enough):
            yield reply_to_asked(asked[request.places[0]], reply)

    def send_and_merge(
        self, messages: Iterable[Message], reading: ReplyFormat, timeout: float | None
    ) -> Merged:
        """Let the clients train, and add their results up along the tree of the cohort.

        Raises:
            ValueError: two messages to one client.
        """
        asked = list(messages)
        if not asked:
            return Merged()
        if len({message.metadata.dst_node_id for message in asked}) < len(asked):
            raise ValueError("DeviceGrid.send_and_merge: two messages to one client. Send one.")
        before = from_record(records_of(asked[0].content, ArrayRecord)[reading.arrays_key])
        branches = Branches([x.metadata.dst_node_id for x in asked], reading, before)
        requests = self._requests(asked, reading)
        for request, reply in arrivals(self.grid, requests, timeout, self.enough):
            branches.add(request, reply)
            del reply  # its arrays would be in memory until the next one comes
        return branches.total()

    def _requests(self, asked: Sequence[Message], reading: ReplyFormat) -> list[Request]:
        """A message to each device, and one to each edge for its clients that are neighbours."""

        def key(place: int) -> tuple[int, int]:
            client = self._client(asked[place])
            return client.node, -1 if client.is_edge else place

        requests = []
        for _, group in groupby(range(len(asked)), key):
            places = list(group)
            first, span = asked[places[0]], (places[0], places[-1] + 1)
            if self._client(first).is_edge:
                clients = [(self._number(asked[p]), self._client(asked[p]).own) for p in places]
                request = {
                    "reading": reading_text(reading),
                    "whole": len(asked),
                    "span": span,
                    "clients": clients,
                }
                requests.append(
                    Request(self._told(first, {MERGE: json.dumps(request)}), span, is_edge=True)
                )
            else:
                requests.append(Request(self._single(first), span, is_edge=False))
        return requests

    def _number(self, message: Message) -> int:
        number = message.metadata.dst_node_id - FIRST_NODE_ID
        if not 0 <= number < len(self.roster.clients):
            raise ValueError(f"message to node {number + FIRST_NODE_ID}: there is no such client.")
        return number

    def _client(self, message: Message) -> DeviceClient:
        return self.roster.clients[self._number(message)]

    def _single(self, message: Message) -> Message:
        """``message`` as it goes to the node of one client."""
        client = self._client(message)
        told = {CLIENT_NUMBER: self._number(message), NUM_CLIENTS: len(self.roster.clients)}
        return self._told(message, told | ({OWN_POSITION: client.own} if client.is_edge else {}))

    def _told(self, message: Message, settings: Mapping[str, Any]) -> Message:
        """``message`` to its client's node, with more settings."""
        own = {**settings, **({DESCRIPTION: self.description} if self.description else {})}
        content = dict(message.content)
        key = next((k for k, x in content.items() if isinstance(x, ConfigRecord)), "config")
        before = cast(ConfigRecord, content.get(key, ConfigRecord()))
        content[key] = ConfigRecord({**before, **own})
        given = message.metadata
        return Message(
            RecordDict(content),
            self._client(message).node,
            given.message_type,
            ttl=given.ttl,
            group_id=given.group_id,
        )
