"""Bounds by running medians: what one client can do to a round, whatever it sends.

The bounds of a round are known before it begins, so that workers apply them and merge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Adapted, Extension, Received, Report
from fedexp.strategies.kinds import with_kinds

_SHORT = 2.0**-100  # shorter than any update that matters; a power of two rounds nothing


@dataclass(frozen=True)
@with_kinds
class MedianBounds(Extension):
    """Bounds ``‖Δᵢ‖ ≤ k m``, ``pᵢ ≤ l n`` and ``η ≤ s``, with running medians ``m`` and ``n``.

    Client ``i`` counts as ``min(1, k m/‖Δᵢ‖) Δᵢ`` with weight ``min(pᵢ, l n)``. For a rule that
    reads ``Σ pᵢ‖Δᵢ‖²``, as FedExP's step does, no ``‖Δᵢ‖`` counts as more than ``c`` times the
    round's own median: clients that send ``v`` and ``-v`` leave the mean as it is, and would raise
    the step. After a round
    ``m ← √(m · clip(median ‖Δᵢ‖, m/k, k m))``, and ``n`` alike by ``pᵢ`` and ``l``, with the lower
    one of two middle values: a cohort changes ``m`` by at most the factor ``√k``. In the first
    round all clients count alike, with ``pᵢ = 1`` and ``m Δᵢ/‖Δᵢ‖``, ``m`` its median norm.

    So a step ``w ← w - η Δ̄`` moves the model by at most ``s k m``. The rule is our own; clipping
    to the median norm of past rounds is common, e.g. Andrew et al. 2021, arXiv:1905.03871.

    Attributes:
        norm: ``k ≥ 1``, the longest update in medians.
        weight: ``l ≥ 1``, the largest weight in medians.
        step_norm: ``c ≥ 1``, the longest update that a step size sees, in medians of the round.
        step: ``s ≥ 1``, the largest server step of a rule that chooses it, where
            ``max_step_size`` does not say otherwise.

    Raises:
        ValueError: an attribute is less than 1.

    Example:
        After a median norm of 2 and a median weight of 10, no update counts as longer than 6:

        >>> import numpy as np
        >>> from fedexp.strategies import MedianBounds
        >>> state = {"medians": {"norm": np.asarray(2.0), "weight": np.asarray(10.0)}}
        >>> MedianBounds(norm=3.0, weight=1.5).reading(state)
        {'max_norm': 6.0, 'max_weight': 15.0}
    """

    norm: float = 3.0
    weight: float = 3.0
    step_norm: float = 1.5
    step: float = 3.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (value := getattr(self, field.name)) >= 1:
                raise ValueError(
                    f"MedianBounds({field.name}={value}): must be >= 1. Use {field.default}."
                )

    def reading(self, state: State) -> Mapping[str, Any]:
        """The bounds of the coming round."""
        if "medians" not in state:
            # No median is known yet. Every update is cut to one tiny length and ``settle`` makes
            # the sums as long as the round's own median: they are sums of Δᵢ/‖Δᵢ‖ either way.
            return {"max_norm": _SHORT, "uniform": True}
        medians = state["medians"]
        return {
            "max_norm": self.norm * float(medians["norm"]),
            "max_weight": self.weight * float(medians["weight"]),
        }

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """See ``settle``."""
        return self.settle(stats, received.reports, state)

    def settle(
        self, stats: PseudoGradientStats, reports: Sequence[Report], state: State
    ) -> Adapted:
        """The statistics as they count, the next medians, and metrics.

        Args:
            stats: of updates and weights within the bounds of ``reading(state)``.
            reports: of every client of the round.
            state: what the last round left, ``{}`` in the first.
        """
        weight = lower_median([report.claim for report in reports])
        middle = norm = lower_median([report.norm for report in reports])
        if "medians" in state:
            old = {name: float(x) for name, x in state["medians"].items()}
            bound = self.norm * old["norm"]
            # Two clients that send v and -v leave the mean as it is, but not the sum of squares
            # from which a rule may choose its step. So there the round's own median bounds them.
            longest = self.step_norm * middle
            short = math.fsum(r.weight * min(r.norm, longest) ** 2 for r in reports)
            stats = replace(stats, sq_norm=min(stats.sq_norm, short))
            norm = _follow(old["norm"], norm, self.norm)
            weight = _follow(old["weight"], weight, self.weight)
        else:
            bound = norm
            stats = _longer(stats, norm / _SHORT)
        metrics = {keys.MAX_UPDATE_NORM: bound, keys.NUM_CLIPPED: stats.num_clipped}
        if norm == 0:  # nobody has moved: the next round is the first one
            return Adapted(stats, {}, metrics)
        medians: State = {"medians": {"norm": np.asarray(norm), "weight": np.asarray(weight)}}
        return Adapted(stats, medians, metrics)

    def bounded(self, weights: Sequence[float]) -> list[float]:
        """``min(pᵢ, l n)`` with ``n`` the median of these very weights."""
        most = self.weight * lower_median(weights)
        return [min(p, most) for p in weights]

    def near(self, values: Sequence[float]) -> list[float]:
        """``values`` between 0 and twice their median (of either sign): for losses."""
        middle = lower_median(values)
        low, high = sorted((0.0, 2 * middle))
        return [min(max(value, low), high) for value in values]


def lower_median(values: Sequence[float]) -> float:
    """The middle one of ``values``, the lower of two: more than half of them can move it."""
    return sorted(values)[(len(values) - 1) // 2]


def _follow(old: float, new: float, k: float) -> float:
    """``√(old · new)``, half way in logarithms, with ``new`` within a factor ``k`` of ``old``."""
    return float((old * min(max(new, old / k), old * k)) ** 0.5)


def _longer(stats: PseudoGradientStats, factor: float) -> PseudoGradientStats:
    """``stats`` of updates that are all ``factor`` times as long."""
    update = {name: np.asarray(x * factor) for name, x in stats.update.items()}
    sq_norm, norm = stats.sq_norm * factor**2, stats.norm * factor
    return replace(stats, update=update, sq_norm=sq_norm, norm=norm)
