"""Bounds on what one client can do to a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State


class Clip(Protocol):
    """A bound ``C`` on the norm of an update; ``Δᵢ`` counts as ``min(1, C/‖Δᵢ‖) Δᵢ``."""

    def bound(self, state: State) -> float:
        """``C`` of the coming round."""
        ...

    def adapt(self, stats: PseudoGradientStats, state: State) -> State:
        """The state after a round of ``stats``."""
        ...


@dataclass(frozen=True)
class FixedClip:
    """The same bound every round: ``sᵢ = min(1, C/‖Δᵢ‖)``.

    Attributes:
        max_norm: ``C > 0``, in parameter units.
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"FixedClip(max_norm={self.max_norm}): must be > 0. Use clip=None.")

    def bound(self, state: State) -> float:
        """``max_norm``."""
        return self.max_norm

    def adapt(self, stats: PseudoGradientStats, state: State) -> State:
        """``state`` as it is."""
        return state


@dataclass(frozen=True)
class QuantileClip:
    """A bound that follows a quantile of the norms: ``C ← C exp(-κ (b - q))``.

    ``b`` is the share of the round's clients with ``‖Δᵢ‖ ≤ C``. Andrew, Thakkar, McMahan &
    Ramaswamy 2021, arXiv:1905.03871, without noise on ``b``.

    Attributes:
        initial: ``C`` of round 1, > 0, in parameter units.
        quantile: ``q``, in [0, 1]; 0.5 follows the median.
        rate: ``κ > 0``; ``C`` changes by at most a factor ``exp(κ)`` a round.
    """

    initial: float = 0.1
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        if not self.initial > 0:
            raise ValueError(f"QuantileClip(initial={self.initial}): must be > 0. Use 0.1.")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"QuantileClip(quantile={self.quantile}): must be in [0, 1]. Use 0.5.")
        if not self.rate > 0:
            raise ValueError(f"QuantileClip(rate={self.rate}): must be > 0. Use FixedClip.")

    def bound(self, state: State) -> float:
        """``C`` of the coming round."""
        return float(state["clip"]["max-norm"]) if "clip" in state else self.initial

    def adapt(self, stats: PseudoGradientStats, state: State) -> State:
        """The state with the next ``C``."""
        within = 1 - stats.num_clipped / stats.count
        bound = self.bound(state) * math.exp(-self.rate * (within - self.quantile))
        return state | {"clip": {"max-norm": np.asarray(bound)}}


def outliers(norms: Sequence[float], k: float) -> list[bool]:
    """Which of ``norms`` are beyond ``k`` times their median."""
    limit = k * float(np.median(norms)) if norms else 0.0
    return [norm > limit for norm in norms]
