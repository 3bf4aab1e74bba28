"""Step sizes from the clients' disagreement: FedExP, FedExP with momentum, FedExProx.

All of them read the mean of the squared norms against the squared norm of the mean, which is at
least 1 and grows with the angle between the clients' updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Float64s, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Adagrad, Adam, Direction, Identity, Momentum, State, Yogi


@dataclass(frozen=True)
class _Regularised:
    """``εₜ = ε · decay^(2t)``, times ``M`` with ``epsilon_per_client``; rounds ``t = 1, 2, …``."""

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

    def _epsilon(self, stats: PseudoGradientStats, state: State) -> tuple[float, State]:
        t = int(state["extrapolation"]["round"]) + 1 if "extrapolation" in state else 1
        epsilon = self.epsilon * self.decay ** (2 * t)
        memory: State = {"extrapolation": {"round": np.asarray(float(t))}}
        return epsilon * stats.count if self.epsilon_per_client else epsilon, state | memory


@dataclass(frozen=True)
class Extrapolation(_Regularised):
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

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        _only_identity(self, direction, "with momentum use RunningExtrapolation")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round."""
        epsilon, state = self._epsilon(stats, state)
        return max(1.0, 0.5 * _ratio(stats.mean_sq_norm, direction, epsilon)), state


@dataclass(frozen=True)
class RunningExtrapolation(_Regularised):
    """FedExP with server momentum: ``η = ½ rₜ / (‖mₜ‖² + εₜ)``, not bounded below.

    ``rₜ = Σ pᵢ‖Δᵢ‖²/Σ pᵢ + ½ β rₜ₋₁`` goes with the direction ``mₜ = Δ̄ₜ + β mₜ₋₁``, that is with
    ``Momentum(beta)``. The authors' published code means this rule, but a mistyped name in it
    leaves the momentum out of the direction: to have their numbers, use ``Identity``.
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, experiments.

    Attributes:
        epsilon: ``ε``, as in ``Extrapolation``.
        decay: as in ``Extrapolation``.
        epsilon_per_client: as in ``Extrapolation``.
        beta: ``β``, in [0, 1).
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < 1:
            raise ValueError(
                f"RunningExtrapolation(beta={self.beta}): must be in [0, 1). Use 0.9, the "
                "authors' value."
            )

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` unless ``direction`` is ``Momentum(beta)`` or ``Identity``."""
        if direction not in (Momentum(self.beta), Identity()):
            raise ValueError(
                f"RunningExtrapolation(beta={self.beta}): has no meaning along {direction}. "
                f"Use Momentum({self.beta}), or Identity for the authors' released code."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round."""
        before = float(state["running"]["sq-norm"]) if "running" in state else 0.0
        running = stats.mean_sq_norm + 0.5 * self.beta * before
        epsilon, state = self._epsilon(stats, state)
        memory: State = {"running": {"sq-norm": np.asarray(running)}}
        return 0.5 * _ratio(running, direction, epsilon, empty=2.0), state | memory


@dataclass(frozen=True)
class Diversity:
    """FedExProx-GraDS: ``η = (Σ pᵢ‖Δᵢ‖²/Σ pᵢ) / ‖Δ̄‖² ≥ 1``, the gradient diversity.

    For clients that return proximal points, ``wᵢ = prox_{γ fᵢ}(w)``. It is 1 when all agree and
    ``M`` for ``M`` orthogonal updates of one length. Li, Acharya & Richtárik 2024,
    arXiv:2405.13766.
    """

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        _only_identity(self, direction, "it measures the mean of proximal steps")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round."""
        return _ratio(stats.mean_sq_norm, direction, 0.0), state


@dataclass(frozen=True)
class Polyak:
    """FedExProx-StoPS: a Polyak step on the mean Moreau envelope.

    ``η = γ (Σ pᵢ Mᵢ(w)/Σ pᵢ - M*) / ‖Δ̄‖²`` with the envelopes
    ``Mᵢ(w) = fᵢ(wᵢ) + ‖Δᵢ‖²/(2γ)`` of clients that return ``wᵢ = prox_{γ fᵢ}(w)`` and report
    ``fᵢ(wᵢ)``, ``Δ̄ = γ · mean ∇Mᵢ``. Li, Acharya & Richtárik 2024, arXiv:2405.13766.

    Attributes:
        gamma: ``γ > 0``, the proximal step; ``1/proximal-mu``.
        minimum: ``M*``, the mean of the clients' least losses; 0 for models that can fit the data.
    """

    gamma: float
    minimum: float = 0.0

    def __post_init__(self) -> None:
        _check_gamma(self, self.gamma)

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        _only_identity(self, direction, "it measures the mean of proximal steps")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round.

        Raises:
            ValueError: the statistics hold no loss.
        """
        if stats.loss is None:
            raise ValueError(
                f"Polyak(gamma={self.gamma}): no client loss to go by. Clients must report the "
                "metric final-loss; ours do when the train config has final-loss = true."
            )
        gap = stats.loss / stats.weight + stats.mean_sq_norm / (2 * self.gamma) - self.minimum
        return _ratio(self.gamma * gap, direction, 0.0), state


def proximal_step(
    gamma: float,
    *,
    max_smoothness: float,
    envelope_smoothness: float,
    num_clients: int,
    sampled: int,
) -> float:
    """FedExProx's constant step ``η = 1/(γ L_{γ,S})`` for clients of known smoothness.

    ``L_{γ,S} = (n-S)/(S(n-1)) · L/(1 + γL) + n(S-1)/(S(n-1)) · L_γ``, which is ``L_γ`` when all
    take part. Li, Acharya & Richtárik 2024, arXiv:2405.13766.

    Args:
        gamma: ``γ > 0``, the proximal step.
        max_smoothness: ``L``, the largest smoothness constant of the ``fᵢ``.
        envelope_smoothness: ``L_γ``, of the mean Moreau envelope.
        num_clients: ``n``.
        sampled: ``S``, clients a round, drawn uniformly.
    """
    n, s = num_clients, sampled
    largest = max_smoothness / (1 + gamma * max_smoothness)
    alone = (n - s) / (s * (n - 1)) if n > s else 0.0
    together = n * (s - 1) / (s * (n - 1)) if n > s else 1.0
    return 1 / (gamma * (alone * largest + together * envelope_smoothness))


def _ratio(numerator: float, direction: Float64s, epsilon: float, *, empty: float = 1.0) -> float:
    denominator = sq_norm(direction) + epsilon
    # Updates that cancel exactly leave nothing to extrapolate.
    return numerator / denominator if denominator > 0 else empty


def _only_identity(owner: object, direction: Direction, hint: str) -> None:
    if isinstance(direction, Momentum | Adagrad | Adam | Yogi):
        raise ValueError(
            f"{type(owner).__name__}: has no meaning along {direction}. Use Identity; {hint}."
        )


def _check_gamma(owner: object, gamma: float) -> None:
    if not gamma > 0:
        raise ValueError(f"{type(owner).__name__}(gamma={gamma}): must be > 0. Use 1/proximal-mu.")
