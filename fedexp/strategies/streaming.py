"""Replies a few at a time, on grids that would collect them all first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedexp.merged import Merged, MergingGrid, merging
from fedexp.records import num_bytes
from fedexp.strategies.waiting import Waiting
from fedexp.wire import ReplyFormat

if TYPE_CHECKING:
    from fedexp.simulation.flower.uploads import Uploads

_SLICE = 4  # replies pulled together: what the server holds at once
GRACE = 2.0  # seconds that a message outlives its round: else the SuperLink's error comes first
_PAUSE = 0.5  # seconds between looks when nothing has arrived
# A reply may hold so many times the bytes of what was sent: sums of edges are in float64, and
# SCAFFOLD's control variates come twice. The overhead is for names and headers.
_SPARE, _OVERHEAD = 8, 1 << 20


def stream(
    grid: Grid,
    types: Iterable[str] = (MessageType.TRAIN, MessageType.EVALUATE),
    merge_by: Callable[[], ReplyFormat | None] = lambda: None,
    waiting: Waiting | None = None,
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
        waiting: when a round ends before all replies have come.
    """
    inner = grid.grid if isinstance(grid, Stream) else grid
    return cast(Grid, Stream(inner, frozenset(types), merge_by, waiting or Waiting()))


class Stream:
    """Everything but ``send_and_receive`` is the wrapped grid's.

    Attributes:
        grid: the wrapped grid.
        types, merge_by, waiting: see ``stream``.
    """

    def __init__(
        self,
        grid: Grid,
        types: frozenset[str],
        merge_by: Callable[[], ReplyFormat | None],
        waiting: Waiting,
    ) -> None:
        self.grid, self.types, self.merge_by, self.waiting = grid, types, merge_by, waiting

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
        seconds = self.waiting.seconds(timeout)
        timeout = seconds if seconds < float("inf") else None
        if grid := merging(self.grid):
            reading = self.merge_by() if kind == MessageType.TRAIN else None
            if reading is not None:
                return grid.send_and_merge(messages, reading, timeout)
            replies: Iterable[Message] = grid.send_and_stream(messages, timeout)
        elif isinstance(self.grid, MergingGrid):
            replies = self.grid.send_and_receive(messages, timeout=timeout)
        else:
            enough = self.waiting.enough if kind == MessageType.TRAIN else float("inf")
            replies = self._exchange(messages, seconds, enough)
        return replies if kind in self.types else list(replies)

    def _exchange(
        self, messages: list[Message], seconds: float, enough: float
    ) -> Iterator[Message]:
        guard = guard_for(messages)
        if seconds < float("inf"):
            for message in messages:
                # A node that comes back after the deadline is then given the newest message only.
                message.metadata.ttl = seconds + GRACE
        pending = [i for i in self.grid.push_messages(messages) if i]
        return self._pull(pending, time.monotonic() + seconds, enough, guard)

    def _pull(
        self, pending: list[str], end: float, enough: float, guard: Uploads
    ) -> Iterator[Message]:
        sound = 0
        while pending and time.monotonic() < end and sound < enough:
            arrived: set[str] = set()
            for start in range(0, len(pending), _SLICE):
                for reply in guard.pull(self.grid, pending[start : start + _SLICE]):
                    arrived.add(reply.metadata.reply_to_message_id)
                    sound += not reply.has_error()
                    yield reply
                if sound >= enough:
                    return
            left = [message_id for message_id in pending if message_id not in arrived]
            if left and len(left) == len(pending):
                time.sleep(_PAUSE)
            pending = left


def guard_for(messages: Sequence[Message]) -> Uploads:
    """Pulls the replies to ``messages``, and refuses those that are far larger."""
    # Only here does Flower unpack what came over a network. Its grid takes long to import.
    from fedexp.simulation.flower.uploads import Uploads

    contents = {id(message.content): message.content for message in messages}.values()
    return Uploads(_SPARE * max(map(num_bytes, contents), default=0) + _OVERHEAD)


Grid.register(Stream)


def unwrapped(grid: Grid) -> Grid:
    """The grid itself, if ``grid`` is a ``Stream`` around it."""
    return grid.grid if isinstance(grid, Stream) else grid
