"""Step sizes that need no geometry, and limits on any of them.

``w ← w - η d`` with ``η = step_size(statistics, d)``. Step sizes are pure, as directions are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedexp.arrays import Float64s
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Direction, State


class StepSize(Protocol):
    """How far to go: ``(statistics, d, state) -> (η, state)``.

    A step size that has meaning for some directions only defines ``check(direction)``, which
    raises ``ValueError`` for the others.
    """

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """Step size for this round's ``stats`` and ``direction``."""
        ...


def check(step_size: StepSize, direction: Direction) -> None:
    """Raise ``ValueError`` if ``step_size`` has no meaning along ``direction``."""
    own: Any = getattr(step_size, "check", None)
    if own is not None:
        own(direction)


@dataclass(frozen=True)
class Constant:
    """The same step every round, ``η = value``; 1 is FedAvg.

    Attributes:
        value: ``η > 0``, dimensionless.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise ValueError(f"Constant(value={self.value}): must be > 0. Use 1.0 for FedAvg.")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """Return ``value``."""
        return self.value, state


@dataclass(frozen=True)
class Hypergradient:
    """FedHyper: the step size descends on itself, ``ηₜ = 1 + aₜ``.

    ``aₜ = clip(aₜ₋₁ + κ ⟨Δ̄ₜ, dₜ₋₁⟩, low, high)``, ``a₀ = 0``, since ``-⟨∇f(wₜ), dₜ₋₁⟩`` is the
    derivative of the loss by the last step size and ``Δ̄ₜ`` stands for the gradient. Wang, Wang &
    Li 2024, arXiv:2310.03156; ``κ = 1`` and the bounds -0.8 and 4 are those of the authors' code.

    The inner product is in squared parameter units: a change of the clients' learning rate, or a
    larger model, changes ``aₜ``. With ``normalised`` it is the cosine
    ``⟨Δ̄ₜ, dₜ₋₁⟩/(‖Δ̄ₜ‖ ‖dₜ₋₁‖)`` in its place, so ``κ`` is the most ``η`` changes in a round.

    Attributes:
        rate: ``κ > 0``; in inverse squared parameter units, dimensionless if ``normalised``.
        low: lower bound of ``a``, > -1.
        high: upper bound of ``a``, at least ``low``.
        normalised: use the cosine.
    """

    rate: float = 1.0
    low: float = -0.8
    high: float = 4.0
    normalised: bool = False

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(
                f"Hypergradient(rate={self.rate}): must be > 0. Use Constant for none."
            )
        if not -1 < self.low <= self.high:
            raise ValueError(
                f"Hypergradient(low={self.low}, high={self.high}): must have -1 < low <= high. "
                "Use -0.8 and 4, the authors' bounds."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round; remembers ``direction``."""
        a = float(state["hypergradient"]["a"]) if "hypergradient" in state else 0.0
        if "previous-direction" in state:
            slope = self._slope(stats.mean_update, state["previous-direction"])
            a = min(max(a + self.rate * slope, self.low), self.high)
        kept = {name: np.asarray(d) for name, d in direction.items()}
        memory: State = {"hypergradient": {"a": np.asarray(a)}, "previous-direction": kept}
        return 1.0 + a, state | memory

    def _slope(self, gradient: Float64s, previous: Float64s) -> float:
        product, gradient_sq, previous_sq = 0.0, 0.0, 0.0
        for name in gradient:
            g, d = np.ravel(gradient[name]), np.ravel(previous[name])
            product += float(g @ d)
            gradient_sq += float(g @ g)
            previous_sq += float(d @ d)
        if not self.normalised:
            return product
        # A round that moved nothing has no direction to agree with.
        scale = (gradient_sq * previous_sq) ** 0.5
        return product / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class Capped:
    """Never step further than ``max_step_size``: ``η = min(η', max_step_size)``.

    Attributes:
        step_size: the rule that gives ``η'``.
        max_step_size: the cap, > 0, dimensionless.
    """

    step_size: StepSize
    max_step_size: float

    def __post_init__(self) -> None:
        if not self.max_step_size > 0:
            raise ValueError(
                f"Capped(max_step_size={self.max_step_size}): must be > 0. Leave it out for no cap."
            )

    def check(self, direction: Direction) -> None:
        """As the inner step size."""
        check(self.step_size, direction)

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The inner step size, cut at the cap."""
        eta, state = self.step_size(stats, direction, state)
        return min(eta, self.max_step_size), state


@dataclass(frozen=True)
class Relaxed:
    """A fixed multiple of another step: ``η = λ η'``.

    The relaxation parameter of projection methods. ``Relaxed(Diversity(), 0.5)`` is FedExP
    without its lower bound 1 and its ``ε``.

    Attributes:
        step_size: the rule that gives ``η'``.
        factor: ``λ > 0``, dimensionless.
    """

    step_size: StepSize
    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"Relaxed(factor={self.factor}): must be > 0. Use 1.0 for no change.")

    def check(self, direction: Direction) -> None:
        """As the inner step size."""
        check(self.step_size, direction)

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The inner step size times ``factor``."""
        eta, state = self.step_size(stats, direction, state)
        return self.factor * eta, state
