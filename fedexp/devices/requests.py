"""Messages to devices, and their replies as these come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedexp.simulation.merge_tree import Span
from fedexp.strategies.streaming import GRACE, guard_for

_PAUSE = 0.2  # seconds between looks for replies
_LONGEST_REASON = 500  # characters that are kept of what a device says


@dataclass(frozen=True)
class Request:
    """A message that is sent, and the places in the cohort that its reply is for."""

    message: Message
    places: Span
    is_edge: bool


def arrivals(
    grid: Grid, requests: Sequence[Request], timeout: float | None, enough: int = 0
) -> Iterator[tuple[Request, Message]]:
    """Each request with its reply, as they come; those that do not come in time are missing.

    So many sound replies as ``enough`` end it; 0: all.
    """
    if timeout is not None:
        for request in requests:  # so that a slow device skips to the newest round
            request.message.metadata.ttl = min(request.message.metadata.ttl, timeout + GRACE)
    messages = [request.message for request in requests]
    guard, ids = guard_for(messages), grid.push_messages(messages)
    pending = dict(zip(ids, requests, strict=True))
    end = time.monotonic() + timeout if timeout is not None else float("inf")
    enough, num_sound = enough or len(requests), 0
    while pending and num_sound < enough and time.monotonic() < end:
        arrived = guard.pull(grid, list(pending))
        for reply in arrived:
            if (message_id := reply.metadata.reply_to_message_id) in pending:
                num_sound += not reply.has_error()
                yield pending.pop(message_id), reply
        if pending and not arrived:
            time.sleep(_PAUSE)


def reply_to_asked(asked: Message, reply: Message) -> Message:
    """``reply`` of a node as that of the client that was asked."""
    if reply.has_error():
        error = Error(reply.error.code, printable(reply.error.reason))
        return Message(error, reply_to=asked)
    return Message(reply.content, reply_to=asked)


def printable(reason: str | None) -> str:
    """What a device says went wrong, as one line: it may say anything, at any length."""
    text = " ".join((reason or "")[:_LONGEST_REASON].split())
    return "".join(x if x.isprintable() else "?" for x in text)
