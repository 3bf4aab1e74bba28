"""What goes to a worker for its share of a cohort, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import Error, Message, Metadata

from fedexp.merged import Merged
from fedexp.simulation.merge_tree import Span
from fedexp.simulation.transport import Packed, pack, unpack


class ClientJob(NamedTuple):
    """A message to one client.

    Attributes:
        metadata: of the message.
        content: index into the contents that travel beside the jobs.
        state: the node's ``Context.state``, if it has any.
        given_up: why the client must not run again; an error with this reason answers for it.
    """

    metadata: Metadata
    content: int
    state: Packed | None = None
    given_up: str = ""


def jobs_of(
    messages: Sequence[Message], states: Mapping[int, Packed]
) -> tuple[list[Packed], dict[int, ClientJob]]:
    """The contents, each once however many messages share it, and a job per message."""
    index: dict[int, int] = {}
    contents: list[Packed] = []
    jobs: dict[int, ClientJob] = {}
    for position, message in enumerate(messages):
        key = id(message.content)
        if key not in index:
            index[key] = len(contents)
            contents.append(pack(message.content))
        state = states.get(message.metadata.dst_node_id)
        jobs[position] = ClientJob(message.metadata, index[key], state)
    return contents, jobs


ErrorReply = tuple[int, str]
"""Flower's error code and the reason, in place of a reply."""


@dataclass(frozen=True, eq=False)
class ShareOutcome:
    """What a worker sends back for its share of a cohort.

    Attributes:
        merged: sums by subtree, where results were to be added up.
        replies: content or error by position in the cohort, otherwise.
        states: ``Context.state`` by node, of those that have any.
        seconds: by node.
        busy: seconds of the whole share.
    """

    merged: Mapping[Span, Merged] = field(default_factory=dict)
    replies: Mapping[int, Packed | ErrorReply] = field(default_factory=dict)
    states: Mapping[int, Packed] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)
    busy: float = 0.0


def reply_of(request: Message, reply: Packed | ErrorReply) -> Message:
    """What a worker sent back for ``request`` as a message to the server."""
    if isinstance(reply, tuple):
        return Message(Error(*reply), reply_to=request)
    return Message(unpack(reply), reply_to=request)
