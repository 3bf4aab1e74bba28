"""Which worker runs which clients: neighbours of a cohort, so that all workers end together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from fedexp.simulation.merge_tree import Span, halves

_SLACK = 0.1  # of an even run


class Costs:
    """How long each node takes, as far as it is known.

    Costs are powers of two: the noise of a measurement must not unbalance an even cohort.

    Example:
        >>> from fedexp.simulation.division import Costs
        >>> costs = Costs()
        >>> costs.learn({2: 0.1, 3: 0.11, 4: 0.8})
        >>> costs.of([2, 3, 4, 5])
        [1.0, 1.0, 8.0, 1.0]
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, seconds: Mapping[int, float]) -> None:
        """Remember the latest time of each node."""
        self._seconds.update(seconds)

    def of(self, nodes: Sequence[int]) -> list[float]:
        """A cost per node; a node never seen costs what the median node does."""
        known = [self._seconds[node] for node in nodes if node in self._seconds]
        if not known:
            return [1.0] * len(nodes)
        median = float(np.median(known))
        # A power of two of the median's cost; never 0, of which there is no logarithm.
        ratios = [self._seconds.get(node, median) / median for node in nodes]
        return [float(2 ** np.rint(np.log2(max(ratio, 1e-6)))) for ratio in ratios]


def split_work(
    costs: Sequence[float], num_workers: int, subtrees: Sequence[Span] = ()
) -> list[Span]:
    """Divide positions into one run of neighbours per worker, of about the same cost.

    Where replies are merged, a worker sends one sum, as large as the model, for each subtree of
    the cohort's tree that its run is made of. A border high up in the tree makes fewer of them, so
    a run may cost a tenth more than an even one if its border lies higher.

    Args:
        costs: of each position.
        num_workers: how many runs there are at most; fewer where some would be empty.
        subtrees: runs of a cohort to be merged that must stay whole. If empty, nothing is merged
            and every position may be a border.

    Example:
        >>> from fedexp.simulation.division import split_work
        >>> split_work([8, 1, 1, 1, 1, 1, 1, 1, 1], num_workers=2)
        [(0, 1), (1, 9)]
    """
    whole = 0, len(costs)
    slack = _SLACK if subtrees else 0.0
    ends = [hi for _, hi in subtrees] or range(1, len(costs) + 1)
    before = np.cumsum(costs)[np.array(ends) - 1]  # cost up to each end
    even = before[-1] / num_workers
    borders = {0, len(costs)}
    for k in range(1, num_workers):
        off = np.abs(before - k * even)
        near = np.flatnonzero(off <= max(off.min(), slack * even))
        # Of the ends near enough, the highest in the tree; of those, the nearest.
        best = min(near, key=lambda i: (_depth(ends[i], whole) if subtrees else 0, off[i]))
        borders.add(ends[best])
    return list(pairwise(sorted(borders)))


def _depth(border: int, span: Span) -> int:
    """How many times ``span`` is halved until ``border`` is the end of a half."""
    depth = 0
    while border not in span:
        left, right = halves(span)
        span, depth = (left if border < left[1] else right), depth + 1
    return depth


def chunks(span: Span, size: int) -> list[Span]:
    """Runs of at most ``size`` positions that make up ``span``."""
    return [(lo, min(lo + size, span[1])) for lo in range(span[0], span[1], size)]
