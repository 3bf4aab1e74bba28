"""Replies a few at a time, on grids that would collect them all first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedexp.merged import Merged, MergingGrid, merging
from fedexp.wire import ReplyFormat

_SLICE = 4  # replies pulled together: what the server holds at once
_PAUSE = 0.5  # seconds between looks when nothing has arrived


def stream(
    grid: Grid,
    types: Iterable[str] = (MessageType.TRAIN, MessageType.EVALUATE),
    merge_by: Callable[[], ReplyFormat | None] = lambda: None,
) -> Grid:
    """``grid``, with ``send_and_receive`` handing out replies as they arrive.

    Flower's grids return a finished list, so the server holds a model per client. Here they are
    pulled four at a time, unless the grid is a ``MergingGrid``, which has better ways.

    Args:
        grid: any grid.
        types: of the messages whose replies are read once; of all others they are a list.
        merge_by: how replies of train messages are read if the grid may add them up: then
            ``send_and_receive`` returns what ``MergingGrid.send_and_merge`` does. None for
            single replies.
    """
    inner = grid.grid if isinstance(grid, Stream) else grid
    return cast(Grid, Stream(inner, frozenset(types), merge_by))


class Stream:
    """Everything but ``send_and_receive`` is the wrapped grid's.

    Attributes:
        grid: the wrapped grid.
        types, merge_by: see ``stream``.
    """

    def __init__(
        self, grid: Grid, types: frozenset[str], merge_by: Callable[[], ReplyFormat | None]
    ) -> None:
        self.grid, self.types, self.merge_by = grid, types, merge_by

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message] | Merged:
        """Push now, pull while the caller iterates; after ``timeout`` silent nodes are given up."""
        messages = list(messages)
        if not messages:
            return []
        kind = messages[0].metadata.message_type.partition(".")[0]
        if grid := merging(self.grid):
            reading = self.merge_by() if kind == MessageType.TRAIN else None
            if reading is not None:
                return grid.send_and_merge(messages, reading, timeout)
            replies: Iterable[Message] = grid.send_and_stream(messages, timeout)
        elif isinstance(self.grid, MergingGrid):
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


def unwrapped(grid: Grid) -> Grid:
    """The grid itself, if ``grid`` is a ``Stream`` around it."""
    return grid.grid if isinstance(grid, Stream) else grid
