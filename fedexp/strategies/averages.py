"""Averages of the server's iterates, which are evaluated beside the last iterate.

A long server step makes the iterates swing around the solution; their average does not. Averages
are for evaluation only and never enter training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedexp.arrays import Arrays
from fedexp.strategies.kinds import with_kinds

Memory = dict[str, Arrays]
"""What an average remembers between rounds: ``{}`` at the start, models by name after."""


class Average(Protocol):
    """How iterates become one model: ``update`` after every round, ``mean`` when asked."""

    def update(self, memory: Memory, params: Arrays) -> Memory:
        """The memory after the iterate ``params``."""
        ...

    def mean(self, memory: Memory, trainable: frozenset[str]) -> Arrays:
        """The averaged model; arrays outside ``trainable`` are those of the last iterate."""
        ...


@dataclass(frozen=True)
@with_kinds
class MeanOfLast:
    """The mean of the last iterates, ``(w_{t-k+1} + … + w_t)/k``.

    Before round ``k`` it is the mean of all iterates so far. The FedExP paper reports ``k = 2``:
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Attributes:
        count: ``k``, at least 1.

    Raises:
        ValueError: ``count`` is less than 1.

    Example:
        >>> import numpy as np
        >>> from fedexp.strategies import MeanOfLast
        >>> average, memory = MeanOfLast(count=2), {}
        >>> for w in (9.0, 1.0, 3.0):
        ...     memory = average.update(memory, {"w": np.array([w])})
        >>> average.mean(memory, trainable=frozenset({"w"}))["w"].tolist()
        [2.0]
    """

    count: int = 2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"MeanOfLast(count={self.count}): must be at least 1. Use 2.")

    def update(self, memory: Memory, params: Arrays) -> Memory:
        """The memory with the last ``k`` iterates, the oldest first."""
        kept = [*memory.values(), params][-self.count :]
        return {f"iterate-{i}": iterate for i, iterate in enumerate(kept)}

    def mean(self, memory: Memory, trainable: frozenset[str]) -> Arrays:
        """The mean of the iterates in ``memory``, in the dtypes of the last one."""
        # Summed in float64: halves and floats of 32 bits would lose what the average is for.
        *_, last = memory.values()
        return {
            name: np.mean([w[name] for w in memory.values()], axis=0, dtype=np.float64).astype(
                x.dtype
            )
            if name in trainable
            else x
            for name, x in last.items()
        }


@dataclass(frozen=True)
@with_kinds
class MovingAverage:
    """An exponential moving average, ``x̄ ← b x̄ + (1 - b) w_t``, which starts at ``w_1``.

    Attributes:
        decay: ``b``, in [0, 1), the weight of the past.

    Raises:
        ValueError: ``decay`` is out of its range.

    Example:
        ``0.75 · 4 + 0.25 · 8 = 5``.

        >>> import numpy as np
        >>> from fedexp.strategies import MovingAverage
        >>> average, memory = MovingAverage(decay=0.75), {}
        >>> for w in (4.0, 8.0):
        ...     memory = average.update(memory, {"w": np.array([w])})
        >>> average.mean(memory, trainable=frozenset({"w"}))["w"].tolist()
        [5.0]
    """

    decay: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage(decay={self.decay}): must be in [0, 1). Use 0.7.")

    def update(self, memory: Memory, params: Arrays) -> Memory:
        """The memory with ``x̄`` in float64, and the last iterate."""
        old = memory.get("average", params)
        b = self.decay
        return {
            # Integers are counters: a mean of them is of no use, and "last" keeps them exact.
            "average": {
                name: np.asarray(b * old[name].astype(np.float64) + (1 - b) * x.astype(np.float64))
                for name, x in params.items()
                if x.dtype.kind == "f"
            },
            "last": params,
        }

    def mean(self, memory: Memory, trainable: frozenset[str]) -> Arrays:
        """``x̄``, in the dtypes of the last iterate."""
        average = memory["average"]
        return {
            name: average[name].astype(x.dtype) if name in trainable else x
            for name, x in memory["last"].items()
        }


@dataclass(frozen=True)
@with_kinds
class PolynomialAverage(MovingAverage):
    """An average that forgets the start: ``x̄ ← (1 - a) x̄ + a w_t``, ``a = (1 + γ)/(t + γ)``.

    ``γ = 0`` gives the mean of all iterates; a larger one gives late iterates more weight, in
    proportion to about ``t^γ``. Shamir & Zhang 2013, arXiv:1212.1824; DoG's authors use 8.

    Attributes:
        decay: ``γ ≥ 0``.

    Raises:
        ValueError: ``decay`` is negative.

    Example:
        With ``γ = 0``, the mean of all.

        >>> import numpy as np
        >>> from fedexp.strategies import PolynomialAverage
        >>> average, memory = PolynomialAverage(decay=0.0), {}
        >>> for w in (4.0, 8.0, 9.0):
        ...     memory = average.update(memory, {"w": np.array([w])})
        >>> average.mean(memory, trainable=frozenset({"w"}))["w"].round(6).tolist()
        [7.0]
    """

    decay: float = 8.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"PolynomialAverage(decay={self.decay}): must be >= 0. Use 8.")

    def update(self, memory: Memory, params: Arrays) -> Memory:
        """The memory with ``x̄`` in float64, the last iterate, and ``t``."""
        t = int(memory["count"]["rounds"]) + 1 if memory else 1
        new = MovingAverage(1 - (1 + self.decay) / (t + self.decay)).update(memory, params)
        # Before "last", which `MeanOfIterates` takes from the end.
        return {"count": {"rounds": np.asarray(float(t))}, **new}


def average_named(name: str) -> Average:
    """The average that ``--average`` names, such as ``last-2`` or ``ema-0.7``.

    Args:
        name: ``last-K`` for `MeanOfLast` of ``K`` iterates, ``ema-B`` for `MovingAverage` with
            the decay ``B``, or ``poly-G`` for `PolynomialAverage` with the decay ``G``.

    Raises:
        ValueError: the name is unknown, or its number is out of range.

    Example:
        >>> from fedexp.strategies import average_named
        >>> average_named("last-5"), average_named("ema-0.7")
        (MeanOfLast(count=5), MovingAverage(decay=0.7))
    """
    kind, _, number = name.partition("-")
    try:
        if kind == "last":
            return MeanOfLast(int(number))
        if kind == "ema":
            return MovingAverage(float(number))
        if kind == "poly":
            return PolynomialAverage(float(number))
        raise ValueError("unknown.")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"Config(average={name!r}): {reason}. Use last-K, the mean of the last K iterates, "
            "ema-B, their moving average with the decay B, or poly-G, with weights of about t^G; "
            "for example last-2, ema-0.7 or poly-8."
        ) from None
