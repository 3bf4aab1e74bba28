"""Which numbers a setting may be, and how a line says it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """The numbers between two bounds.

    Attributes:
        least: the lower bound.
        most: the upper bound.
        ends: ``[`` or ``(``, then ``]`` or ``)``: which of the bounds belong to it.
        whole: whether they are integers.

    Example:
        >>> from fedexp.clients.ranges import Range
        >>> Range(0, 1, "[)").fault(1)
        'must be at least 0 and less than 1'
        >>> Range().fault(float("nan")), Range().fault(0.5)
        ('must be a finite number', '')
    """

    least: float = 0
    most: float = inf
    ends: str = "[)"
    whole: bool = False

    def fault(self, value: Any) -> str:
        """What is wrong with ``value``, as the end of a line; empty if nothing."""
        if not is_real(value):
            return "must be a number"
        if self.whole and not (isfinite(value) and value == int(value)):
            return "must be a whole number"
        above = value > self.least or (value == self.least and self.ends[0] == "[")
        below = value < self.most or (value == self.most and self.ends[1] == "]")
        if above and below:
            return ""
        return f"must be {self}" if isfinite(value) else "must be a finite number"

    def __str__(self) -> str:
        low = "at least" if self.ends[0] == "[" else "greater than"
        high = "at most" if self.ends[1] == "]" else "less than"
        upper = f" and {high} {self.most:g}" if isfinite(self.most) else ""
        return f"{low} {self.least:g}{upper}"


POSITIVE = Range(ends="()")
SHARE = Range(0, 1, "[)")


def is_real(value: Any, *, whole: bool = False) -> bool:
    """Whether ``value`` is a number; a truth value, an int for Python, is none."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
