"""FedNova's server half: a mean of updates per local step, for clients that take unequally many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedexp import keys
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Adapted, Extension, Received, RoundInProgress, Sent
from fedexp.strategies.medians import MedianBounds


@dataclass(frozen=True)
class NormalizedAveraging(Extension):
    """Step along ``τ Σ pᵢ Δᵢ/τᵢ`` with ``τ = Σ pᵢτᵢ`` and ``Σ pᵢ = 1``, in place of ``Σ pᵢ Δᵢ``.

    ``τᵢ = ‖aᵢ‖₁`` is the local work of client ``i``: the number of its steps of plain SGD, and less
    where a falling rate or FedProx's term gives a gradient less weight in ``Δᵢ``. So no client
    counts for more because it takes more steps, and the optimum of ``Σ pᵢfᵢ`` is what the rounds
    lead to. Wang et al. 2020, arXiv:2007.07481, eq. 8 to 10.

    Workers add up ``Δᵢ`` with the weights ``pᵢ/τᵢ``. That sum is the step but for one factor, by
    which the updates are lengthened; so a step size that looks at norms sees lengthened updates in
    these weights.

    Attributes:
        bounds: bounds on what clients claim of their work; None to believe them.

    Example:
        A client of one step and one of three count alike for each step, and the mean is two steps:

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Received, RoundInProgress
        >>> from fedexp.strategies.normalized_averaging import NormalizedAveraging
        >>> from fedexp.wire import ReplyFormat
        >>> reading = ReplyFormat("n", True, frozenset("w"), "arrays", divided_by="local-work")
        >>> stats = PseudoGradientStats(2, 4 / 3, {"w": np.array([2.0])})  # 1/1 + 3/3
        >>> metrics = [{"n": 1, "local-work": 1.0}, {"n": 1, "local-work": 3.0}]
        >>> received = Received(RoundInProgress({}, reading), stats, [7, 8], metrics, [0.0, 0.0])
        >>> adapted = NormalizedAveraging().aggregate(received, stats, {})
        >>> adapted.stats.mean_update["w"], adapted.metrics
        (array([2.]), {'effective-local-work': 2.0})
    """

    bounds: MedianBounds | None = None

    def reading(self, state: State) -> Mapping[str, Any]:
        """Sums in the weights ``pᵢ/τᵢ``."""
        return {"divided_by": keys.LOCAL_WORK}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """Ask the clients for ``τᵢ``."""
        return Sent({keys.LOCAL_WORK: True})

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums of lengthened updates, and ``τ``."""
        reading = received.round.reading
        work = [reading.divisor(metrics) for metrics in received.metrics]
        sizes = [w * tau for w, tau in zip(received.weights, work, strict=True)]  # pᵢ
        total = math.fsum(sizes)
        if self.bounds:
            work = self.bounds.bounded(work)
        effective = math.fsum(p * tau for p, tau in zip(sizes, work, strict=True)) / total
        # The step divides by Σ pᵢ/τᵢ, and is to divide by Σ pᵢ.
        factor = effective * stats.weight / total
        return Adapted(
            replace(
                stats,
                update={name: x * factor for name, x in stats.update.items()},
                sq_norm=stats.sq_norm * factor**2,
                norm=stats.norm * factor,
            ),
            {},
            {keys.EFFECTIVE_WORK: effective},
        )
