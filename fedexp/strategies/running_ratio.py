"""FedExP's step from running means: scale-free, and calmer than that of single rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Float64s, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import Adagrad, Adam, Direction, State, Yogi


@dataclass(frozen=True)
class RunningRatio:
    """FedExP's ratio of means over rounds as well: ``η = max(1, N/(2Q))``.

    ``N ← b N + (1 - b) Σ pᵢ‖Δᵢ‖²/Σ pᵢ`` and ``Q ← b Q + (1 - b) ‖Δ̄‖²``, in the first round the
    values themselves. After that, a round whose mean update happens to be short no longer asks for
    a huge step, so no ``ε`` is needed, and ``η`` does not change with the scale of the parameters.
    In the first round there is nothing to smooth by: where clients may cancel each other, limit the
    step by ``robust`` or ``max_step_size``. With ``b = 0`` it is FedExP's step with ``ε = 0``. The
    smoothing is ours; the ratio is that of Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Attributes:
        smoothing: ``b``, in [0, 1).
    """

    smoothing: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"RunningRatio(smoothing={self.smoothing}): must be in [0, 1). Use 0.5."
            )

    def check(self, direction: Direction) -> None:
        """Raise ``ValueError`` for directions that rescale each coordinate."""
        if isinstance(direction, Adagrad | Adam | Yogi):
            raise ValueError(
                f"RunningRatio(smoothing={self.smoothing}): has no meaning along {direction}. "
                "Use Identity or Momentum."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """``η`` of this round."""
        b, old = self.smoothing, state.get("running-ratio")
        now = {"mean-sq-norm": stats.mean_sq_norm, "sq-norm-mean": sq_norm(stats.mean_update)}
        # The means weigh rounds alike in N and Q, so their ratio is a mean over rounds of the
        # rounds' ratios, weighted by how long each mean update was.
        new = {k: float(b * old[k] + (1 - b) * x) if old else x for k, x in now.items()}
        memory: State = {"running-ratio": {k: np.asarray(x) for k, x in new.items()}}
        n, q = new.values()
        # Nothing moved yet: there is nothing to extrapolate.
        return max(1.0, n / (2 * q)) if q > 0 else 1.0, state | memory
