"""Flower's Grid without Flower's processes."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from threading import RLock
from typing import Any, Self

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp

from fedexp import keys
from fedexp.merged import Merged, MergingGrid, OrderedGrid
from fedexp.simulation.conditions import APPLIED, Conditions, Fate
from fedexp.simulation.delivery import patience, turns, unavailable
from fedexp.simulation.flower import messages as flower
from fedexp.simulation.flower.contents import content_of
from fedexp.simulation.flower.lazy_arrays import ndarray_of
from fedexp.simulation.flower.unencoded import unencoded
from fedexp.simulation.guard import ClientRaised, guarded
from fedexp.simulation.transport import Packed
from fedexp.wire import ReplyFormat, reason_of

FIRST_NODE_ID = 2  # 0 and 1 are Flower's own
RAISED = 2  # Flower's error code for a ClientApp that raised
RUN_ID = 1
_VECTORIZE = ("auto", "on", "off")


class LocalGrid(OrderedGrid, MergingGrid):
    """A Grid whose nodes are virtual: node ``p + 2`` is the client of partition ``p``.

    Registering a node costs nothing; a node is its id until a message comes. ``Context.state`` of
    a node is kept between messages.

    Args:
        client_app: what the nodes run.
        num_nodes: how many there are.
        run_config: ``context.run_config`` of every node.

    Raises:
        ValueError: no nodes, or a run config that an app of ours cannot take.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, *, run_config: Mapping[str, Any] | None = None
    ) -> None:
        if num_nodes < 1:
            raise ValueError(f"{type(self).__name__}(num_nodes={num_nodes}): must be at least 1.")
        if check := getattr(getattr(client_app, "trainer", None), "check", None):
            check(run_config or {})  # an app of ours knows its settings
        flower.identify(RUN_ID)
        self.client_app = client_app
        self.num_nodes = num_nodes
        self.run_config = dict(run_config or {})
        self.conditions = Conditions.of(self.run_config)
        self.states: dict[int, Packed] = {}  # Context.state by node, of nodes that have any
        self.busy = 0.0
        self._run = flower.empty_run(RUN_ID)
        self._ids = (f"message-{i}" for i in itertools.count(1))
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + num_nodes)
        self.begin_round(0)
        self._replies: dict[str, Message] = {}  # to be pulled, by the message they answer
        self._lock = RLock()  # Flower's older API sends from many threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the grid holds."""

    def forget(self) -> None:
        """Drop what nodes keep in ``Context.state``, for another run on the same grid."""
        self.states.clear()

    @abstractmethod
    def _execute(self, messages: list[Message], timeout: float) -> Iterator[Message]:
        """Run ``messages``, at least one, on their nodes; yield a reply to each, in any order."""

    @abstractmethod
    def _merge(self, messages: list[Message], reading: ReplyFormat, timeout: float) -> Merged:
        """Run ``messages``, at least one, on their nodes; the results, added up."""

    def set_run(self, run: flower.Run) -> None:
        """Set the run.

        Raises:
            TypeError: it is none, as Flower's grids have it.
        """
        self._run = flower.check_run(run)

    @property
    def run(self) -> flower.Run:
        """A copy of the run."""
        return flower.copy_of(self._run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of the nodes that are there, in partition order."""
        return list(self._there)

    def begin_round(self, server_round: int) -> None:
        """Let the nodes be there that the clients' profiles let be there in this round."""
        conditions = self.conditions
        if server_round and conditions and conditions.profiles.availability:
            present = conditions.profiles.present(conditions.seed, server_round, self.num_nodes)
            self._there: Sequence[int] = [client + FIRST_NODE_ID for client in present]
        else:
            self._there = self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the messages; their replies wait to be pulled."""
        sent = [self._numbered(message) for message in messages]
        for reply in self._answers(sent, None):
            with self._lock:
                self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages, each once; an error for one that is not there."""
        with self._lock:
            return [
                self._replies.pop(i) if i in self._replies else unavailable(i, RUN_ID)
                for i in dict.fromkeys(message_ids)
            ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the messages; a client that takes longer than ``timeout`` seconds is an error.

        Clients queued behind it get a fresh timeout. Without ``timeout`` it is the messages' time
        to live. All replies are there when this returns, as with Flower's grids.
        """
        return list(self.send_and_stream(messages, timeout))

    def send_and_stream(
        self, messages: Iterable[Message], timeout: float | None
    ) -> Iterator[Message]:
        """As ``send_and_receive``, handing over each reply as it comes."""
        return self._answers([self._numbered(message) for message in messages], timeout)

    def send_and_merge(
        self, messages: Iterable[Message], reading: ReplyFormat, timeout: float | None
    ) -> Merged:
        """Let the nodes train, and add their results up where they are made.

        Raises:
            ValueError: two messages to one node.
        """
        sent = [self._numbered(message) for message in messages]
        if len({message.metadata.dst_node_id for message in sent}) < len(sent):
            raise ValueError(
                f"{type(self).__name__}.send_and_merge: two messages to one node. Send one, or use "
                "send_and_receive."
            )
        return self._merge(sent, reading, patience(sent, timeout)) if sent else Merged()

    def _answers(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        """The replies; of several messages to one node each runs after the one before."""
        for turn in turns(sent):
            yield from map(self._signed, self._execute(turn, patience(turn, timeout)))

    def _numbered(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._nodes:
            raise ValueError(
                f"message to node {node}: this grid's nodes are {FIRST_NODE_ID} to "
                f"{FIRST_NODE_ID + self.num_nodes - 1}."
            )
        return self._signed(message)

    def _signed(self, message: Message) -> Message:
        return flower.number(message, next(self._ids))


def check_vectorize(owner: str, mode: str) -> None:
    """Raise ``ValueError`` unless ``mode`` says when groups of clients are trained at once."""
    if mode not in _VECTORIZE:
        raise ValueError(f"{owner}(vectorize={mode!r}): must be one of {', '.join(_VECTORIZE)}.")


def context_of(
    node: int, num_nodes: int, run_config: Mapping[str, Any], state: RecordDict | None
) -> Context:
    """The Context of a node of a ``LocalGrid``."""
    node_config: UserConfig = {
        keys.PARTITION_ID: node - FIRST_NODE_ID,
        keys.NUM_PARTITIONS: num_nodes,
    }
    own = {key: value for key, value in run_config.items() if key not in APPLIED}
    return Context(RUN_ID, node, node_config, state or RecordDict(), own)


def fate_of(conditions: Conditions | None, message: Message) -> Fate:
    """What becomes of the client of a ``LocalGrid`` that gets ``message``."""
    kind = message.metadata.message_type.partition(".")[0]
    if conditions is None or kind != MessageType.TRAIN:
        return Fate()
    return conditions.fate_of(message.content, message.metadata.dst_node_id - FIRST_NODE_ID)


def answer(
    client_app: ClientApp, message: Message, context: Context, fate: Fate | None = None
) -> Message:
    """The client's reply, as its ``fate`` lets it come; what it raises becomes an error reply."""
    fate = fate or Fate()
    # Strategies send one RecordDict to all; a client may change its own.
    own = content_of({key: _copied(record) for key, record in message.content.items()})
    private = flower.message_with(message.metadata, own)
    kept = context.state
    try:
        with guarded(), unencoded():
            fate.begin()
            reply = client_app(private, context)
    except ClientRaised as raised:
        return error_reply(message, reason_of(raised.error))
    finally:
        state, context.state = context.state, kept
    if not isinstance(state, RecordDict):
        return error_reply(message, f"its Context.state is {type(state).__name__}, no RecordDict.")
    context.state = state
    return _signed_by_us(reply, message, fate)


def _copied(record: ArrayRecord | MetricRecord | ConfigRecord) -> Any:
    own = record.copy()
    if isinstance(own, ArrayRecord):
        for name, array in own.items():
            if ndarray_of(array) is None:  # one of Flower's: its attributes can be written to
                own[name] = copy(array)
    return own


def error_reply(message: Message, reason: str) -> Message:
    """The reply in place of one that cannot be had."""
    return Message(Error(RAISED, reason), reply_to=message)


def too_late(timeout: float) -> str:
    """The reason of an error in place of a reply that did not come in time."""
    return f"no reply within {timeout:g} s"


def _signed_by_us(reply: object, message: Message, fate: Fate) -> Message:
    """``reply`` as one to ``message`` from the node that was asked, whatever it says itself."""
    if not isinstance(reply, Message):
        kind = type(reply).__name__
        return error_reply(message, f"the ClientApp returned {kind}, not a Message.")
    if reply.has_error():
        return error_reply(message, str(reply.error.reason or f"error {reply.error.code}"))
    if fate.lost:
        return error_reply(message, fate.lost)
    return Message(fate.reply(reply.content, message.content), reply_to=message)
