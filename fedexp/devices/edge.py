"""An edge: a device that stands for many, and sends the sum of what they learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, Metadata, RecordDict
from flwr.clientapp import ClientApp

from fedexp import keys
from fedexp.devices.merged_records import content_of_sums, reading_of
from fedexp.devices.told import CLIENT_NUMBER, DATA, DEVICE, NAME, settings_of
from fedexp.simulation.grid import FIRST_NODE_ID, answer, error_reply
from fedexp.simulation.jobs import ClientJob
from fedexp.simulation.merge_tree import Span
from fedexp.simulation.transport import Packed, pack
from fedexp.simulation.worker import Worker

MERGE = "merge"
"""Setting by which a server asks an edge to add up: JSON of ``MergeRequest``'s fields."""
_RUNS = 4  # of which the states are kept


class MergeRequest:
    """What a server asks of an edge.

    Args:
        text: JSON of ``reading`` (text of a ``ReplyFormat``), ``whole`` (the size of the cohort),
            ``span`` (the places of the edge's clients in it) and ``clients`` (for each place the
            number of the client in the run, and its position among the edge's own).

    Raises:
        ValueError: it is no such request.
    """

    def __init__(self, text: str) -> None:
        try:
            given = json.loads(text)
            self.reading = reading_of(given["reading"])
            self.whole: Span = (0, int(given["whole"]))
            self.span: Span = (int(given["span"][0]), int(given["span"][1]))
            self.clients = [(int(number), int(own)) for number, own in given["clients"]]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{MERGE}: cannot be read: {error}.") from None
        if not 0 <= self.span[0] < self.span[1] <= self.whole[1]:
            raise ValueError(f"{MERGE}: places {self.span} are not in a cohort of {self.whole[1]}.")
        if len(self.clients) != self.span[1] - self.span[0]:
            raise ValueError(f"{MERGE}: {len(self.clients)} clients have places {self.span}.")


class Edge:
    """The answers of an edge.

    Args:
        app: runs once for each device.
        paths: the data of each.
        name: of the edge's node.
        stopped: whether the edge is to end, so that no other device of it begins.
    """

    def __init__(
        self,
        app: ClientApp,
        paths: Sequence[Path],
        name: str,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.paths, self.name, self.stopped = app, list(paths), name, stopped
        self._states: dict[int, dict[int, Packed]] = {}  # by run, then by client

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply to ``message``: who is here, one device's evaluation, or a sum."""
        kind = message.metadata.message_type.partition(".")[0]
        try:
            if kind == MessageType.QUERY:
                return self._introduced(message)
            settings = settings_of(message)
            if kind == MessageType.TRAIN:
                if MERGE not in settings:
                    raise ValueError("an edge answers with sums, and none was asked for.")
                return self._merged(message, context, MergeRequest(str(settings[MERGE])))
            return self._of_one(message, context, settings)
        except ValueError as error:
            return error_reply(message, str(error))

    def _introduced(self, message: Message) -> Message:
        names = [f"{self.name}/{i:05d}" for i in range(len(self.paths))]
        content = RecordDict({DEVICE: ConfigRecord({"names": names, "edge": True})})
        return Message(content, reply_to=message)

    def _of_one(self, message: Message, context: Context, settings: Mapping[str, Any]) -> Message:
        own = int(settings.get(OWN_POSITION, -1))
        if not 0 <= own < len(self.paths):
            raise ValueError(f"the edge has {len(self.paths)} devices, the message is for {own}.")
        node_config = {**context.node_config, DATA: str(self.paths[own])}
        private = Context(
            context.run_id, context.node_id, node_config, RecordDict(), context.run_config
        )
        return answer(self.app, message, private)

    def _merged(self, message: Message, context: Context, asked: MergeRequest) -> Message:
        if wrong := [own for _, own in asked.clients if not 0 <= own < len(self.paths)]:
            raise ValueError(f"the edge has {len(self.paths)} devices, none is {wrong[0]}.")
        if context.run_id not in self._states:
            while len(self._states) >= _RUNS:
                self._states.pop(next(iter(self._states)))
        states = self._states.setdefault(context.run_id, {})
        paths = {number: self.paths[own] for number, own in asked.clients}
        app: Any = _OnFolders(self.app, paths, self.name, self.stopped)
        worker = Worker(app, max(paths) + 1, context.run_config, "off")
        contents = [pack(_without_request(message.content))]
        jobs = {
            place: ClientJob(
                _addressed(message.metadata, number), 0, states.get(number + FIRST_NODE_ID)
            )
            for place, (number, _) in zip(range(*asked.span), asked.clients, strict=True)
        }
        outcome = worker.merge(contents, jobs, asked.whole, asked.reading, 1)
        states |= outcome.states
        return Message(content_of_sums(outcome.merged), reply_to=message)


OWN_POSITION = "own-position"
"""Setting: which of an edge's devices a message is for, from 0."""


class _OnFolders:
    """``app`` on the data of the device that a context belongs to."""

    def __init__(
        self,
        app: ClientApp,
        paths: Mapping[int, Path],
        name: str,
        stopped: Callable[[], bool],
    ) -> None:
        self.app, self.paths, self.name, self.stopped = app, paths, name, stopped

    def __call__(self, message: Message, context: Context) -> Message:
        if self.stopped():
            raise RuntimeError("the edge was stopped.")
        path = self.paths[int(context.node_config[keys.PARTITION_ID])]
        context.node_config = {**context.node_config, DATA: str(path), NAME: self.name}
        return self.app(message, context)


def _without_request(content: RecordDict) -> RecordDict:
    """``content`` for one client, which knows of no sums."""
    own = dict(content)
    for key, record in own.items():
        if isinstance(record, ConfigRecord):
            hidden = (MERGE, CLIENT_NUMBER, OWN_POSITION)
            own[key] = ConfigRecord({k: x for k, x in record.items() if k not in hidden})
    return RecordDict(own)


def _addressed(metadata: Metadata, number: int) -> Metadata:
    """``metadata`` of a message to the client of this number."""
    return Metadata(
        run_id=metadata.run_id,
        message_id=metadata.message_id,
        src_node_id=metadata.src_node_id,
        dst_node_id=number + FIRST_NODE_ID,
        reply_to_message_id="",
        group_id=metadata.group_id,
        created_at=metadata.created_at,
        ttl=metadata.ttl,
        message_type=metadata.message_type,
    )
