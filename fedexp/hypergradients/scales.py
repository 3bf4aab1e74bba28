"""The axis on which a hyperparameter is tuned: its range, its unconstrained form, and guards.

All of this works on Python floats, which the optimizers use, and on tensors, which `Tower` uses,
also under `torch.func.vmap`. So there are only operators, and no branch on the value of a tensor.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = Any
"""A Python float or a tensor. The type system has no name for what has arithmetic operators."""

HALVES = frozenset({torch.float16, torch.bfloat16})
LEAST = {
    **{dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64, torch.bfloat16)},
    torch.float16: 2.0**-24,
}
"""The least divisors, in place of ``√v = 0`` where the numerator is 0 too.

Other roots stay as they are: that of the least number above 0 is far greater. In float16 the least
divisor is no normal number: the least of these is 6e-5.
"""
Form: TypeAlias = Literal["additive", "log", "tanh"]


@dataclass(frozen=True)
class Scale:
    """The axis on which a hyperparameter ``h`` is tuned: a rule moves the number ``θ``.

    ``additive``: ``θ = h``; ``log``: ``θ = log h``; ``tanh``: ``h = (tanh θ + 1) / 2``, as
    Chandra et al. 2022, arXiv:1909.13371, tune the betas of Adam.

    Attributes:
        form: The map between ``h`` and ``θ``.
        low: The least value of ``h``; above 0 unless additive.
        high: The greatest value of ``h``; below 1 for ``tanh``.

    Example:
        >>> from fedexp.hypergradients.scales import Scale
        >>> scale = Scale("log", 1e-12, 1e3)
        >>> scale.raw(1.0), scale.natural(0.0, otherwise=0.5), scale.speed(2.0)
        (0.0, 1.0, 2.0)
        >>> scale.natural(float("nan"), otherwise=0.5)
        0.5
    """

    form: Form
    low: float
    high: float

    def raw(self, value: Number) -> Number:
        """``θ`` at a value of ``h``."""
        if self.form == "additive":
            return value
        value = clip(value, self.low, self.high)
        return log(value) if self.form == "log" else log(value / (1 - value)) / 2

    def natural(self, raw: Number, otherwise: Number) -> Number:
        """``h`` at ``θ``, clipped to the range; ``otherwise`` where ``θ`` is not finite."""
        if self.form != "additive":
            raw = clip(raw, *self._ends)  # Before the exponential, which may overflow.
            raw = math.e**raw if self.form == "log" else 1 / (1 + math.e ** (-2 * raw))
        return finite(clip(raw, self.low, self.high), otherwise)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return self.raw(self.low), self.raw(self.high)

    def speed(self, value: Number) -> Number:
        """``dh/dθ`` at a value of ``h``."""
        if self.form == "additive":
            return 1.0
        return value if self.form == "log" else 2 * value * (1 - value)


BETWEEN_0_AND_1 = Scale("tanh", 1e-6, 1 - 1e-6)
"""The scale of the betas of Adam, and the like."""


def clip(x: Number, low: float, high: float) -> Number:
    """``x`` clipped to ``[low, high]``; NaN stays NaN.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.scales import clip
        >>> clip(5.0, 0.0, 1.0), clip(torch.tensor(-5.0), 0.0, 1.0)
        (1.0, tensor(0.))
    """
    if isinstance(x, Tensor):
        return x.clamp(low, high)
    return low if x < low else high if x > high else x


def finite(x: Number, otherwise: Number) -> Number:
    """``x`` where it is finite, else ``otherwise``.

    Example:
        >>> from fedexp.hypergradients.scales import finite
        >>> finite(2.0, 0.0), finite(float("inf"), 0.0)
        (2.0, 0.0)
    """
    if isinstance(x, Tensor):
        return torch.where(x.isfinite(), x, otherwise)
    return x if math.isfinite(x) else otherwise


def log(x: Number) -> Number:
    """The natural logarithm of a float or a tensor.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.scales import log
        >>> log(1.0), log(torch.ones(()))
        (0.0, tensor(0.))
    """
    return x.log() if isinstance(x, Tensor) else math.log(x)


def wide(x: Tensor) -> Tensor:
    """A half-precision tensor as float32, others as they are.

    Inner products need it: a sum of products of float16 numbers may be too large for float16.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.scales import wide
        >>> wide(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return x.float() if x.dtype in HALVES else x


def no_zero(x: Number) -> Number:
    """``x`` with ones in place of zeros: a divisor, where the numerator is 0 too.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.scales import no_zero
        >>> 0.0 / no_zero(0.0), no_zero(torch.tensor([0.0, 2.0]))
        (0.0, tensor([1., 2.]))
    """
    return x + (x == 0)
