"""Barzilai and Borwein's step: the curvature along the last step, from two rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Float64s
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Direction, State
from fedexp.strategies.extrapolation import only_identity, ratio
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.step_sizes import ITERATE

_OWN = "barzilai-borwein-"


@dataclass(frozen=True)
@with_kinds
class BarzilaiBorwein:
    """The short step of Barzilai and Borwein, ``η = ⟨s, y⟩/‖y‖²``, for rounds of all clients.

    ``s = wₜ - wₜ₋₁`` is the last step and ``y = Δ̄ₜ - Δ̄ₜ₋₁`` what it changed, so ``η`` is the least
    squares solution of ``s = η y``. In round 1, and when ``⟨s, y⟩ ≤ 0``, the step is FedExP's,
    ``η = max(1, Σ pᵢ‖Δᵢ‖²/Σ pᵢ / (2 ‖Δ̄‖²))``. Barzilai & Borwein 1988,
    doi:10.1093/imanum/8.1.141; the use for federations, with ``Δ̄`` for the gradient, is our own.

    With sampled clients ``y`` is mostly the difference between two sets of clients, and the rule
    does not converge. Strategies therefore refuse it there, unless ``sampled`` is set.

    Attributes:
        sampled: whether the rule may be used when only some of the clients train in a round.

    Example:
        ``Δ̄ = w/2`` is linear, so the second step ends at the solution 0: from ``w = 4`` the first
        step is 1 and ends at 2. Then ``s = -2`` and ``y = 1 - 2``, so ``η = 2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import BarzilaiBorwein, ServerOptimizer
        >>> rule = ServerOptimizer(step_size=BarzilaiBorwein())
        >>> w, state = {"w": np.array([4.0])}, {}
        >>> for _ in range(2):
        ...     update = {"w": w["w"] / 2}
        ...     stats = PseudoGradientStats(1, 1.0, update, sq_norm=update["w"].item() ** 2)
        ...     w, state, eta = rule.step(w, stats, state)
        >>> eta, w["w"].item()
        (2.0, 0.0)
    """

    sampled: bool = False

    @property
    def needs_all_clients(self) -> bool:
        """Whether all clients must train in every round."""
        return not self.sampled

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "it measures the curvature along the mean update")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round, and the state with ``w`` and ``Δ̄`` for the next one."""
        iterate = {k: np.array(w, np.float64) for k, w in state[ITERATE].items()}
        update = {k: np.array(d) for k, d in direction.items()}
        memory: State = {_OWN + "iterate": iterate, _OWN + "update": update}
        eta = self._secant(iterate, update, state)
        if eta is None:
            eta = max(1.0, 0.5 * ratio(stats.mean_sq_norm, direction, 0.0))
        return eta, state | memory

    def _secant(self, iterate: Float64s, update: Float64s, state: State) -> float | None:
        """``⟨s, y⟩/‖y‖²``, or None if there is none or it is not positive."""
        product, length = 0.0, 0.0
        old, before = state.get(_OWN + "iterate", {}), state.get(_OWN + "update", {})
        for name in update.keys() & before.keys():
            s, y = np.ravel(iterate[name] - old[name]), np.ravel(update[name] - before[name])
            product += float(s @ y)
            length += float(y @ y)
        # A model that has settled gives y = 0, and so does the first round.
        return product / length if product > 0 else None
