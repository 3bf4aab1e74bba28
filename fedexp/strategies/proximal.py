"""FedExProx: step sizes for clients that return proximal points."""

from __future__ import annotations

from dataclasses import dataclass

from fedexp.arrays import Float64s
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Direction, State
from fedexp.strategies.extrapolation import only_identity, ratio


@dataclass(frozen=True)
class Diversity:
    """FedExProx-GraDS: ``η = (Σ pᵢ‖Δᵢ‖²/Σ pᵢ) / ‖Δ̄‖² ≥ 1``, the gradient diversity.

    For clients that return proximal points, ``wᵢ = prox_{γ fᵢ}(w)``. It is 1 when all agree and
    ``M`` for ``M`` orthogonal updates of one length. Li, Acharya & Richtárik 2024,
    arXiv:2405.13766.
    """

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "it measures the mean of proximal steps")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round."""
        return ratio(stats.mean_sq_norm, direction, 0.0), state


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
        if not self.gamma > 0:
            raise ValueError(f"Polyak(gamma={self.gamma}): must be > 0. Use 1/proximal-mu.")

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "it measures the mean of proximal steps")

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
