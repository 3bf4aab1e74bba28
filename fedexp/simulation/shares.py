"""Who runs what: neighbours of a cohort, divided so that all workers end together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from fedexp.simulation.merge_tree import Span, halves

_SLACK = 0.1  # of an even share


class Costs:
    """How long each node takes, as far as it is known.

    Only doublings count: the noise of a measurement must not unbalance an even cohort.
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
        ratios = [self._seconds.get(node, median) / median for node in nodes]
        return [float(2 ** np.rint(np.log2(max(ratio, 1e-6)))) for ratio in ratios]


def shares(costs: Sequence[float], num_workers: int, units: Sequence[Span] = ()) -> list[Span]:
    """Divide positions into a run of neighbours per worker, of about the same cost.

    Args:
        costs: of each position.
        num_workers: how many shares at most; empty ones are left out.
        units: of a cohort to be merged, runs that stay whole; single positions by default. Then a
            share may cost a tenth more than another if it is made of fewer subtrees: each of them
            is a sum of the size of the model that has to travel.
    """
    whole = 0, len(costs)
    slack = _SLACK if units else 0.0
    ends = [hi for _, hi in units] or range(1, len(costs) + 1)
    before = np.cumsum(costs)[np.array(ends) - 1]  # cost up to each end
    even = before[-1] / num_workers
    borders = {0, len(costs)}
    for k in range(1, num_workers):
        off = np.abs(before - k * even)
        near = np.flatnonzero(off <= max(off.min(), slack * even))
        best = min(near, key=lambda i: (_depth(ends[i], whole) if units else 0, off[i]))
        borders.add(ends[best])
    return list(pairwise(sorted(borders)))


def _depth(border: int, span: Span) -> int:
    """How far down the cohort's tree ``span`` is divided there."""
    depth = 0
    while border not in span:
        left, right = halves(span)
        span, depth = (left if border < left[1] else right), depth + 1
    return depth


def chunks(span: Span, size: int) -> list[Span]:
    """Runs of at most ``size`` positions that make up ``span``."""
    return [(lo, min(lo + size, span[1])) for lo in range(span[0], span[1], size)]
