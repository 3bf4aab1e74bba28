"""Step sizes that clients learn, on the server: their mean on the log scale, which is sent back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Adapted, Extension, Received, RoundInProgress, Sent
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.medians import MedianBounds, lower_median
from fedexp.strategies.rate_sharing import spread

_LARGEST = 1e15  # of a step size; the smallest is its inverse


def log_mean(
    step_sizes: list[float], weights: list[float], within: float = math.inf
) -> tuple[float, float]:
    """The weighted geometric mean, and the weighted standard deviation of the logarithms.

    ``η̄ = exp(Σ pᵢ log ηᵢ / Σ pᵢ)``. A step size that differs from the (lower) median by more than
    the factor ``within`` counts as if it differed by that. The order changes no bit; equal step
    sizes give exactly their value and 0.

    Example:
        >>> import math
        >>> from fedexp.strategies.step_sharing import log_mean
        >>> mean, spread = log_mean([0.01, 1.0], [1.0, 1.0])
        >>> round(mean, 12), round(spread, 12) == round(math.log(10), 12)
        (0.1, True)
    """
    middle = lower_median(step_sizes)
    step_sizes = [min(max(x, middle / within), middle * within) for x in step_sizes]
    low = min(step_sizes)
    mean, deviation = spread([math.log(x / low) for x in step_sizes], weights)
    return low * math.exp(mean), deviation


@dataclass(frozen=True)
@with_kinds
class StepSharing(Extension):
    """Send the clients' learned step sizes back as one: their weighted mean on the log scale.

    Clients weigh as they do in the model. A step size that is not a number between 1e-15 and 1e15
    does not count, and one that differs from the cohort's median by more than the factor ``within``
    counts as if it differed by that. Unless more than half of the clients of a round report one,
    the mean stays: so no minority sets it in a round in which the others do not tune.

    Metrics: ``learned-step-size``, the mean, in every round from the first in which clients
    reported one; ``learned-step-size-spread``, the standard deviation of the logarithms, in rounds
    in which they did.

    Attributes:
        bounds: of a robust strategy, whose ``weight`` takes the place of ``within``; None if there
            are none.
        within: at least 1.

    Example:
        >>> import numpy as np
        >>> from fedexp.strategies import RoundInProgress
        >>> from fedexp.strategies.step_sharing import StepSharing
        >>> asked = RoundInProgress({}, None)
        >>> StepSharing().send(asked, {"learned-step-size": {"value": np.asarray(0.25)}}).settings
        {'learned-step-size': 0.25}
    """

    keeps_mean = True
    needs_updates = False

    bounds: MedianBounds | None = None
    within: float = 100.0

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """The last mean, if there is one."""
        return Sent(_known(state))

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums as they are; the mean for the next rounds, and the spread."""
        pairs = [
            (float(metrics[keys.LEARNED_STEP_SIZE]), weight)
            for metrics, weight in zip(received.metrics, received.weights, strict=True)
            if _is_sound(metrics.get(keys.LEARNED_STEP_SIZE)) and weight > 0
        ]
        if 2 * len(pairs) <= len(received.metrics):
            return Adapted(stats, {}, _known(state))
        step_sizes, weights = map(list, zip(*pairs, strict=True))
        within = self.bounds.weight if self.bounds else self.within
        mean, deviation = log_mean(step_sizes, weights, within)
        return Adapted(
            stats,
            {keys.LEARNED_STEP_SIZE: {"value": np.asarray(mean)}},
            {keys.LEARNED_STEP_SIZE: mean, keys.LEARNED_STEP_SIZE_SPREAD: deviation},
        )


def _known(state: State) -> dict[str, float]:
    entry = state.get(keys.LEARNED_STEP_SIZE)
    return {keys.LEARNED_STEP_SIZE: float(entry["value"])} if entry else {}


def _is_sound(value: Any) -> bool:
    return isinstance(value, int | float) and 1 / _LARGEST < value < _LARGEST
