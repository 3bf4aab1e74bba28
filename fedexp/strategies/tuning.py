"""The server's side of learning rates that clients tune: their spread, and their mean sent back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedexp.strategies.directions import State

RATE = "learning-rate"
"""Metric of a client: the learning rate that it ended at."""

BETWEEN = "hyper-between-rounds"
"""Setting: ``fresh``, ``carry`` or ``average``."""

MEAN = "mean-learning-rate"
"""Setting that brings the cohort's mean back to the clients; the state's entry for it."""


def spread(rates: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Weighted mean and standard deviation, in any order the same bits; equal rates give 0.

    ``x̄ = Σpᵢxᵢ/Σpᵢ``, ``s² = Σpᵢ(xᵢ - x̄)²/Σpᵢ``.
    """
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
    metrics = [m for m in metrics if isinstance(m.get(RATE), float) and 0 < m[RATE] < math.inf]
    weights = [float(m[weighted_by]) for m in metrics]
    if not sum(weights) > 0:
        return None
    rates = [m[RATE] for m in metrics]
    if within < math.inf:
        middle = float(np.median(rates))
        rates = [min(max(rate, middle / within), middle * within) for rate in rates]
    return spread(rates, weights)


def next_config(policy: Any, state: State) -> dict[str, float]:
    """What the clients of the next round need to know of the last; nothing in round 1."""
    return {MEAN: float(state[MEAN]["value"])} if policy == "average" and MEAN in state else {}


def remembered(mean: float) -> State:
    """The state's entry for a cohort's mean."""
    return {MEAN: {"value": np.asarray(mean)}}
