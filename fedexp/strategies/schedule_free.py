"""Schedule-free steps: an average of the iterates in place of a falling step size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedexp.arrays import Float64s
from fedexp.strategies.directions import State
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.step_sizes import Capped, Constant, Relaxed, StepSize


@dataclass(frozen=True)
@with_kinds
class ScheduleFree:
    """Schedule-free descent: the clients start between the plain iterate ``z`` and its mean ``x``.

    ``z ← z - η Δ̄(y)``, ``x ← (1 - 1/t) x + z/t`` and ``y ← β x + (1 - β) z`` in round
    ``t = 1, 2, …``, all three equal at the start. The server sends ``y``, and the method's result
    is ``x``. Defazio et al. 2024, arXiv:2405.15682; its use at the server is our own.

    The server's model is ``y``, which moves along ``d = (1 - β) Δ̄ + (β/t) m`` with
    ``m ← (1 - 1/(t-1)) m + Δ̄``, a momentum that grows longer with the rounds. ``x`` follows from
    the iterates ``y``: it is ``PolynomialAverage(β/(1 - β))``, which is ``--average poly-9`` for
    ``β = 0.9``.

    Attributes:
        beta: ``β``, in [0, 1). 0 is plain descent, of which ``x`` is the mean of all iterates.

    Raises:
        ValueError: ``beta`` is out of its range.

    Example:
        With ``Δ̄ = 1`` twice, ``z`` is at -1 and -2, ``x`` at -1 and -1.5. So ``y = -1`` and, with
        ``β = ½``, ``y = -1.75``.

        >>> import numpy as np
        >>> from fedexp.strategies import ScheduleFree
        >>> rule, update = ScheduleFree(beta=0.5), {"w": np.array([1.0])}
        >>> first, state = rule(update, {})
        >>> second, state = rule(update, state)
        >>> first["w"].item(), second["w"].item()
        (1.0, 0.75)
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(
                f"ScheduleFree(beta={self.beta}): must be in [0, 1). Use 0.9, the authors' value."
            )

    def check(self, step_size: StepSize) -> None:
        """Raise ``ValueError`` for a ``step_size`` that is not the same in every round."""
        while isinstance(step_size, Capped | Relaxed):
            step_size = step_size.step_size
        if not isinstance(step_size, Constant):
            raise ValueError(
                f"{self}: its mean gives all rounds one weight, and so they must have one step. "
                f"Use Constant, not {type(step_size).__name__}."
            )

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """The direction ``d`` of this round, and the state with the new ``m`` and ``t``."""
        old = state.get("schedule-free")
        t = 1 + int(state["schedule-free-round"]["t"]) if old else 1
        # η m is x - z before the mean of round t is taken, with the x of the round before and the z
        # of this one. The mean then shortens the distance by the factor 1 - 1/t.
        kept = 1 - 1 / (t - 1) if t > 1 else 0.0
        m = {k: np.asarray(g + kept * old[k] if old else g * 1.0) for k, g in gradient.items()}
        d = {k: np.asarray((1 - self.beta) * g + self.beta / t * m[k]) for k, g in gradient.items()}
        memory: State = {"schedule-free": m, "schedule-free-round": {"t": np.asarray(float(t))}}
        return d, state | memory
