"""A cohort's replies merged into one, the same to the last bit however the work is spread.

The clients of a round are the leaves of a binary tree that halves the cohort again and again.
Sums follow this tree and nothing else, so a worker that runs any subtree returns the one value
that every other division of labour gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedexp.arrays import Arrays, first_non_finite
from fedexp.records import from_record, records_of
from fedexp.simulation.grid import RAISED
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


Failure = tuple[int, str]
"""Code and reason of an error reply."""


@dataclass(frozen=True, eq=False)
class Row:
    """What one client of a cohort returned.

    Attributes:
        position: in the cohort.
        node: id of the client's node.
        arrays: its model; None if it is of no use.
        weight: ``pᵢ``.
        metrics: as the client reported them.
        failure: why it is of no use.
    """

    position: int
    node: int
    arrays: Arrays | None = None
    weight: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None

    def failed(self, reason: str) -> Row:
        """The same client, of no use."""
        return Row(self.position, self.node, failure=(RAISED, reason))


def row_of(position: int, reply: Message, reading: Reading, before: Arrays) -> Row:
    """The row of a client's reply."""
    row = Row(position, reply.metadata.src_node_id)
    if reply.has_error():
        return replace(row, failure=(reply.error.code, reply.error.reason or ""))
    try:
        arrays, weight = reading.read(reply.content, before, look_at_updates=False)
    except BadReply as error:
        return row.failed(str(error))
    (metrics,) = records_of(reply.content, MetricRecord).values()
    return replace(row, arrays=arrays, weight=weight, metrics=dict(metrics))


@dataclass(eq=False)
class Share:
    """A worker's part of a cohort.

    Attributes:
        run: trains the clients at some positions, in order.
        reading: how replies are read.
        before: the model that was broadcast.
        failures: by position, of clients that are left out.
    """

    run: Callable[[Span], Sequence[Row]]
    reading: Reading
    before: Arrays
    failures: dict[int, Failure] = field(default_factory=dict)

    def merged(self, span: Span, size: int) -> Merged:
        """The sum over a subtree, folding at most ``size`` clients at a time."""
        if span[1] - span[0] <= size:
            return self._folded(self.run(span))
        left, right = halves(span)
        return self.merged(left, size) + self.merged(right, size)

    def _folded(self, rows: Sequence[Row], *, looked_at: bool = False) -> Merged:
        # A client that is left out keeps its place in the tree, with the model and weight 0.
        arrays = [self.before if row.arrays is None else row.arrays for row in rows]
        norms = [self.reading.norm(x, self.before) for x in arrays]
        stats = PseudoGradientStats.fold(
            self.before,
            arrays,
            weights=[row.weight for row in rows],
            trainable=self.reading.trainable,
            scales=[self.reading.scale(norm) for norm in norms],
        )
        if not (math.isfinite(stats.sq_norm) or looked_at):
            return self._folded([self._finite(row) for row in rows], looked_at=True)
        self.failures |= {row.position: row.failure for row in rows if row.failure}
        usable = [(row, norm) for row, norm in zip(rows, norms, strict=True) if not row.failure]
        return Merged(
            stats,
            tuple((row.node, row.metrics) for row, _ in usable),
            tuple(norm for _, norm in usable),
        )

    def _finite(self, row: Row) -> Row:
        """``row``, or nothing in its place if the square of its update is not finite."""
        if row.arrays is None or math.isfinite(
            update_norm(self.before, row.arrays, self.reading.trainable)
        ):
            return row
        name = first_non_finite(row.arrays)
        return row.failed(
            f"array {name!r} holds NaN or infinity." if name else "its norm overflows."
        )


def group_size(before: Arrays) -> int:
    """How many models to hold before folding; it changes memory and speed, no bit of the sum."""
    return max(1, _GROUP_BYTES // max(1, sum(x.nbytes for x in before.values())))


def broadcast_of(content: RecordDict, reading: Reading) -> Arrays:
    """The model in a message of this content."""
    return from_record(records_of(content, ArrayRecord)[reading.arrays_key])


def replies(
    messages: Sequence[Message], merged: Merged, failures: Mapping[int, Failure]
) -> Iterator[Message]:
    """The errors in cohort order, then one reply for all usable clients if there is any."""
    for position in sorted(failures):
        yield Message(Error(*failures[position]), reply_to=messages[position])
    if merged.stats.count:
        yield Message(merged.to_content(), reply_to=messages[0])
