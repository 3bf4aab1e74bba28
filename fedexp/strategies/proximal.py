"""FedExProx: step sizes for clients that return proximal points."""

from __future__ import annotations

from dataclasses import dataclass

from fedexp.arrays import Float64s
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Direction, State
from fedexp.strategies.extrapolation import only_identity, ratio
from fedexp.strategies.kinds import with_kinds


@dataclass(frozen=True)
class GradientDiversity:
    """FedExProx-GraDS: ``η = (Σ pᵢ‖Δᵢ‖²/Σ pᵢ) / ‖Δ̄‖² ≥ 1``, the gradient diversity.

    It is for clients that return proximal points, ``wᵢ = prox_{γ fᵢ}(w)``. The step is 1 when all
    updates are the same, and ``M`` for ``M`` orthogonal updates of one length. Li, Acharya &
    Richtárik 2024, arXiv:2405.13766.

    Example:
        ``Δ₁ = (3, 1)`` and ``Δ₂ = (-1, 1)`` have the mean squared norm 6; ``‖(1, 1)‖² = 2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import GradientDiversity
        >>> update = {"w": np.array([2.0, 2.0])}  # Δ₁ + Δ₂
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> eta, _ = GradientDiversity()(stats, stats.mean_update, {})
        >>> eta
        3.0
    """

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "it measures the mean of proximal steps")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round."""
        return ratio(stats.mean_sq_norm, direction, -stats.excess), state


@dataclass(frozen=True)
@with_kinds
class StochasticPolyak:
    """FedExProx-StoPS: a Polyak step on the mean Moreau envelope.

    ``η = γ (Σ pᵢ Mᵢ(w)/Σ pᵢ - M*) / ‖Δ̄‖²`` with the envelopes
    ``Mᵢ(w) = fᵢ(wᵢ) + ‖Δᵢ‖²/(2γ)`` of clients that return ``wᵢ = prox_{γ fᵢ}(w)`` and report
    ``fᵢ(wᵢ)``, ``Δ̄ = γ · mean ∇Mᵢ``. Li, Acharya & Richtárik 2024, arXiv:2405.13766.

    Attributes:
        gamma: ``γ > 0``, the proximal step; ``1/proximal-mu``.
        minimum: ``M*``, the mean of the clients' least losses; 0 for models that can fit the data.

    Raises:
        ValueError: ``gamma`` is not positive.

    Example:
        The mean loss is 1 and the mean of ``‖Δᵢ‖²/(2γ)`` is 6/2, so ``η = 1 · (1 + 3)/2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import StochasticPolyak
        >>> update = {"w": np.array([2.0, 2.0])}  # of two clients, Δ̄ = (1, 1)
        >>> stats = PseudoGradientStats(2, 2.0, update=update, sq_norm=12.0, loss=2.0)
        >>> eta, _ = StochasticPolyak(gamma=1.0)(stats, stats.mean_update, {})
        >>> eta
        2.0
    """

    gamma: float
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(
                f"StochasticPolyak(gamma={self.gamma}): must be > 0. Use 1/proximal-mu."
            )

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "it measures the mean of proximal steps")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round.

        Raises:
            ValueError: the statistics hold no loss.
        """
        if stats.loss is None:
            raise ValueError(
                f"StochasticPolyak(gamma={self.gamma}): no client reported its loss. Clients must "
                "report the metric final-loss; ours do when the train config has final-loss = true."
            )
        # The mean of the envelopes Mᵢ(w), above its least value.
        gap = stats.loss / stats.weight + stats.mean_sq_norm / (2 * self.gamma) - self.minimum
        return ratio(self.gamma * gap, direction, 0.0), state


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
    clients take part. Li, Acharya & Richtárik 2024, arXiv:2405.13766.

    Args:
        gamma: ``γ > 0``, the proximal step.
        max_smoothness: ``L``, the largest smoothness constant of the ``fᵢ``.
        envelope_smoothness: ``L_γ``, of the mean Moreau envelope.
        num_clients: ``n``.
        sampled: ``S``, clients a round, drawn uniformly.

    Returns:
        ``η``, dimensionless.

    Example:
        When all clients take part, ``η = 1/(γ L_γ) = 1/(2 · 0.25)``.

        >>> from fedexp.strategies import proximal_step
        >>> proximal_step(
        ...     2.0, max_smoothness=1.0, envelope_smoothness=0.25, num_clients=5, sampled=5
        ... )
        2.0
    """
    n, s = num_clients, sampled
    largest = max_smoothness / (1 + gamma * max_smoothness)
    # One client alone has its own smoothness, all of them together that of the mean. The weights in
    # between are those of the variance of a mean of S draws from n without replacement.
    alone = (n - s) / (s * (n - 1)) if n > s else 0.0
    together = n * (s - 1) / (s * (n - 1)) if n > s else 1.0
    return 1 / (gamma * (alone * largest + together * envelope_smoothness))
