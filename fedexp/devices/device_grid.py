"""Real devices as the clients of a simulation: numbered, in order, and added up alike."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from logging import INFO, WARNING
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.devices.data_description import KEY as DESCRIPTION
from fedexp.devices.edge import MERGE, OWN_POSITION
from fedexp.devices.merged_records import reading_text, sums_in
from fedexp.devices.told import CLIENT_NUMBER, DEVICE, NUM_CLIENTS
from fedexp.merged import Merged, MergingGrid, OrderedGrid
from fedexp.records import from_record, records_of
from fedexp.simulation.grid import FIRST_NODE_ID
from fedexp.simulation.merge_tree import Span, combine, halves, subtrees
from fedexp.simulation.worker_share import WorkerShare
from fedexp.strategies.streaming import GRACE, guard_for
from fedexp.wire import BadReply, ClientResult, ReplyFormat

_PAUSE = 0.2  # seconds between looks for replies
_QUERY_PATIENCE = 30.0  # seconds that a new node has to say who it is
_LONGEST_REASON = 500  # characters that are kept of what a device says
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


@dataclass(frozen=True)
class _Request:
    """A message that is sent, and the places in the cohort that its reply is for."""

    message: Message
    places: Span
    is_edge: bool


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
        self.grid, self.description = grid, description
        self.edges, self.enough = frozenset(edges), enough
        self.clients: list[DeviceClient] = []
        self.states: dict[int, Any] = {}  # stays empty: devices keep their own
        self._asked: dict[int, tuple[float, int]] = {}  # when a node may be asked again, how often
        self._pushed: dict[str, Message] = {}
        self._least, self._patience = 0, float("inf")
        self._short_since: float | None = None  # when there were first too few clients

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
        self._least, self._patience = number, timeout
        self._short_since = None
        while len(there := self.get_node_ids()) < number:
            log(INFO, "Waiting for devices: %d of %d.", len(there), number)
            time.sleep(1)

    def get_node_ids(self) -> list[int]:
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
        requests = [_Request(message, (0, 1), is_edge=False) for message in messages]
        for request, reply in self._arrivals(requests, _QUERY_PATIENCE):
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

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to clients; the ids of the messages to their nodes."""
        asked = list(messages)
        ids = list(self.grid.push_messages([self._single(message) for message in asked]))
        self._pushed |= {i: message for i, message in zip(ids, asked, strict=True) if i}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, as their clients'."""
        return [
            _reply_to(self._pushed.pop(i), reply)
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
            _Request(self._single(message), (p, p + 1), is_edge=False)
            for p, message in enumerate(asked)
        ]
        for request, reply in self._arrivals(requests, timeout, self.enough):
            yield _reply_to(asked[request.places[0]], reply)

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
        whole: Span = (0, len(asked))
        before = from_record(records_of(asked[0].content, ArrayRecord)[reading.arrays_key])
        parts: dict[Span, Merged] = {}
        for request, reply in self._arrivals(self._requests(asked, reading), timeout, self.enough):
            nodes = [message.metadata.dst_node_id for message in asked]
            if request.is_edge:
                parts |= _of_edge(request.places, whole, nodes, reply, reading, before)
            else:
                place = request.places[0]
                result = _result(nodes[place], reply, reading, before)
                share = WorkerShare(partial(_only, result), reading, before)
                parts[request.places] = share.merged(request.places, 1)
            _settle(whole, parts)
            del reply
        for part in _missing(whole, parts):  # of those that are late: nothing to add
            parts[part] = Merged()
        merged = combine(whole, parts)
        failures = tuple((node, _line(reason)) for node, reason in merged.failures)
        return replace(merged, failures=failures)

    def _requests(self, asked: Sequence[Message], reading: ReplyFormat) -> list[_Request]:
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
                    _Request(self._told(first, {MERGE: json.dumps(request)}), span, is_edge=True)
                )
            else:
                requests.append(_Request(self._single(first), span, is_edge=False))
        return requests

    def _number(self, message: Message) -> int:
        number = message.metadata.dst_node_id - FIRST_NODE_ID
        if not 0 <= number < len(self.clients):
            raise ValueError(f"message to node {number + FIRST_NODE_ID}: there is no such client.")
        return number

    def _client(self, message: Message) -> DeviceClient:
        return self.clients[self._number(message)]

    def _single(self, message: Message) -> Message:
        """``message`` as it goes to the node of one client."""
        client = self._client(message)
        told = {CLIENT_NUMBER: self._number(message), NUM_CLIENTS: len(self.clients)}
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

    def _arrivals(
        self, requests: Sequence[_Request], timeout: float | None, enough: int = 0
    ) -> Iterator[tuple[_Request, Message]]:
        """Each request with its reply, as they come; those that do not come in time are missing.

        So many sound replies as ``enough`` end it; 0: all.
        """
        if timeout is not None:
            for request in requests:  # so that a slow device skips to the newest round
                request.message.metadata.ttl = min(request.message.metadata.ttl, timeout + GRACE)
        messages = [request.message for request in requests]
        guard, ids = guard_for(messages), self.grid.push_messages(messages)
        pending = dict(zip(ids, requests, strict=True))
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        enough, num_sound = enough or len(requests), 0
        while pending and num_sound < enough and time.monotonic() < end:
            arrived = guard.pull(self.grid, list(pending))
            for reply in arrived:
                if (message_id := reply.metadata.reply_to_message_id) in pending:
                    num_sound += not reply.has_error()
                    yield pending.pop(message_id), reply
            if pending and not arrived:
                time.sleep(_PAUSE)


