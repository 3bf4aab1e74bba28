"""How a hyperparameter is walked on: its range, its unconstrained form, and guards.

Everything here works on Python floats (the optimizers' fast path) and on tensors (the
functional towers, also under `torch.func.vmap`): operators only, no branch on a tensor's value.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = Any
"""A Python float or a tensor; mypy has no name for "closed under the arithmetic operators"."""

HALVES = frozenset({torch.float16, torch.bfloat16})
Form: TypeAlias = Literal["additive", "log", "tanh"]


@dataclass(frozen=True)
class Scale:
    """The axis a hyperparameter ``h`` is tuned on.

    ``additive``: ``θ = h``; ``log``: ``θ = log h``; ``tanh``: ``h = (tanh θ + 1) / 2``.

    Attributes:
        form: The map between ``h`` and ``θ``.
        low: Least value of ``h``; above 0 unless additive.
        high: Greatest value of ``h``; below 1 for ``tanh``.
    """

    form: Form
    low: float
    high: float

    def raw(self, value: Number) -> Number:
        """``θ`` of a value ``h``."""
        if self.form == "additive":
            return value
        value = clip(value, self.low, self.high)
        return log(value) if self.form == "log" else log(value / (1 - value)) / 2

    def natural(self, raw: Number, otherwise: Number) -> Number:
        """``h`` of ``θ``, inside the range; the value ``otherwise`` where ``θ`` is not finite."""
        if self.form != "additive":
            raw = clip(raw, *self._ends)
            raw = math.e**raw if self.form == "log" else 1 / (1 + math.e ** (-2 * raw))
        return finite(clip(raw, self.low, self.high), otherwise)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return self.raw(self.low), self.raw(self.high)

    def speed(self, value: Number) -> Number:
        """``dh/dθ`` at a value ``h``."""
        if self.form == "additive":
            return 1.0
        return value if self.form == "log" else 2 * value * (1 - value)


BETWEEN_0_AND_1 = Scale("tanh", 1e-6, 1 - 1e-6)


def clip(x: Number, low: float, high: float) -> Number:
    """``x`` held inside ``[low, high]``; NaN stays NaN."""
    if isinstance(x, Tensor):
        return x.clamp(low, high)
    return low if x < low else high if x > high else x


def finite(x: Number, otherwise: Number) -> Number:
    """``x`` where it is finite, else ``otherwise``."""
    if isinstance(x, Tensor):
        return torch.where(x.isfinite(), x, otherwise)
    return x if math.isfinite(x) else otherwise


def log(x: Number) -> Number:
    """Natural logarithm of a float or a tensor."""
    return x.log() if isinstance(x, Tensor) else math.log(x)


def wide(x: Tensor) -> Tensor:
    """Halves as float32, others as they are: a sum of products of halves may fit in none."""
    return x.float() if x.dtype in HALVES else x


def no_zero(x: Number) -> Number:
    """``x`` with zeros replaced by one: a divisor for numerators that vanish with it."""
    return x + (x == 0)
