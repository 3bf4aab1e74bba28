"""Who runs what: neighbours of a cohort, divided so that all workers end together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from fedexp.simulation.cohort import Span


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
        units: runs that stay whole; single positions by default.
    """
    units = units or [(p, p + 1) for p in range(len(costs))]
    ends = np.cumsum([sum(costs[slice(*unit)]) for unit in units])
    # A unit goes to the worker in whose even slice of the total its middle lies.
    middles = ends - np.diff(ends, prepend=0) / 2
    owners = np.minimum((middles / ends[-1] * num_workers).astype(int), num_workers - 1)
    firsts = [int(i) for i in np.unique(owners, return_index=True)[1]]
    borders = [units[i][0] for i in firsts] + [units[-1][1]]
    return list(pairwise(borders))


def chunks(span: Span, size: int) -> list[Span]:
    """Runs of at most ``size`` positions that make up ``span``."""
    return [(lo, min(lo + size, span[1])) for lo in range(span[0], span[1], size)]
