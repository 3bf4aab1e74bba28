"""Anderson acceleration: the server's step from what the last few rounds have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedexp.arrays import Float64s
from fedexp.strategies.directions import SHIFT, State
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.step_sizes import ITERATE

_MAX_CONDITION = 1e6  # the updates of models in float32 are known to about 1e-7
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
@with_kinds
class Anderson:
    """Anderson acceleration over the last ``m`` rounds, for rounds of all clients.

    ``w ← w - W γ - η (Δ̄ - D γ)`` with ``γ = argmin ‖Δ̄ - D γ‖``. The columns of ``W`` and ``D`` are
    the differences of successive iterates and of successive mean updates; ``d = Δ̄ - D γ`` is what
    they do not explain of ``Δ̄``, and ``η`` mixes it in. Anderson 1965, doi:10.1145/321296.321305;
    the form is that of Walker & Ni 2011, doi:10.1137/10078356X. Its use for federations, with
    FedExP's step as ``η``, is our own.

    If ``Δ̄`` is linear in ``w``, on ``m`` dimensions or fewer, one step more than there are
    dimensions ends at the solution. Columns that are zero, not finite or nearly dependent are
    dropped, the oldest first; without columns the step is the plain one along ``Δ̄``. The server
    holds ``2m + 2`` models. A limit on ``η`` is none on ``W γ``: leave the rule to clients that can
    be trusted.

    Attributes:
        window: ``m``, at least 1.
        sampled: whether the rule may be used when only some of the clients train in a round, where
            ``D`` is mostly the difference between sets of clients.

    Raises:
        ValueError: ``window`` is less than 1 or not whole.

    Example:
        ``Δ̄ = w/2``: from 4 the first step ends at 2. Then ``W = -2``, ``D = -1`` and ``γ = -1``, so
        the second one ends at ``2 - 2 - η · 0``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Anderson, ServerOptimizer
        >>> rule, w, state = ServerOptimizer(Anderson()), {"w": np.array([4.0])}, {}
        >>> for _ in range(2):
        ...     update = {"w": w["w"] / 2}
        ...     stats = PseudoGradientStats(1, 1.0, update, sq_norm=update["w"].item() ** 2)
        ...     w, state, eta = rule.step(w, stats, state)
        >>> abs(round(w["w"].item(), 12))
        0.0
    """

    window: int = 5
    sampled: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.window, int) and self.window >= 1):
            raise ValueError(
                f"Anderson(window={self.window}): must be a whole number of at least 1. Use 5."
            )

    @property
    def needs_all_clients(self) -> bool:
        """Whether all clients must train in every round."""
        return not self.sampled

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """The direction ``d``, and the state with ``W γ`` and the last iterates and updates."""
        now = {name: np.array(state[ITERATE][name], np.float64) for name in gradient}
        update = {name: np.array(x) for name, x in gradient.items()}
        iterates = _last(state, "anderson-iterate", now, self.window + 1)
        updates = _last(state, "anderson-update", update, self.window + 1)
        state = state | _named("anderson-iterate", iterates) | _named("anderson-update", updates)
        differences = _differences(updates)
        gamma = _least_squares(differences, _flat(update))
        if not len(gamma):
            return update, state
        explained = differences[:, -len(gamma) :] @ gamma
        shift = _differences(iterates)[:, -len(gamma) :] @ gamma
        direction = _like(update, _flat(update) - explained)
        return direction, state | {SHIFT: _like(update, shift)}


def _last(state: State, owner: str, new: Float64s, count: int) -> list[Float64s]:
    """The last ``count`` models of an owner, the oldest first, with the ``new`` one."""
    old = [state[name] for i in range(count) if (name := f"{owner}-{i}") in state]
    return [*old, new][-count:]


def _named(owner: str, models: Sequence[Float64s]) -> State:
    return {f"{owner}-{i}": model for i, model in enumerate(models)}


def _flat(model: Float64s) -> Matrix:
    return np.concatenate([np.ravel(x) for x in model.values()])


def _like(model: Float64s, flat: Matrix) -> Float64s:
    """The entries of ``flat`` in the names and shapes of ``model``."""
    ends = np.cumsum([x.size for x in model.values()])
    parts = zip(model.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: part.reshape(x.shape) for (name, x), part in parts}


def _differences(models: Sequence[Float64s]) -> Matrix:
    """Of each model to the one before it, as columns."""
    return np.diff([_flat(model) for model in models], axis=0).T


def _least_squares(columns: Matrix, target: Matrix) -> Matrix:
    """``γ`` of as many of the last columns as determine it; empty if none does."""
    for first in range(max(0, columns.shape[1] - len(target)), columns.shape[1]):
        used = columns[:, first:]
        lengths = np.linalg.norm(used, axis=0)
        if not (np.isfinite(lengths).all() and lengths.all()):
            continue
        # Columns of one length: near the solution they all are short, which is no dependence.
        gamma, _, _, singular = np.linalg.lstsq(used / lengths, target, rcond=None)
        if singular[0] <= _MAX_CONDITION * singular[-1] and np.isfinite(gamma).all():
            return np.asarray(gamma / lengths)
    return np.zeros(0)
