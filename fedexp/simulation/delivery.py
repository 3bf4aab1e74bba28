"""What every grid of Flower's does: keep messages in order, wait, and answer for missing ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from flwr.app import Error, Message, Metadata

from fedexp.simulation.flower.messages import message_with

_UNAVAILABLE = 3  # Flower's error code for a message that it does not know, or no longer
_SUPERLINK = 1  # the node in whose name Flower answers then


def turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Divide ``messages`` into as few lists as possible, with no node twice in a list.

    The messages to one node keep their order, since each may read the state that the one before
    has left.
    """
    seen: Counter[int] = Counter()
    lists: list[list[Message]] = []
    for message in messages:
        node = message.metadata.dst_node_id
        if seen[node] == len(lists):
            lists.append([])
        lists[seen[node]].append(message)
        seen[node] += 1
    return lists


def patience(messages: Sequence[Message], timeout: float | None) -> float:
    """How many seconds to wait for a client: ``timeout``, but not longer than a message lives."""
    lifetime = min(message.metadata.ttl for message in messages)
    return lifetime if timeout is None else min(timeout, lifetime)


def unavailable(message_id: str, run_id: int) -> Message:
    """The error that Flower's grids answer for an id they do not know, or have answered already."""
    metadata = Metadata(
        run_id=run_id,
        message_id=f"no-{message_id}",
        src_node_id=_SUPERLINK,
        dst_node_id=_SUPERLINK,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type="system",
    )
    error = Error(_UNAVAILABLE, "no reply to a message of this id is there to be pulled")
    return message_with(metadata, error)
