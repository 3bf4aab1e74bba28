"""How strong an augmentation, or how large a learning rate, is at each step.

A schedule is any callable from a client's global step index ``t = 0, 1, ...`` to a number. The
index does not start again with a round, so a schedule spans rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isfinite

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class PowerLaw:
    """A value that falls with a power of time, ``s_t = scale · (t + offset)^-exponent``.

    Hanin & Sun 2021, arXiv:2010.11171, write ``eta_t = Θ(t^-x)`` and ``sigma_t² = Θ(t^-y)``. So the
    exponent of a learning rate is ``x``, and that of the noise ``sigma_t`` is ``y/2``.

    Attributes:
        scale: the value at ``t + offset = 1``, at least 0; in the units of what is scheduled.
        exponent: at least 0; 0 is a constant.
        offset: greater than 0; a larger one delays the decay.

    Raises:
        ValueError: one of them is not a finite number or lies outside its range.

    Example:
        >>> from fedexp.augmentation import PowerLaw
        >>> eta = PowerLaw(0.5, exponent=1.0)
        >>> eta(0), eta(1), eta(4)
        (0.5, 0.25, 0.1)
        >>> PowerLaw(3.0, exponent=0.5).squared
        PowerLaw(scale=9.0, exponent=1.0, offset=1.0)
    """

    scale: float = 1.0
    exponent: float = 0.0
    offset: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # A truth value is an int for Python, but no exponent.
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and isfinite(value)):
                raise ValueError(f"PowerLaw({field.name}={value!r}): must be a finite number.")
            if value < 0:
                raise ValueError(f"PowerLaw({field.name}={value}): must be >= 0.")
        if self.offset == 0:
            raise ValueError("PowerLaw(offset=0): must be > 0. Step 0 has no power otherwise.")

    def __call__(self, step: int) -> float:
        """The value at a step, ``t >= 0``."""
        return float(self.scale * (step + self.offset) ** -self.exponent)

    @property
    def squared(self) -> PowerLaw:
        """The schedule of the squared value, e.g. ``sigma_t²`` of ``sigma_t``."""
        return PowerLaw(self.scale**2, 2 * self.exponent, self.offset)


def constant(value: float) -> PowerLaw:
    """The same value at every step: a power law with exponent 0.

    Raises:
        ValueError: the value is negative or not a number.

    Example:
        >>> from fedexp.augmentation import constant
        >>> constant(0.1)(0) == constant(0.1)(1000)
        True
    """
    return PowerLaw(value)
