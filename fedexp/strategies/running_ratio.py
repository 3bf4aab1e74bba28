"""FedExP's step from running means, which varies less than the step from single rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Float64s, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Adagrad, Adam, Direction, State, Yogi
from fedexp.strategies.extrapolation import check_factor
from fedexp.strategies.kinds import with_kinds


@dataclass(frozen=True)
@with_kinds
class RunningRatio:
    """FedExP's ratio, with both means taken over the past rounds too: ``η = max(1, c N/Q)``.

    ``N ← b N + (1 - b) Σ pᵢ‖Δᵢ‖²/Σ pᵢ`` and ``Q ← b Q + (1 - b) ‖Δ̄‖²``; in the first round they are
    the values themselves. ``c = ½``, as in FedExP. A later round whose mean update happens to be
    short does not lead to a huge step, so the rule needs no ``ε``, and ``η`` does not depend on the
    scale of the parameters. The first round has no past: if clients may cancel each other, limit
    the step by ``robust`` or ``max_step_size``. With ``b = 0`` the rule is FedExP's with
    ``ε = 0``. The smoothing is our own; the ratio is that of Jhunjhunwala, Wang & Joshi 2023,
    arXiv:2301.09604.

    Attributes:
        smoothing: ``b``, in [0, 1), the weight of the past.
        factor: ``c``, in (0, 1], as in ``Extrapolation``.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        In the first round ``N/(2Q) = 6/(2 · 2)``. In the second one the updates cancel, ``Δ̄ = 0``,
        and ``N/(2Q) = 6/(2 · 1)`` where FedExP with ``ε = 0`` would divide by zero.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import RunningRatio
        >>> rule, state, etas = RunningRatio(smoothing=0.5), {}, []
        >>> for update in ([2.0, 2.0], [0.0, 0.0]):  # Δ₁ + Δ₂
        ...     stats = PseudoGradientStats(2, 2.0, {"w": np.array(update)}, sq_norm=12.0)
        ...     eta, state = rule(stats, stats.mean_update, state)
        ...     etas.append(eta)
        >>> etas
        [1.5, 3.0]
    """

    smoothing: float = 0.5
    factor: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"RunningRatio(smoothing={self.smoothing}): must be in [0, 1). Use 0.5."
            )
        check_factor(self, self.factor)

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for directions that rescale each coordinate."""
        # The ratio measures lengths of updates, which say nothing about the length of such a step.
        if isinstance(direction, Adagrad | Adam | Yogi):
            raise ValueError(
                f"RunningRatio(smoothing={self.smoothing}): cannot step along {direction}. "
                "Use Identity or Momentum."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round, and the state with the new ``N`` and ``Q``."""
        b, old = self.smoothing, state.get("running-ratio")
        # What noise adds is taken off before the mean over rounds, in which its sign averages out.
        now = {
            "mean-sq-norm": stats.mean_sq_norm,
            "sq-norm-mean": sq_norm(stats.mean_update) - stats.excess,
        }
        # N and Q weigh the rounds by the same factors. So N/Q is the mean of the rounds' ratios,
        # each weighted by its ‖Δ̄‖² as well: a round with a short mean update hardly counts.
        new = {k: float(b * old[k] + (1 - b) * x) if old else x for k, x in now.items()}
        memory: State = {"running-ratio": {k: np.asarray(x) for k, x in new.items()}}
        n, q = new.values()
        # Q = 0: nothing has moved yet, and FedAvg's step is as good as any.
        return max(1.0, self.factor * n / q) if q > 0 else 1.0, state | memory
