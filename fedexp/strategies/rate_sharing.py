"""Learning rates that clients tune, on the server: their spread, and their mean sent back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import (
    Adapted,
    Extension,
    Received,
    RoundInProgress,
    Sent,
    run_number,
)
from fedexp.strategies.medians import MedianBounds


def spread(rates: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Weighted mean and standard deviation, in any order the same bits; equal rates give 0.

    ``x̄ = Σpᵢxᵢ/Σpᵢ``, ``s² = Σpᵢ(xᵢ - x̄)²/Σpᵢ``.

    Example:
        >>> from fedexp.strategies.rate_sharing import spread
        >>> spread([0.25, 0.75], [1.0, 1.0])
        (0.5, 0.25)
    """
    # fsum is exact, so that the order of replies changes no bit; and as sums of distances from the
    # smallest, equal rates have a spread of exactly 0.
    total = math.fsum(weights)
    low = min(rates)
    above = math.fsum(p * (x - low) for p, x in zip(weights, rates, strict=True)) / total
    square = math.fsum(p * (x - low - above) ** 2 for p, x in zip(weights, rates, strict=True))
    return low + above, math.sqrt(square / total)


def cohort_rates(
    metrics: Sequence[Mapping[str, Any]], weighted_by: str, within: float = math.inf
) -> tuple[float, float] | None:
    """Mean and spread of the cohort's learning rates; None unless a client reports one.

    A rate that is not finite and positive does not count; one that differs from the median by
    more than the factor ``within`` counts as if it differed by that.
    """
    metrics = [
        m
        for m in metrics
        if isinstance(m.get(keys.LEARNING_RATE), float) and 0 < m[keys.LEARNING_RATE] < math.inf
    ]
    weights = [float(m[weighted_by]) for m in metrics]
    if not sum(weights) > 0:
        return None
    rates = [m[keys.LEARNING_RATE] for m in metrics]
    if within < math.inf:
        middle = float(np.median(rates))
        rates = [min(max(rate, middle / within), middle * within) for rate in rates]
    return spread(rates, weights)


@dataclass(frozen=True)
class RateSharing(Extension):
    """Report how the clients' learning rates spread; send their mean back where it is asked for.

    The clients' setting ``hyper-between-rounds`` asks: with ``average`` they start the next round
    at the mean, with ``carry`` at their own last rate, for which they need to know the number of
    the run. Metric: ``learning-rate-std``, if any client reports a ``learning-rate``.

    Attributes:
        bounds: how far from the median a rate or a weight counts; None for any distance.

    Example:
        >>> import numpy as np
        >>> from fedexp.strategies import RoundInProgress
        >>> from fedexp.strategies.rate_sharing import RateSharing
        >>> asked = RoundInProgress({}, None, settings={"hyper-between-rounds": "average"})
        >>> mean = {"mean-learning-rate": {"value": np.asarray(0.25)}}
        >>> RateSharing().send(asked, mean).settings
        {'mean-learning-rate': 0.25}
    """

    keeps_mean = True
    needs_updates = False

    bounds: MedianBounds | None = None

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """The mean of the last round, or the run's number."""
        policy = round_.settings.get(keys.BETWEEN_ROUNDS)
        if policy == "carry":
            return run_number(state)
        known = policy == "average" and keys.MEAN_LEARNING_RATE in state
        return Sent(
            {keys.MEAN_LEARNING_RATE: float(state[keys.MEAN_LEARNING_RATE]["value"])}
            if known
            else {}
        )

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums as they are; the mean for the next round, and the spread."""
        if not any(keys.LEARNING_RATE in metrics for metrics in received.metrics):
            return Adapted(stats)
        weights, within, key = received.claims, math.inf, received.round.reading.weighted_by
        if self.bounds:
            weights, within = self.bounds.bounded(weights), self.bounds.weight
        rows = [
            {keys.LEARNING_RATE: metrics.get(keys.LEARNING_RATE), key: weight}
            for metrics, weight in zip(received.metrics, weights, strict=True)
        ]
        found = cohort_rates(rows, key, within)
        if found is None:
            return Adapted(stats)
        averages = received.round.settings.get(keys.BETWEEN_ROUNDS) == "average"
        entries: State = (
            {keys.MEAN_LEARNING_RATE: {"value": np.asarray(found[0])}} if averages else {}
        )
        return Adapted(stats, entries, {keys.LEARNING_RATE_STD: found[1]})
