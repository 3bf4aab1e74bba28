"""A worker's part of a cohort: its clients' results, added up along the merge tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Arrays, first_non_finite, update_norm
from fedexp.merged import ClientSums, Merged
from fedexp.simulation.merge_tree import Span, halves
from fedexp.stats import PseudoGradientStats
from fedexp.wire import BadReply, ClientResult, Kind, ReplyFormat, check_norm

_GROUP_BYTES = 1 << 28  # of trained models that wait to be added together
_MAX_SQ_NORM = 1e200  # of a sum; beyond it, or NaN, its clients are looked at one by one


@dataclass(frozen=True, eq=False)
class WorkerShare:
    """A worker's part of a cohort.

    Attributes:
        run: trains the clients at some positions; their results, in order.
        reading: how results are read.
        before: the model that was broadcast.
    """

    run: Callable[[Span], Sequence[ClientResult]]
    reading: ReplyFormat
    before: Arrays

    def merged(self, span: Span, size: int) -> Merged:
        """The sums over a subtree, holding the models of at most ``size`` clients at a time."""
        if span[1] - span[0] <= size:
            return self._added(self.run(span))
        left, right = halves(span)
        return self.merged(left, size) + self.merged(right, size)

    def _added(self, results: Sequence[ClientResult], *, looked_at: bool = False) -> Merged:
        kinds = dict.fromkeys(result.kind for result in results if result.kind)
        sums = {kind: self._of_kind(kind, results) for kind in kinds}
        # One sum tells whether all clients are finite, without another pass over their models.
        bounded = all(x.stats.sq_norm < _MAX_SQ_NORM for x in sums.values())
        if not (bounded or looked_at):
            return self._added([self._bounded(result) for result in results], looked_at=True)
        failures = tuple((r.node, r.refused) for r in results if r.kind is None)
        return Merged(sums, failures)

    def _of_kind(self, kind: Kind, results: Sequence[ClientResult]) -> ClientSums:
        usable = [result.kind == kind for result in results]
        before = kind.part(self.before)
        # Any other client keeps its place in the tree, with the model itself and weight 0: where
        # the others are added must not depend on it.
        pairs = list(zip(results, usable, strict=True))
        arrays = [result.arrays if is_one else before for result, is_one in pairs]
        norms = [self.reading.norm(x, before, kind) for x in arrays]
        with np.errstate(over="ignore"):  # it shows in the norm
            stats = PseudoGradientStats.aggregate(
                before,
                arrays,
                weights=[result.weight if is_one else 0.0 for result, is_one in pairs],
                trainable=kind.trainable,
                scales=[self.reading.scale(norm) for norm in norms],
            )
        metrics = tuple((result.node, result.metrics) for result, is_one in pairs if is_one)
        own = tuple(norm for norm, is_one in zip(norms, usable, strict=True) if is_one)
        return ClientSums(stats, metrics, own)

    def _bounded(self, result: ClientResult) -> ClientResult:
        """``result``, refused if the square of its update drowns the sums."""
        if result.kind is None:
            return result
        if name := first_non_finite(result.arrays):
            return result.refuse(f"array {name!r} holds NaN or infinity.")
        try:
            check_norm(update_norm(self.before, result.arrays, result.kind.trainable))
        except BadReply as error:
            return result.refuse(str(error))
        return result


def models_at_once(before: Arrays) -> int:
    """How many models to hold before adding; it changes memory and speed, no bit of the sum."""
    return max(1, _GROUP_BYTES // max(1, sum(x.nbytes for x in before.values())))
