"""Steps from the distance travelled: DoG and DoWG, which have no step size to choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedexp.arrays import Float64s, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Direction, State
from fedexp.strategies.extrapolation import only_identity
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.step_sizes import ITERATE

_START = "distance-start"


@dataclass(frozen=True)
@with_kinds
class DistanceOverGradients:
    """DoG: the distance travelled over the root of the updates' squares, ``η = r/√G``.

    ``r = max(r₀, max ‖wᵢ - w₀‖)`` and ``G = Σ ‖Δ̄ᵢ‖²``, both over the rounds so far, this one
    included. With ``r₀ = radius · (1 + ‖w₀‖)`` the first steps are tiny if the radius is, and grow
    geometrically. The method's guarantee is for an average of the iterates: evaluate
    ``PolynomialAverage``, ``--average poly-8``. Ivgi, Hinder & Carmon 2023, arXiv:2302.12022.

    Attributes:
        radius: ``> 0``, dimensionless; the authors use 1e-6, which costs the first rounds.

    Raises:
        ValueError: ``radius`` is not positive or not finite.

    Example:
        ``w₀ = 3`` and ``Δ̄ = 2`` give ``r = 0.5 · (1 + 3)`` and ``η = 2/2``. Then ``w`` is at 1, as
        far away as ``r``, and ``η = 2/√(4 + 4)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import DistanceOverGradients, ServerOptimizer
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([2.0])}, sq_norm=4.0)
        >>> rule = ServerOptimizer(step_size=DistanceOverGradients(radius=0.5))
        >>> params, state, first = rule.step({"w": np.array([3.0])}, stats, {})
        >>> params, state, second = rule.step(params, stats, state)
        >>> first, round(second, 4)
        (1.0, 0.7071)
    """

    radius: float = 1e-2

    _power: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise ValueError(
                f"{type(self).__name__}(radius={self.radius}): must be > 0 and finite. Use "
                "1e-2, or the authors' 1e-6."
            )

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for a ``direction`` that is not the mean update."""
        only_identity(self, direction, "it adds up the squares of the mean updates")

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round, and the state with ``w₀``, ``r`` and ``G``."""
        w = {k: np.array(x, np.float64) for k, x in state[ITERATE].items()}
        start = state.get(_START, w)
        old = state.get("distance", {"radius": self.radius * (1 + sq_norm(w) ** 0.5), "sum": 0.0})
        travelled = sq_norm({k: w[k] - start[k] for k in w}) ** 0.5
        r = max(float(old["radius"]), travelled)
        # DoWG weighs each round by r², so that early rounds near w₀ do not shorten later steps.
        total = float(old["sum"]) + r**self._power * sq_norm(direction)
        memory: State = {
            _START: start,
            "distance": {"radius": np.asarray(r), "sum": np.asarray(total)},
        }
        # The sum is 0 as long as no update has come: any step leads to the same place.
        eta = r ** (1 + self._power // 2) / total**0.5 if total > 0 else 1.0
        return eta, state | memory


@dataclass(frozen=True)
class DistanceOverWeightedGradients(DistanceOverGradients):
    """DoWG: DoG whose sum is weighted by the distances, ``η = r²/√(Σ rᵢ² ‖Δ̄ᵢ‖²)``.

    ``rᵢ`` is DoG's ``r`` in round ``i``. Its steps grow faster than DoG's from a small radius.
    Khaled, Mishchenko & Jin 2023, arXiv:2305.16284. The attributes are those of
    ``DistanceOverGradients``.

    Raises:
        ValueError: ``radius`` is not positive or not finite.

    Example:
        In the first round it is DoG: ``η = 2²/√(2² · 2²)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import DistanceOverWeightedGradients, ServerOptimizer
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([2.0])}, sq_norm=4.0)
        >>> rule = ServerOptimizer(step_size=DistanceOverWeightedGradients(radius=0.5))
        >>> _, _, eta = rule.step({"w": np.array([3.0])}, stats, {})
        >>> eta
        1.0
    """

    _power: ClassVar[int] = 2
