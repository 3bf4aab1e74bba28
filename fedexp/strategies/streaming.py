"""Replies a few at a time, on grids that would collect them all first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedexp import wire
from fedexp.merged import ToMerge

_SLICE = 4  # replies pulled together: what the server holds at once
_PAUSE = 0.5  # seconds between looks when nothing has arrived


def stream(grid: Grid, types: Iterable[str] = (MessageType.TRAIN, MessageType.EVALUATE)) -> Grid:
    """``grid``, with ``send_and_receive`` handing out replies as they arrive.

    Flower's grids return a finished list, so the server holds a model per client. This one pulls
    four at a time, unless the grid streams by itself (attribute ``streams``).

    Args:
        grid: any grid.
        types: of the messages whose replies are read once; of all others they are a list.
    """
    types = frozenset(types)
    if isinstance(grid, Stream):
        return grid if grid.types == types else stream(grid.grid, types)
    return cast(Grid, Stream(grid, types))


class Stream:
    """Everything but ``send_and_receive`` is the wrapped grid's.

    A strategy that is handed one knows that the replies come to it and to no one before it.

    Attributes:
        grid: the wrapped grid.
        types: see ``stream``.
        reading: how a grid that ``merges`` is to merge the replies of the coming train messages;
            None for single replies.
    """

    def __init__(self, grid: Grid, types: frozenset[str]) -> None:
        self.grid, self.types = grid, types
        self.reading: wire.Reading | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push now, pull while the caller iterates; after ``timeout`` silent nodes are given up."""
        messages = list(messages)
        if not messages:
            return []
        kind = messages[0].metadata.message_type.partition(".")[0]
        if kind == MessageType.TRAIN and self.reading is not None:
            messages, self.reading = ToMerge(messages, self.reading), None
        if getattr(self.grid, "streams", False):
            replies = self.grid.send_and_receive(messages, timeout=timeout)
        else:
            pending = [i for i in self.grid.push_messages(messages) if i]
            end = time.monotonic() + timeout if timeout is not None else float("inf")
            replies = self._pull(pending, end)
        return replies if kind in self.types else list(replies)

    def _pull(self, pending: list[str], end: float) -> Iterator[Message]:
        while pending and time.monotonic() < end:
            arrived: set[str] = set()
            for start in range(0, len(pending), _SLICE):
                for reply in self.grid.pull_messages(pending[start : start + _SLICE]):
                    arrived.add(reply.metadata.reply_to_message_id)
                    yield reply
            pending = [message_id for message_id in pending if message_id not in arrived]
            if pending and not arrived:
                time.sleep(_PAUSE)


Grid.register(Stream)
