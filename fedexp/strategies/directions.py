"""Directions of the server step: which way to go, from the mean pseudo-gradient.

The server steps ``w ← w - η d`` with ``d = direction(Δ̄)``, where ``Δ̄`` is the mean of the clients'
``Δᵢ = w - wᵢ``. A direction is a pure function: it takes its memory as an argument and returns the
new one. The memory holds arrays by owner and name, so that a checkpoint can save it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedexp.arrays import Float64s
from fedexp.strategies.kinds import with_kinds

State = dict[str, Float64s]
"""What rules remember between rounds: ``{}`` at the start, arrays by owner and name after."""

Array = NDArray[np.float64]


SHIFT = "shift"
"""The entry of the state in which a direction leaves a step of its own, which has no step size."""


class Direction(Protocol):
    """Which way to go: ``(Δ̄, state) -> (d, state)``.

    A direction that works with some step sizes only has a method ``check(step_size)``, which
    raises ``ValueError`` for the others.
    """

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """Direction for the mean pseudo-gradient ``gradient``."""
        ...


@dataclass(frozen=True)
class Identity:
    """The mean pseudo-gradient itself, ``d = Δ̄``. This is FedAvg's direction.

    Example:
        >>> from fedexp.strategies import Identity
        >>> direction, state = Identity()({"w": 2.0}, {})
        >>> direction, state
        ({'w': 2.0}, {})
    """

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """Return ``gradient``."""
        return gradient, state


@dataclass(frozen=True)
@with_kinds
class Momentum:
    """Server momentum: ``m ← Δ̄ + β m`` with ``m₀ = 0``, and ``d = m``.

    With ``nesterov``, ``d = Δ̄ + β m`` of the new ``m``. Both are the forms of
    ``torch.optim.SGD`` without dampening: if ``Δ̄`` stays the same, ``m`` grows to ``Δ̄/(1 - β)``.
    Hsu, Qi & Brown 2019, arXiv:1909.06335.

    Attributes:
        beta: ``β``, in [0, 1).
        nesterov: whether to look one step ahead.

    Raises:
        ValueError: ``beta`` is out of its range.

    Example:
        Two rounds with ``Δ̄ = 2`` give ``m = 2``, then ``m = 2 + 0.5 · 2``.

        >>> import numpy as np
        >>> from fedexp.strategies import Momentum
        >>> rule, update = Momentum(beta=0.5), {"w": np.array([2.0])}
        >>> first, state = rule(update, {})
        >>> second, state = rule(update, state)
        >>> first["w"].item(), second["w"].item()
        (2.0, 3.0)
    """

    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_fraction(self, beta=self.beta)

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """The direction ``d`` of this round, and the state with the new ``m``."""
        old = state.get("momentum")
        m = {k: _array(g if old is None else g + self.beta * old[k]) for k, g in gradient.items()}
        d = {k: _array(gradient[k] + self.beta * m[k]) for k in m} if self.nesterov else m
        return d, state | {"momentum": m}


@dataclass(frozen=True)
@with_kinds
class AdaptiveDirection:
    """``m ← β₁ m + (1 - β₁) Δ̄``, ``v`` by the subclass, ``d = m/(√v + τ)``; elementwise.

    ``m₀ = 0`` and ``v₀ = τ²``. Reddi et al. 2021, arXiv:2003.00295, alg. 2.

    Attributes:
        beta_1: ``β₁``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units; a large one comes close to plain averaging.
        initial: ``v₀``; ``τ²`` if None, as in the paper. Flower starts at 0.
    """

    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    initial: float | None = None

    def __post_init__(self) -> None:
        _check_fraction(self, beta_1=self.beta_1, beta_2=self.beta_2)
        if not self.tau > 0:
            raise ValueError(
                f"{type(self).__name__}(tau={self.tau}): must be > 0. Use 1e-3, the paper's value."
            )

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """The direction ``d`` of this round, and the state with the new ``m`` and ``v``."""
        start = self.tau**2 if self.initial is None else self.initial
        ms, vs = state.get("first-moment", {}), state.get("second-moment", {})
        t = int(state["moments"]["round"]) + 1 if "moments" in state else 1
        b = self.beta_1
        # Without state this is round 1: m₀ = 0 drops out of the sum, and v starts at v₀.
        m = {k: _array(b * ms[k] + (1 - b) * g if ms else (1 - b) * g) for k, g in gradient.items()}
        v = {
            k: _array(self._second_moment(vs[k] if vs else np.full_like(g, start), np.square(g)))
            for k, g in gradient.items()
        }
        d = {k: _array(self._ratio(m[k], v[k], t)) for k in gradient}
        moments = {"round": np.asarray(float(t))}
        return d, state | {"first-moment": m, "second-moment": v, "moments": moments}

    def _second_moment(self, v: Array, square: Array) -> Array:
        raise NotImplementedError

    def _ratio(self, m: Array, v: Array, t: int) -> Array:
        return m / (np.sqrt(v) + self.tau)


@dataclass(frozen=True)
@with_kinds
class Adagrad(AdaptiveDirection):
    """FedAdagrad: ``v ← v + Δ̄²``, ``d = m/(√v + τ)``; with ``β₁ = 0``, ``m = Δ̄``.

    Reddi et al. 2021, arXiv:2003.00295, alg. 2. ``m₀ = 0`` and ``v₀ = τ²``; ``β₂`` is not used.
    The attributes are those of ``Adam``.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        With ``v₀ = 0`` and ``τ = 1``, ``Δ̄ = 3`` gives ``d = 3/(3 + 1)``.

        >>> import numpy as np
        >>> from fedexp.strategies import Adagrad
        >>> direction, _ = Adagrad(tau=1.0, initial=0.0)({"w": np.array([3.0])}, {})
        >>> direction["w"].item()
        0.75
    """

    beta_1: float = 0.0

    def _second_moment(self, v: Array, square: Array) -> Array:
        return v + square


@dataclass(frozen=True)
class Adam(AdaptiveDirection):
    """FedAdam: ``v ← β₂ v + (1 - β₂) Δ̄²``, ``d = m/(√v + τ)``, ``m ← β₁ m + (1 - β₁) Δ̄``.

    Reddi et al. 2021, arXiv:2003.00295, alg. 2. ``m₀ = 0`` and ``v₀ = τ²``. In the first rounds
    ``m`` and ``v`` are still close to these. ``bias_correction`` says what is done about it:

    - ``"none"`` does nothing, as in the paper. The first steps are small, as in a warm-up.
    - ``"adam"`` divides by the weight of the rounds so far: ``d = m̂/(√v̂ + τ)`` with
      ``m̂ = m/(1 - β₁ᵗ)`` and ``v̂ = v/(1 - β₂ᵗ)``. Kingma & Ba 2015, arXiv:1412.6980; with
      ``initial=0`` this is ``torch.optim.Adam``.
    - ``"flower"`` does what Flower 1.41 does: ``d = √(1 - β₂ᵗ⁺¹)/(1 - β₁ᵗ⁺¹) · m/(√v + τ)``.

    Attributes:
        beta_1: ``β₁``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units; a large one comes close to plain averaging.
        initial: ``v₀``; ``τ²`` if None, as in the paper. Flower starts at 0.
        bias_correction: ``"none"``, ``"adam"`` or ``"flower"``.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        With Adam's correction and a small ``τ``, the first direction is the sign of ``Δ̄``.

        >>> import numpy as np
        >>> from fedexp.strategies import Adam
        >>> rule = Adam(tau=1e-12, initial=0.0, bias_correction="adam")
        >>> direction, _ = rule({"w": np.array([-4.0, 0.25])}, {})
        >>> direction["w"].round(6).tolist()
        [-1.0, 1.0]
    """

    bias_correction: Literal["none", "adam", "flower"] = "none"

    def _second_moment(self, v: Array, square: Array) -> Array:
        return self.beta_2 * v + (1 - self.beta_2) * square

    def _ratio(self, m: Array, v: Array, t: int) -> Array:
        if self.bias_correction == "none":
            return super()._ratio(m, v, t)
        # 1 - βᵗ is the sum of the weights that the t rounds have in m (or v), so that m/(1 - βᵗ) is
        # their weighted mean. Flower's power is one more, though it counts rounds from 1 as we do.
        power = t if self.bias_correction == "adam" else t + 1
        first, second = 1 - self.beta_1**power, 1 - self.beta_2**power
        if self.bias_correction == "adam":
            return super()._ratio(m / first, v / second, t)
        return float(second**0.5 / first) * super()._ratio(m, v, t)


@dataclass(frozen=True)
class Yogi(AdaptiveDirection):
    """FedYogi: ``v ← v - (1 - β₂) Δ̄² sign(v - Δ̄²)``, ``d = m/(√v + τ)``.

    Reddi et al. 2021, arXiv:2003.00295, alg. 2. One round changes ``v`` by ``(1 - β₂) Δ̄²``, however
    large ``v`` is, so that Yogi forgets a large round more slowly than Adam does. ``m₀ = 0`` and
    ``v₀ = τ²``, without bias correction. The attributes are those of ``Adam``.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        ``Δ̄ = 2`` gives ``v = 0.01 · 4``. Then ``Δ̄ = 0.1`` takes only ``0.01 · 0.01`` off it, where
        Adam would take off 1 %.

        >>> import numpy as np
        >>> from fedexp.strategies import Yogi
        >>> rule = Yogi(beta_2=0.99, initial=0.0)
        >>> _, state = rule({"w": np.array([2.0])}, {})
        >>> _, state = rule({"w": np.array([0.1])}, state)
        >>> round(state["second-moment"]["w"].item(), 6)
        0.0399
    """

    def _second_moment(self, v: Array, square: Array) -> Array:
        # Adam subtracts (1 - β₂)(v - Δ̄²), in proportion to v. Yogi keeps the sign of that
        # difference alone: v moves towards Δ̄², by an amount that v has no part in.
        return v - (1 - self.beta_2) * square * np.sign(v - square)


def _array(x: Array) -> Array:
    return np.asarray(x)  # a scalar parameter stays an array


def _check_fraction(owner: object, **fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(
                f"{type(owner).__name__}({name}={value}): must be in [0, 1). Use 0.0 for no memory."
            )
