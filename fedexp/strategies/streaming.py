"""Replies a few at a time, on grids that would collect them all first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

from flwr.app import Message
from flwr.serverapp import Grid

_SLICE = 4  # replies pulled together: what the server holds at once
_PAUSE = 0.5  # seconds between looks when nothing has arrived


def stream(grid: Grid) -> Grid:
    """``grid``, with ``send_and_receive`` handing out replies as they arrive.

    Flower's grids return a finished list, so the server holds a model per client. This one pulls
    four at a time, unless the grid streams by itself (attribute ``streams``).
    """
    return grid if isinstance(grid, Stream) else cast(Grid, Stream(grid))


class Stream:
    """Everything but ``send_and_receive`` is the wrapped grid's.

    A strategy that is handed one knows that the replies come to it and to no one before it.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push now, pull while the caller iterates; after ``timeout`` silent nodes are given up."""
        if getattr(self._grid, "streams", False):
            return self._grid.send_and_receive(messages, timeout=timeout)
        pending = [i for i in self._grid.push_messages(list(messages)) if i]
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        return self._pull(pending, end)

    def _pull(self, pending: list[str], end: float) -> Iterator[Message]:
        while pending and time.monotonic() < end:
            arrived: set[str] = set()
            for start in range(0, len(pending), _SLICE):
                for reply in self._grid.pull_messages(pending[start : start + _SLICE]):
                    arrived.add(reply.metadata.reply_to_message_id)
                    yield reply
            pending = [message_id for message_id in pending if message_id not in arrived]
            if pending and not arrived:
                time.sleep(_PAUSE)


Grid.register(Stream)
