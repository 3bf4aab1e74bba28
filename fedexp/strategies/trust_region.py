"""A limit on the way of a single step, relative to the model."""

from __future__ import annotations

from dataclasses import dataclass

from fedexp.arrays import Float64s, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Direction, State
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.step_sizes import ITERATE, StepSize, check_direction


@dataclass(frozen=True)
@with_kinds
class TrustRegion:
    """No step is longer than a share of the model: ``η = min(η', ρ ‖w‖/‖d‖)``.

    It is a safeguard for clients whose learning rate is too large. Their updates are as long as the
    model itself; long steps along them, with momentum, carry the weights of a network so far that
    the small steps of later rounds cannot shape them any more. Where clients do not overshoot, a
    step is a small share of the model and the bound does nothing. As long as ``w = 0`` there is no
    bound. A model that starts near 0 and has far to go, such as a linear one, takes its first steps
    more slowly. Relative steps are those of You, Gitman & Ginsburg 2017, arXiv:1708.03888, there by
    layer; the bound is our own.

    Attributes:
        step_size: the rule that gives ``η'``.
        radius: ``ρ > 0``, dimensionless.

    Raises:
        ValueError: ``radius`` is not positive.

    Example:
        ``‖w‖ = 5`` and ``‖d‖ = 2``, so the step is at most ``0.2 · 5/2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Constant, ServerOptimizer, TrustRegion
        >>> rule = ServerOptimizer(step_size=TrustRegion(Constant(3.0), radius=0.2))
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([2.0, 0.0])}, sq_norm=4.0)
        >>> _, _, eta = rule.step({"w": np.array([3.0, 4.0])}, stats, {})
        >>> round(eta, 6)
        0.5
    """

    step_size: StepSize
    radius: float = 0.2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"TrustRegion(radius={self.radius}): must be > 0. Use 0.2.")

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` if the inner step size cannot be used with ``direction``."""
        check_direction(self.step_size, direction)

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The inner step size, within the bound."""
        model = sq_norm(state[ITERATE]) ** 0.5
        eta, state = self.step_size(stats, direction, state)
        # Compared as lengths, so that d = 0 divides nothing; w = 0 has no scale to be bounded by.
        way = eta * sq_norm(direction) ** 0.5
        return (eta * self.radius * model / way if way > self.radius * model > 0 else eta), state
