"""A cohort's replies merged into one, the same to the last bit however the work is spread.

The clients of a round are the leaves of a binary tree that halves the cohort again and again.
Sums follow this tree and nothing else, so a worker that runs any subtree returns the one value
that every other division of labour gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord

from fedexp.arrays import Arrays, first_non_finite
from fedexp.records import from_record, records_of
from fedexp.simulation.grid import error_reply
from fedexp.stats import PseudoGradientStats, update_norm
from fedexp.wire import BadReply, Merged, Reading

_GROUP_BYTES = 1 << 28  # of trained models that wait to be folded together

Span = tuple[int, int]
"""Positions ``lo`` to ``hi - 1`` of a cohort."""


def subtrees(span: Span, within: Span) -> list[Span]:
    """The fewest subtrees of the tree over ``within`` that make up ``span``, in order."""
    lo, hi = max(span[0], within[0]), min(span[1], within[1])
    if lo >= hi:
        return []
    if (lo, hi) == within:
        return [within]
    return [found for half in halves(within) for found in subtrees(span, half)]


def halves(span: Span) -> tuple[Span, Span]:
    """The two children of a subtree of at least two leaves."""
    middle = span[0] + (span[1] - span[0]) // 2
    return (span[0], middle), (middle, span[1])


def units(span: Span, size: int) -> list[Span]:
    """The largest subtrees of at most ``size`` leaves, in order."""
    if span[1] - span[0] <= size:
        return [span]
    return [unit for half in halves(span) for unit in units(half, size)]


def combine(span: Span, parts: Mapping[Span, Merged]) -> Merged:
    """The sum over ``span`` from the sums of subtrees that make it up."""
    if span in parts:
        return parts[span]
    left, right = halves(span)
    return combine(left, parts) + combine(right, parts)


@dataclass(frozen=True, eq=False)
class _Row:
    """What a client returned; the model itself, with weight 0, if that cannot be used."""

    message: Message
    arrays: Arrays
    weight: float
    metrics: tuple[int, Mapping[str, Any]] | None


@dataclass(eq=False)
class Share:
    """A worker's part of a cohort.

    Attributes:
        run: the messages at some positions to their replies.
        reading: how replies are read.
        before: the model that was broadcast.
        errors: replies that could not be used, as error replies.
    """

    run: Callable[[Span], Sequence[tuple[Message, Message]]]
    reading: Reading
    before: Arrays
    errors: list[Message] = field(default_factory=list)

    def merged(self, span: Span, size: int) -> Merged:
        """The sum over a subtree, folding at most ``size`` clients at a time."""
        if span[1] - span[0] <= size:
            return self._folded([self._row(*pair) for pair in self.run(span)])
        left, right = halves(span)
        return self.merged(left, size) + self.merged(right, size)

    def _folded(self, rows: Sequence[_Row], *, looked_at: bool = False) -> Merged:
        stats = PseudoGradientStats.fold(
            self.before,
            [row.arrays for row in rows],
            weights=[row.weight for row in rows],
            trainable=self.reading.trainable,
            scales=[self.reading.scale(row.arrays, self.before) for row in rows],
        )
        if not (math.isfinite(stats.sq_norm) or looked_at):
            return self._folded([self._finite(row) for row in rows], looked_at=True)
        return Merged(stats, tuple(row.metrics for row in rows if row.metrics is not None))

    def _row(self, message: Message, reply: Message) -> _Row:
        if reply.has_error():
            return self._left_out(message, reply)
        try:
            arrays, weight = self.reading.read(reply.content, self.before, look_at_updates=False)
        except BadReply as error:
            return self._left_out(message, error_reply(message, str(error)))
        (metrics,) = records_of(reply.content, MetricRecord).values()
        return _Row(message, arrays, weight, (message.metadata.dst_node_id, dict(metrics)))

    def _finite(self, row: _Row) -> _Row:
        """``row``, or nothing in its place if the square of its update is not finite."""
        if not row.weight or math.isfinite(
            update_norm(self.before, row.arrays, self.reading.trainable)
        ):
            return row
        name = first_non_finite(row.arrays)
        reason = f"array {name!r} holds NaN or infinity." if name else "its norm overflows."
        return self._left_out(row.message, error_reply(row.message, reason))

    def _left_out(self, message: Message, error: Message) -> _Row:
        self.errors.append(error)
        return _Row(message, self.before, 0.0, None)


def group_size(before: Arrays) -> int:
    """How many models to hold before folding; it changes memory and speed, no bit of the sum."""
    return max(1, _GROUP_BYTES // max(1, sum(x.nbytes for x in before.values())))


def broadcast_of(message: Message, reading: Reading) -> Arrays:
    """The model in a message."""
    return from_record(records_of(message.content, ArrayRecord)[reading.arrays_key])


def replies(first: Message, merged: Merged, errors: Sequence[Message]) -> Iterator[Message]:
    """The errors, then one reply for all usable clients if there is any."""
    yield from errors
    if merged.stats.count:
        yield Message(merged.to_content(), reply_to=first)
