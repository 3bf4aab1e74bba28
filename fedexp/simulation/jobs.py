"""What goes to a worker for a share of a cohort, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import Message, Metadata

from fedexp.merged import Sums
from fedexp.simulation.cohort import Failure, Span
from fedexp.simulation.flower.transport import Packed, pack


class Job(NamedTuple):
    """A message to one client.

    Attributes:
        metadata: of the message.
        content: index into the contents that travel beside the jobs.
        state: the node's ``Context.state``, if it has any.
        lost: why the client must not run again; it is answered by an error with this reason.
    """

    metadata: Metadata
    content: int
    state: Packed | None = None
    lost: str = ""


def jobs_of(
    messages: Sequence[Message], states: Mapping[int, Packed]
) -> tuple[list[Packed], dict[int, Job]]:
    """The contents, each once however many messages share it, and a job per message."""
    index: dict[int, int] = {}
    contents: list[Packed] = []
    jobs: dict[int, Job] = {}
    for position, message in enumerate(messages):
        key = id(message.content)
        if key not in index:
            index[key] = len(contents)
            contents.append(pack(message.content))
        state = states.get(message.metadata.dst_node_id)
        jobs[position] = Job(message.metadata, index[key], state)
    return contents, jobs


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a worker sends back for a share.

    Attributes:
        merged: sums by subtree, where the share was to be merged.
        replies: content or failure by position in the cohort, otherwise.
        failures: by position, of replies that could not be merged.
        states: ``Context.state`` by node, of those that have any.
        seconds: by node.
        busy: seconds of the whole share.
    """

    merged: Mapping[Span, Sums] = field(default_factory=dict)
    replies: Mapping[int, Packed | Failure] = field(default_factory=dict)
    failures: Mapping[int, Failure] = field(default_factory=dict)
    states: Mapping[int, Packed] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)
    busy: float = 0.0
