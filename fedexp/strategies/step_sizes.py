"""Simple step sizes, and limits on any step size.

The server steps ``w ← w - η d`` with ``η = step_size(statistics, d)``. Like a direction, a step
size is a pure function that takes its memory as an argument and returns the new one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from fedexp.arrays import Arrays, Float64s, moved
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import SHIFT, Direction, State
from fedexp.strategies.kinds import with_kinds


class StepSize(Protocol):
    """How far to go: ``(statistics, d, state) -> (η, state)``.

    A step size that works with some directions only has a method ``check(direction)``, which
    raises ``ValueError`` for the others.
    """

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """Step size for this round's ``stats`` and ``direction``."""
        ...


ITERATE = "iterate"
"""The entry of the state that holds ``w`` during a step, for rules that measure the way so far."""

MODEL = "model"
"""The entry that then holds the model as a whole, with the new buffers; see ``after_step``."""


def after_step(direction: Float64s, eta: float, state: State) -> Arrays:
    """The model after the step ``w - s - η d``, in its dtypes, during a step.

    Args:
        direction: ``d``.
        eta: ``η``.
        state: has ``MODEL``, and ``SHIFT``, the shift ``s``, if the direction has one.
    """
    model: Arrays = state[MODEL]
    if shift := state.get(SHIFT):
        step = {name: eta * direction[name] + s for name, s in shift.items()}
        return {**model, **dict(moved(model, step, 1.0))}
    return {**model, **dict(moved(model, direction, eta))}


def check_direction(step_size: StepSize, direction: Direction) -> None:
    """Raise ``ValueError`` if ``step_size`` cannot be used with ``direction``."""
    own: Any = getattr(step_size, "check", None)
    if own is not None:
        own(direction)


def innermost(step_size: StepSize) -> StepSize:
    """The rule that chooses the step, without the limits around it."""
    while inner := getattr(step_size, "step_size", None):
        step_size = inner
    return step_size


def with_innermost(step_size: StepSize, chosen: StepSize) -> StepSize:
    """``chosen`` within the limits that are around the innermost rule of ``step_size``."""
    limits: Any = step_size
    if not (inner := getattr(limits, "step_size", None)):
        return chosen
    outer: StepSize = replace(limits, step_size=with_innermost(inner, chosen))
    return outer


@dataclass(frozen=True)
@with_kinds
class Constant:
    """The same step every round, ``η = value``; 1 is FedAvg.

    Attributes:
        value: ``η > 0``, dimensionless.

    Raises:
        ValueError: ``value`` is not positive or not finite.

    Example:
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Constant
        >>> eta, state = Constant(0.5)(PseudoGradientStats(), {}, {})
        >>> eta
        0.5
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise ValueError(
                f"Constant(value={self.value}): must be > 0 and finite. Use 1.0 for FedAvg."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """Return ``value``."""
        return self.value, state


@dataclass(frozen=True)
@with_kinds
class HypergradientStep:
    """FedHyper: gradient descent on the step size itself, ``ηₜ = 1 + aₜ``.

    ``aₜ = clip(aₜ₋₁ + κ ⟨Δ̄ₜ, dₜ₋₁⟩, low, high)`` with ``a₀ = 0``. The derivative of the loss with
    respect to the last step size is ``-⟨∇f(wₜ), dₜ₋₁⟩``, and ``Δ̄ₜ`` stands for the gradient.
    Wang, Wang & Li 2024, arXiv:2310.03156; ``κ = 1`` and the bounds -0.8 and 4 are those of the
    authors' code.

    The inner product is in squared parameter units: a change of the clients' learning rate, or a
    larger model, changes ``aₜ``. With ``normalised`` the rule uses the cosine
    ``⟨Δ̄ₜ, dₜ₋₁⟩/(‖Δ̄ₜ‖ ‖dₜ₋₁‖)`` instead, so that ``η`` changes by at most ``κ`` in a round.

    Attributes:
        rate: ``κ > 0``; in inverse squared parameter units, dimensionless if ``normalised``.
        low: lower bound of ``a``, > -1.
        high: upper bound of ``a``, at least ``low``.
        normalised: whether to use the cosine.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        The second round agrees with the first one, so ``a = 0.1 · (1·1 + 1·1)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import HypergradientStep
        >>> update = {"w": np.array([1.0, 1.0])}
        >>> stats = PseudoGradientStats(count=1, weight=1.0, update=update, sq_norm=2.0)
        >>> rule = HypergradientStep(rate=0.1)
        >>> first, state = rule(stats, update, {})
        >>> second, state = rule(stats, update, state)
        >>> first, second
        (1.0, 1.2)
    """

    rate: float = 1.0
    low: float = -0.8
    high: float = 4.0
    normalised: bool = False

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(
                f"HypergradientStep(rate={self.rate}): must be > 0. Use Constant for none."
            )
        if not -1 < self.low <= self.high:
            raise ValueError(
                f"HypergradientStep(low={self.low}, high={self.high}): must have -1 < low <= "
                "high. Use -0.8 and 4, the authors' bounds."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round, and the state with ``direction`` for the next one."""
        a = float(state["hypergradient"]["a"]) if "hypergradient" in state else 0.0
        if "previous-direction" in state:
            slope = self._slope(stats.mean_update, state["previous-direction"])
            a = min(max(a + self.rate * slope, self.low), self.high)
        # The direction may be a mean that divides its sums when it is read: keep the quotients.
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
        # If one of the two is zero there is no angle between them, and the step stays as it is.
        scale = (gradient_sq * previous_sq) ** 0.5
        return product / scale if scale > 0 else 0.0


@dataclass(frozen=True)
@with_kinds
class Capped:
    """An upper bound on another step size: ``η = min(η', max_step_size)``.

    Attributes:
        step_size: the rule that gives ``η'``.
        max_step_size: the bound, > 0, dimensionless.

    Raises:
        ValueError: ``max_step_size`` is not positive.

    Example:
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Capped, Constant
        >>> eta, _ = Capped(Constant(5.0), max_step_size=3.0)(PseudoGradientStats(), {}, {})
        >>> eta
        3.0
    """

    step_size: StepSize
    max_step_size: float

    def __post_init__(self) -> None:
        if not self.max_step_size > 0:
            raise ValueError(
                f"Capped(max_step_size={self.max_step_size}): must be > 0. Leave it out for no cap."
            )

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` if the inner step size cannot be used with ``direction``."""
        check_direction(self.step_size, direction)

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The inner step size, at most ``max_step_size``."""
        eta, state = self.step_size(stats, direction, state)
        return min(eta, self.max_step_size), state


@dataclass(frozen=True)
@with_kinds
class Relaxed:
    """A fixed multiple of another step: ``η = λ η'``.

    ``λ`` is the relaxation parameter of projection methods. ``Relaxed(GradientDiversity(), 0.5)``
    is FedExP without its lower bound 1 and its ``ε``.

    Attributes:
        step_size: the rule that gives ``η'``.
        factor: ``λ > 0``, dimensionless.

    Raises:
        ValueError: ``factor`` is not positive or not finite.

    Example:
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Constant, Relaxed
        >>> eta, _ = Relaxed(Constant(3.0), factor=0.5)(PseudoGradientStats(), {}, {})
        >>> eta
        1.5
    """

    step_size: StepSize
    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(
                f"Relaxed(factor={self.factor}): must be > 0 and finite. Use 1.0 for no change."
            )

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` if the inner step size cannot be used with ``direction``."""
        check_direction(self.step_size, direction)

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The inner step size times ``factor``."""
        eta, state = self.step_size(stats, direction, state)
        return self.factor * eta, state
