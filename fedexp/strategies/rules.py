"""Server rules: a direction times a step size.

``w ← w - η d``, where the direction ``d`` comes from the mean pseudo-gradient ``Δ̄`` and the step
size ``η`` from the statistics of the round. Both are pure: state goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedexp.arrays import Arrays, Float64s, cast_like, sq_norm
from fedexp.stats import PseudoGradientStats

State = dict[str, Float64s]
"""What rules remember between rounds: ``{}`` at the start, arrays by owner and name after."""


class Direction(Protocol):
    """Which way to go: ``(Δ̄, state) -> (d, state)``."""

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """Direction for the mean pseudo-gradient ``gradient``."""
        ...


class StepSize(Protocol):
    """How far to go: ``(statistics, d, state) -> (η, state)``."""

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """Step size for this round's ``stats`` and ``direction``."""
        ...


@dataclass(frozen=True)
class Identity:
    """The mean pseudo-gradient itself, ``d = Δ̄``: FedAvg's direction."""

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """Return ``gradient``."""
        return gradient, state


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
class Extrapolation:
    """FedExP: step further the more the clients disagree.

    ``η = max(1, ½ · (Σ pᵢ‖Δᵢ‖²/Σ pᵢ) / (‖Δ̄‖² + εₜ))`` with ``εₜ = ε · decay^(2t)``, rounds
    ``t = 1, 2, …``. With equal weights this is ``max(1, Σ‖Δᵢ‖² / (2M (‖Δ̄‖² + ε)))``.
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, alg. 1.

    Attributes:
        epsilon: ``ε``, in squared parameter units; caps ``η`` when ``Δ̄`` vanishes.
        decay: factor per round of the clients' learning rate; ``Δ`` shrinks with it, and so must
            ``√ε``. The authors' code uses 0.998.
        epsilon_per_client: use ``M·ε`` in place of ``ε``, as the authors' code does (the paper
            does not); ``M`` is the number of clients of the round.
    """

    epsilon: float = 1e-3
    decay: float = 1.0
    epsilon_per_client: bool = False

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(
                f"FedExP(epsilon={self.epsilon}): epsilon must be >= 0. "
                "Use 1e-3, the paper's value for CIFAR-10."
            )
        if not 0 < self.decay <= 1:
            raise ValueError(
                f"FedExP(epsilon_decay={self.decay}): must be in (0, 1]. Use the clients' "
                "learning-rate decay, or 1.0 for none."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round."""
        t = _round(state)
        epsilon = self.epsilon * self.decay ** (2 * t)
        if self.epsilon_per_client:
            epsilon *= stats.count
        denominator = 2 * (sq_norm(direction) + epsilon)
        # Updates that cancel exactly leave nothing to extrapolate.
        eta = max(1.0, stats.mean_sq_norm / denominator) if denominator > 0 else 1.0
        return eta, state | {"extrapolation": {"round": np.asarray(float(t))}}


def _round(state: State) -> int:
    return int(state["extrapolation"]["round"]) + 1 if "extrapolation" in state else 1


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

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The inner step size, cut at the cap."""
        eta, state = self.step_size(stats, direction, state)
        return min(eta, self.max_step_size), state


@dataclass(frozen=True)
class ServerOptimizer:
    """A server step: ``w ← w - η d`` on trainable arrays, the clients' mean on all others.

    Attributes:
        direction: gives ``d``.
        step_size: gives ``η``.
    """

    direction: Direction = field(default_factory=Identity)
    step_size: StepSize = field(default_factory=Constant)

    def step(
        self, params: Arrays, stats: PseudoGradientStats, state: State
    ) -> tuple[Arrays, State, float]:
        """New parameters in the dtypes of ``params``, new state, and ``η``.

        Args:
            params: ``w``, what was broadcast; not changed.
            stats: the sums of the round, of at least one client.
            state: what the last call returned, ``{}`` in round 1.
        """
        direction, state = self.direction(stats.mean_update, state)
        eta, state = self.step_size(stats, direction, state)
        buffers = stats.mean_buffers
        # One array at a time, so that the float64 step of a whole model never exists.
        new = {
            name: cast_like(w - eta * direction[name] if name in direction else buffers[name], w)
            for name, w in params.items()
        }
        return new, state, eta
