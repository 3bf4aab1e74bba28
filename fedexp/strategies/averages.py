"""Averages of the server's iterates: what is evaluated beside the last one.

A long server step makes the iterates swing around the solution; their average does not. It is for
evaluation only and never enters training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedexp.arrays import Arrays

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
class MeanOfLast:
    """The mean of the last iterates: ``(w_{t-k+1} + … + w_t)/k``, of all there are before.

    ``k = 2`` is what the FedExP paper reports: Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Attributes:
        count: ``k``, at least 1.
    """

    count: int = 2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"MeanOfLast(count={self.count}): must be at least 1. Use 2.")

    def update(self, memory: Memory, params: Arrays) -> Memory:
        """The last ``k`` iterates, the oldest first."""
        kept = [*memory.values(), params][-self.count :]
        return {f"iterate-{i}": iterate for i, iterate in enumerate(kept)}

    def mean(self, memory: Memory, trainable: frozenset[str]) -> Arrays:
        """Their mean, in the dtypes of the last."""
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
class MovingAverage:
    """An exponential moving average: ``x̄ ← b x̄ + (1 - b) w_t``, at first ``w_1`` itself.

    Attributes:
        decay: ``b``, in [0, 1).
    """

    decay: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage(decay={self.decay}): must be in [0, 1). Use 0.7.")

    def update(self, memory: Memory, params: Arrays) -> Memory:
        """``x̄`` in float64, and the last iterate."""
        old = memory.get("average", params)
        b = self.decay
        return {
            # Integers are counters, which no mean has a use for: they stay exact in "last".
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


def average_named(name: str) -> Average:
    """The average that ``--average`` names: ``last-2``, ``last-5``, ``ema-0.7``.

    Raises:
        ValueError: no such name, or a number out of its range.
    """
    kind, _, number = name.partition("-")
    try:
        if kind == "last":
            return MeanOfLast(int(number))
        if kind == "ema":
            return MovingAverage(float(number))
        raise ValueError("unknown.")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"Config(average={name!r}): {reason}. Use last-K, the mean of the last K iterates, or "
            "ema-B, their moving average with the share B of the old; such as last-2 or ema-0.7."
        ) from None
