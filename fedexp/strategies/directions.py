"""Directions of the server step: which way to go, from the mean pseudo-gradient.

``w ← w - η d`` with ``d = direction(Δ̄)``, where ``Δ̄`` is the mean of ``Δᵢ = w - wᵢ``. Directions
are pure: what they remember comes in and goes out as arrays by owner and name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedexp.arrays import Float64s

State = dict[str, Float64s]
"""What rules remember between rounds: ``{}`` at the start, arrays by owner and name after."""

Array = NDArray[np.float64]


class Direction(Protocol):
    """Which way to go: ``(Δ̄, state) -> (d, state)``."""

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """Direction for the mean pseudo-gradient ``gradient``."""
        ...


@dataclass(frozen=True)
class Identity:
    """The mean pseudo-gradient itself, ``d = Δ̄``: FedAvg's direction."""

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """Return ``gradient``."""
        return gradient, state


@dataclass(frozen=True)
class Momentum:
    """Server momentum: ``m ← Δ̄ + β m`` with ``m₀ = 0``; ``d = m``.

    With ``nesterov``, ``d = Δ̄ + β m`` (of the new ``m``). Both are the forms of
    ``torch.optim.SGD`` without dampening: ``m`` sums up to ``1/(1 - β)`` of a steady ``Δ̄``.
    Hsu, Qi & Brown 2019, arXiv:1909.06335.

    Attributes:
        beta: ``β``, in [0, 1).
        nesterov: look one step ahead.
    """

    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_fraction(self, beta=self.beta)

    def __call__(self, gradient: Float64s, state: State) -> tuple[Float64s, State]:
        """``d`` of this round."""
        old = state.get("momentum")
        m = {k: _array(g if old is None else g + self.beta * old[k]) for k, g in gradient.items()}
        d = {k: _array(gradient[k] + self.beta * m[k]) for k in m} if self.nesterov else m
        return d, state | {"momentum": m}


@dataclass(frozen=True)
class _Adaptive:
    """``m ← β₁ m + (1 - β₁) Δ̄``, ``v`` by the subclass, ``d = m/(√v + τ)``; elementwise.

    ``m₀ = 0`` and ``v₀ = τ²``. Reddi et al. 2021, arXiv:2003.00295, alg. 2.

    Attributes:
        beta_1: ``β₁``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units; large is close to plain averaging.
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
        """``d`` of this round."""
        start = self.tau**2 if self.initial is None else self.initial
        ms, vs = state.get("first-moment", {}), state.get("second-moment", {})
        t = int(state["moments"]["round"]) + 1 if "moments" in state else 1
        b = self.beta_1
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
class Adagrad(_Adaptive):
    """FedAdagrad: ``v ← v + Δ̄²``, ``d = m/(√v + τ)``; with ``β₁ = 0``, ``m = Δ̄``.

    Reddi et al. 2021, arXiv:2003.00295, alg. 2. ``m₀ = 0``, ``v₀ = τ²``; ``β₂`` has no part.
    Attributes as in ``Adam``.
    """

    beta_1: float = 0.0

    def _second_moment(self, v: Array, square: Array) -> Array:
        return v + square


@dataclass(frozen=True)
class Adam(_Adaptive):
    """FedAdam: ``v ← β₂ v + (1 - β₂) Δ̄²``, ``d = m/(√v + τ)``, ``m ← β₁ m + (1 - β₁) Δ̄``.

    Reddi et al. 2021, arXiv:2003.00295, alg. 2. ``m₀ = 0`` and ``v₀ = τ²``. The bias of ``m`` and
    ``v`` towards their start is a choice:

    - ``"none"``, the paper's and the default: a small first step, as if warmed up.
    - ``"adam"``: ``d = m̂/(√v̂ + τ)``, ``m̂ = m/(1 - β₁ᵗ)``, ``v̂ = v/(1 - β₂ᵗ)``. Kingma & Ba 2015,
      arXiv:1412.6980; with ``initial=0`` this is ``torch.optim.Adam``.
    - ``"flower"``: ``d = √(1 - β₂ᵗ⁺¹)/(1 - β₁ᵗ⁺¹) · m/(√v + τ)``, what Flower 1.41 computes.

    Attributes:
        beta_1: ``β₁``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units; large is close to plain averaging.
        initial: ``v₀``; ``τ²`` if None, as in the paper. Flower starts at 0.
        bias_correction: which of the three.
    """

    bias_correction: Literal["none", "adam", "flower"] = "none"

    def _second_moment(self, v: Array, square: Array) -> Array:
        return self.beta_2 * v + (1 - self.beta_2) * square

    def _ratio(self, m: Array, v: Array, t: int) -> Array:
        if self.bias_correction == "none":
            return super()._ratio(m, v, t)
        power = t if self.bias_correction == "adam" else t + 1
        first, second = 1 - self.beta_1**power, 1 - self.beta_2**power
        if self.bias_correction == "adam":
            return super()._ratio(m / first, v / second, t)
        return float(second**0.5 / first) * super()._ratio(m, v, t)


@dataclass(frozen=True)
class Yogi(_Adaptive):
    """FedYogi: ``v ← v - (1 - β₂) Δ̄² sign(v - Δ̄²)``, ``d = m/(√v + τ)``.

    Reddi et al. 2021, arXiv:2003.00295, alg. 2: ``v`` moves by at most ``(1 - β₂) Δ̄²``, so one
    large round is forgotten slowly. ``m₀ = 0``, ``v₀ = τ²``, no bias correction. Attributes as in
    ``Adam``.
    """

    def _second_moment(self, v: Array, square: Array) -> Array:
        return v - (1 - self.beta_2) * square * np.sign(v - square)


def _array(x: Array) -> Array:
    return np.asarray(x)  # a scalar parameter stays an array


def _check_fraction(owner: object, **fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(
                f"{type(owner).__name__}({name}={value}): must be in [0, 1). Use 0.0 for no memory."
            )