def _reply_to(asked: Message, reply: Message) -> Message:
    """``reply`` of a node as that of the client that was asked."""
    if reply.has_error():
        error = Error(reply.error.code, _line(reply.error.reason))
        return Message(error, reply_to=asked)
    return Message(reply.content, reply_to=asked)


def _line(reason: str | None) -> str:
    """What a device says went wrong, as one line: it may say anything, at any length."""
    text = " ".join((reason or "")[:_LONGEST_REASON].split())
    return "".join(x if x.isprintable() else "?" for x in text)


def _result(node: int, reply: Message, reading: ReplyFormat, before: Arrays) -> ClientResult:
    if reply.has_error():
        return ClientResult(node, refused=reply.error.reason or f"error {reply.error.code}")
    return reading.result(node, reply.content, before, look_at_updates=False)


def _only(result: ClientResult, _: Span) -> list[ClientResult]:
    return [result]


def _of_edge(
    places: Span,
    whole: Span,
    nodes: Sequence[int],
    reply: Message,
    reading: ReplyFormat,
    before: Arrays,
) -> dict[Span, Merged]:
    """The sums of an edge by subtree, or failures of all its clients."""
    asked = {part: nodes[slice(*part)] for part in subtrees(places, whole)}
    if reply.has_error():
        reason = reply.error.reason or f"error {reply.error.code}"
    else:
        try:
            return sums_in(reply.content, asked, reading, before)
        except BadReply as error:
            reason = str(error)
    return {
        part: Merged(failures=tuple((node, reason) for node in some))
        for part, some in asked.items()
    }


def _missing(span: Span, parts: Mapping[Span, Merged]) -> Iterator[Span]:
    """The largest branches of the tree below ``span`` of which nothing has come."""
    if span in parts:
        return
    if not any(span[0] <= part[0] and part[1] <= span[1] for part in parts):
        yield span
        return
    for half in halves(span):
        yield from _missing(half, parts)


def _settle(span: Span, parts: dict[Span, Merged]) -> bool:
    """Add up what can be, so that no more sums are held than the tree has open branches."""
    if span in parts:
        return True
    if span[1] - span[0] < 2:
        return False
    left, right = halves(span)
    if all([_settle(left, parts), _settle(right, parts)]):
        parts[span] = parts.pop(left) + parts.pop(right)
        return True
    return False
