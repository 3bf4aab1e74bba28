"""The server rules of ``experiments.untried_rules``, which need the norms of single arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedexp.arrays import Arrays, Float64s
from fedexp.strategies import FedOpt, Identity
from fedexp.strategies.directions import Direction, State
from fedexp.strategies.replies import Replies
from fedexp.strategies.step_sizes import ITERATE
from fedexp.wire import ClientResult, ReplyFormat

SQ_NORMS = "mean-sq-norms"
"""The entry of the state that holds ``Σ pᵢ‖Δᵢ‖²/Σ pᵢ`` of each array by itself."""
RESULT = "schedule-free-x"
"""The entry that holds the model which schedule-free descent returns."""


@dataclass(frozen=True, eq=False)
class Measuring(ReplyFormat):
    """A way to read replies that adds up ``pᵢ‖Δᵢ‖²`` of each array as they are admitted.

    The sums of a round hold the norm of whole updates alone.
    """

    sq_norms: dict[str, float] = field(default_factory=dict)

    def admitted(
        self, result: ClientResult, before: Arrays, *, look_at_updates: bool = False
    ) -> ClientResult:
        """As of every format; it is called once for each reply."""
        result = super().admitted(result, before, look_at_updates=look_at_updates)
        for name, after in result.arrays.items():
            update = before[name].astype(np.float64) - after
            more = result.weight * float(np.sum(np.square(update)))
            self.sq_norms[name] = self.sq_norms.get(name, 0.0) + more
        return result


class ArrayNorms(FedOpt):
    """Any server step, whose direction finds the norms of single arrays in the state."""

    def begin(self, params: Arrays, server_round: int = 0) -> None:
        """Measure the arrays of the replies that will come."""
        super().begin(params, server_round)
        reading = Measuring(**vars(self.reading()))
        self.round = replace(self._round(), reading=reading)

    def finish(
        self, server_round: int, replies: Replies
    ) -> tuple[Arrays, dict[str, int | float]] | None:
        """Take the server step with what was measured."""
        sums, weight = cast(Measuring, self.reading()).sq_norms, replies.stats.weight
        self.state = self.state | {SQ_NORMS: {k: np.asarray(x / weight) for k, x in sums.items()}}
        return super().finish(server_round, replies)


def running(owner: str, now: Float64s, b: float, state: State) -> tuple[Float64s, State]:
    """Running means with the weight ``b`` of the past, from the values of round 1 on."""
    old = state.get(owner, now)
    new = {name: np.asarray(b * old[name] + (1 - b) * x) for name, x in now.items()}
    return new, state | {owner: new}


def by_layer(values: Float64s) -> Float64s:
    """Sums over the arrays of each layer."""
    layers: dict[str, NDArray[np.float64]] = {}
    for name, x in values.items():
        layers[layer_of(name)] = np.asarray(layers.get(layer_of(name), 0.0) + x)
    return layers


def layer_of(name: str) -> str:
    """``0.weight`` and ``0.bias`` belong to the layer ``0``."""
    return name.rpartition(".")[0]


def sq_norms(model: Float64s) -> Float64s:
    """``‖x‖²`` of each array."""
    return {name: np.asarray(np.sum(np.square(x))) for name, x in model.items()}


@dataclass(frozen=True)
class PerLayer:
    """A direction, each layer ``l`` of which is multiplied by ``max(1, N_l/(2Q_l))``.

    ``N_l`` and ``Q_l`` are the running means of ``Σ pᵢ‖Δᵢ,l‖²/Σ pᵢ`` and ``‖Δ̄_l‖²``, as in
    ``RunningRatio``, which has the norms of whole updates in their place.
    """

    direction: Direction = field(default_factory=Identity)
    smoothing: float = 0.5

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """``d`` with the steps of the layers in it; it goes with the step size 1."""
        d, state = self.direction(gradient, state)
        lengths = {name: state[SQ_NORMS][name] for name in gradient}
        n, state = running("layer-n", by_layer(lengths), self.smoothing, state)
        q, state = running("layer-q", by_layer(sq_norms(gradient)), self.smoothing, state)
        eta = {layer: extrapolation(n[layer], q[layer]) for layer in n}
        return {name: np.asarray(eta[layer_of(name)] * x) for name, x in d.items()}, state


def extrapolation(n: Any, q: Any) -> float:
    """FedExP's step ``max(1, N/(2Q))``, 1 where nothing has moved."""
    return max(1.0, float(n / (2 * q))) if q > 0 else 1.0


@dataclass(frozen=True)
class ScheduleFreeExP:
    """Schedule-free descent with the running ratio as its step ``η``.

    ``z ← z - η Δ̄(y)``, ``x ← (1 - c) x + c z`` and ``y ← β x + (1 - β) z``, as in
    ``ScheduleFree``. The weight ``c`` of round ``t`` is ``1/t`` or ``η²/Σ η²``, the sum over the
    rounds so far.
    """

    weights: Literal["1/t", "η²"] = "η²"
    beta: float = 0.9
    smoothing: float = 0.5

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """``y - y'``, the whole step; it goes with the step size 1."""
        y = {name: np.array(state[ITERATE][name], np.float64) for name in gradient}
        n, q = {name: state[SQ_NORMS][name] for name in gradient}, sq_norms(gradient)
        now = {"n": np.asarray(sum(n.values())), "q": np.asarray(sum(q.values()))}
        means, state = running("schedule-free-means", now, self.smoothing, state)
        eta = extrapolation(means["n"], means["q"])
        weight = 1.0 if self.weights == "1/t" else eta**2
        total = weight + float(state.get("schedule-free-weight", {"total": 0.0})["total"])
        c, old_z, old_x = weight / total, state.get("schedule-free-z", y), state.get(RESULT, y)
        z = {name: np.asarray(old_z[name] - eta * g) for name, g in gradient.items()}
        x = {name: np.asarray((1 - c) * old_x[name] + c * z[name]) for name in z}
        # The distance from what the clients had, so that rounding y to float32 does not add up.
        d = {k: np.asarray(y[k] - self.beta * x[k] - (1 - self.beta) * z[k]) for k in z}
        memory: State = {
            "schedule-free-z": z,
            RESULT: x,
            "schedule-free-weight": {"total": np.asarray(total)},
        }
        return d, state | memory
