"""Step sizes from the clients' disagreement: FedExP, alone and with momentum.

They divide the mean of the squared norms ``‖Δᵢ‖²`` by the squared norm of the mean ``Δ̄``. By
Jensen's inequality this ratio is at least 1; it grows with the angles between the clients' updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Float64s, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.anderson import Anderson
from fedexp.strategies.directions import Adagrad, Adam, Direction, Identity, Momentum, State, Yogi
from fedexp.strategies.kinds import with_kinds


@dataclass(frozen=True)
@with_kinds
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
@with_kinds
class Extrapolation(_Regularised):
    """FedExP: step further the more the clients disagree.

    ``η = max(1, c · (Σ pᵢ‖Δᵢ‖²/Σ pᵢ) / (‖Δ̄‖² + εₜ))`` with ``c = ½`` and ``εₜ = ε · decay^(2t)``,
    rounds ``t = 1, 2, …``. With equal weights this is ``max(1, Σ‖Δᵢ‖² / (2M (‖Δ̄‖² + ε)))``.
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, alg. 1. With ``c = 1`` and ``ε = 0`` it is
    the gradient diversity, as in FedExProx-GraDS (Li, Acharya & Richtárik 2024, arXiv:2405.13766;
    tighter theory in Anyszka et al. 2024, arXiv:2410.15368). There clients return proximal points,
    of which more is known than of local steps.

    Attributes:
        epsilon: ``ε ≥ 0``, in squared parameter units; it bounds ``η`` when ``Δ̄`` vanishes.
        decay: factor per round of the clients' learning rate; ``Δ`` shrinks with it, and so must
            ``√ε``. The authors' code uses 0.998.
        epsilon_per_client: use ``M·ε`` in place of ``ε``, as the authors' code does (the paper
            does not); ``M`` is the number of clients of the round.
        factor: ``c``, in (0, 1]; theory covers ½ to 1.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        Two clients send ``Δ₁ = (3, 1)`` and ``Δ₂ = (-1, 1)``. The mean of the squared norms is
        ``(10 + 2)/2 = 6``, and ``Δ̄ = (1, 1)`` has the squared norm 2, so ``η = ½ · 6/2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Extrapolation
        >>> update = {"w": np.array([2.0, 2.0])}  # Δ₁ + Δ₂
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> eta, state = Extrapolation(epsilon=0.0)(stats, stats.mean_update, {})
        >>> eta
        1.5
    """

    factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factor(self, self.factor)

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "with momentum use RunningExtrapolation")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round, and the state with its number."""
        epsilon, state = self._epsilon(stats, state)
        # Let wᵢ be no further from a solution w* than w is. Then 2⟨Δᵢ, w - w*⟩ ≥ ‖Δᵢ‖², and the
        # step along Δ̄ that ends closest to w*, ⟨Δ̄, w - w*⟩/‖Δ̄‖², is at least half the ratio. If the
        # clients agree, the half is ½ and shorter than FedAvg's step: hence at least 1. The ends
        # of proximal points are nearer to w* than that, ⟨Δᵢ, w - w*⟩ ≥ ‖Δᵢ‖², and the half is 1.
        # Noise makes Δ̄ longer than the clients' updates do; that is no agreement of theirs.
        epsilon -= stats.excess
        return max(1.0, self.factor * ratio(stats.mean_sq_norm, direction, epsilon)), state


@dataclass(frozen=True)
@with_kinds
class RunningExtrapolation(_Regularised):
    """FedExP with server momentum: ``η = ½ rₜ / (‖mₜ‖² + εₜ)``, not bounded below.

    ``rₜ = Σ pᵢ‖Δᵢ‖²/Σ pᵢ + ½ β rₜ₋₁`` belongs to the direction ``mₜ = Δ̄ₜ + β mₜ₋₁``, that is to
    ``Momentum(beta)``. The authors' published code means this rule, but because of a mistyped name
    it steps along ``Δ̄`` without momentum. Use ``Identity`` to reproduce its numbers.
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, experiments.

    Attributes:
        epsilon: ``ε``, as in ``Extrapolation``.
        decay: as in ``Extrapolation``.
        epsilon_per_client: as in ``Extrapolation``.
        beta: ``β``, in [0, 1).

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        ``r = 6`` in the first round and ``6 + ½ · 0.5 · 6`` in the second. Along
        ``Δ̄ = (1, 1)`` that gives ``½ · 6/2`` and ``½ · 7.5/2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import RunningExtrapolation
        >>> update = {"w": np.array([2.0, 2.0])}
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> rule = RunningExtrapolation(epsilon=0.0, beta=0.5)
        >>> first, state = rule(stats, stats.mean_update, {})
        >>> second, state = rule(stats, stats.mean_update, state)
        >>> first, second
        (1.5, 1.875)
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
                f"RunningExtrapolation(beta={self.beta}): cannot step along {direction}. "
                f"Use Momentum({self.beta}), or Identity for the authors' released code."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round, and the state with the new ``r``."""
        before = float(state["running"]["sq-norm"]) if "running" in state else 0.0
        running = stats.mean_sq_norm + 0.5 * self.beta * before
        epsilon, state = self._epsilon(stats, state)
        # empty=2 gives η = 1, FedAvg's step, after the factor ½.
        memory: State = {"running": {"sq-norm": np.asarray(running)}}
        return 0.5 * ratio(running, direction, epsilon, empty=2.0), state | memory


def ratio(numerator: float, direction: Float64s, epsilon: float, *, empty: float = 1.0) -> float:
    """``numerator / (‖d‖² + ε)``, or ``empty`` if the denominator is 0 and there is no step."""
    denominator = sq_norm(direction) + epsilon
    return numerator / denominator if denominator > 0 else empty


def check_factor(owner: object, factor: float) -> None:
    """Raise ``ValueError`` unless ``factor`` is one of a ratio of the clients' disagreement."""
    if not 0 < factor <= 1:
        raise ValueError(
            f"{type(owner).__name__}(factor={factor}): must be in (0, 1]. Use 0.5, the paper's "
            "value; relaxation makes a step longer."
        )


def only_identity(owner: object, direction: Direction, hint: str) -> None:
    """Raise ``ValueError`` for a direction of this package other than the mean update."""
    # A direction of the user's own may well be the mean update under another name.
    if isinstance(direction, Momentum | Adagrad | Adam | Yogi | Anderson):
        raise ValueError(
            f"{type(owner).__name__}: cannot step along {direction}. Use Identity; {hint}."
        )
