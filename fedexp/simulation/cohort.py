"""A cohort's replies merged into one, the same to the last bit however the work is spread.

The clients of a round are the leaves of a binary tree that halves the cohort again and again.
Sums follow this tree and nothing else, so a worker that runs any subtree returns the one value
that every other division of labour gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedexp.arrays import Arrays, first_non_finite, update_norm
from fedexp.merged import Merged, Sums
from fedexp.records import from_record, records_of
from fedexp.simulation.grid import RAISED
from fedexp.stats import PseudoGradientStats
from fedexp.wire import BadReply, Kind, Reading, check_norm

_GROUP_BYTES = 1 << 28  # of trained models that wait to be folded together
_MAX_SQ_NORM = 1e200  # of a sum; beyond it, or NaN, its clients are looked at one by one

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


def combine(span: Span, parts: Mapping[Span, Sums]) -> Sums:
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
        kind: what it adds up with; None if it is of no use.
        metrics: as the client reported them.
        failure: why it is of no use.
    """

    position: int
    node: int
    arrays: Arrays | None = None
    weight: float = 0.0
    kind: Kind | None = None
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
    content = reply.content
    try:
        arrays, weight = reading.read(content, before, look_at_updates=False)
        (metrics,) = records_of(content, MetricRecord).values()
        kind = reading.kind(arrays, metrics, before, reading.buffers(content))
    except BadReply as error:
        return row.failed(str(error))
    return replace(row, arrays=arrays, weight=weight, kind=kind, metrics=dict(metrics))


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

    def merged(self, span: Span, size: int) -> Sums:
        """The sums over a subtree, folding at most ``size`` clients at a time."""
        if span[1] - span[0] <= size:
            return self._folded(self.run(span))
        left, right = halves(span)
        return self.merged(left, size) + self.merged(right, size)

    def _folded(self, rows: Sequence[Row], *, looked_at: bool = False) -> Sums:
        kinds = dict.fromkeys(row.kind for row in rows if row.kind)
        sums = Sums({kind: self._of_kind(kind, rows) for kind in kinds})
        bounded = all(merged.stats.sq_norm < _MAX_SQ_NORM for merged in sums.values())
        if not (bounded or looked_at):
            return self._folded([self._bounded(row) for row in rows], looked_at=True)
        self.failures |= {row.position: row.failure for row in rows if row.failure}
        return sums

    def _of_kind(self, kind: Kind, rows: Sequence[Row]) -> Merged:
        # Any other client keeps its place in the tree, with the model and weight 0.
        rows = [row if row.kind == kind else Row(row.position, row.node) for row in rows]
        before = kind.part(self.before)
        arrays = [before if row.arrays is None else row.arrays for row in rows]
        norms = [self.reading.norm(x, before, kind) for x in arrays]
        with np.errstate(over="ignore"):  # it shows in the norm
            stats = PseudoGradientStats.fold(
                before,
                arrays,
                weights=[row.weight for row in rows],
                trainable=kind.trainable,
                scales=[self.reading.scale(norm) for norm in norms],
            )
        usable = [(row, norm) for row, norm in zip(rows, norms, strict=True) if row.kind]
        metrics = tuple((row.node, row.metrics) for row, _ in usable)
        return Merged(stats, metrics, tuple(norm for _, norm in usable))

    def _bounded(self, row: Row) -> Row:
        """``row``, or nothing in its place if the square of its update drowns the sums."""
        if row.arrays is None or row.kind is None:
            return row
        if name := first_non_finite(row.arrays):
            return row.failed(f"array {name!r} holds NaN or infinity.")
        try:
            check_norm(update_norm(self.before, row.arrays, row.kind.trainable))
        except BadReply as error:
            return row.failed(str(error))
        return row


def group_size(before: Arrays) -> int:
    """How many models to hold before folding; it changes memory and speed, no bit of the sum."""
    return max(1, _GROUP_BYTES // max(1, sum(x.nbytes for x in before.values())))


def broadcast_of(content: RecordDict, reading: Reading) -> Arrays:
    """The model in a message of this content."""
    return from_record(records_of(content, ArrayRecord)[reading.arrays_key])


def replies(
    messages: Sequence[Message], sums: Sums, failures: Mapping[int, Failure]
) -> Iterator[Message]:
    """The errors in cohort order, then one reply for all usable clients of a kind."""
    for position in sorted(failures):
        yield Message(Error(*failures[position]), reply_to=messages[position])
    for merged in sums.values():
        yield Message(merged.to_content(), reply_to=messages[0])
