"""Curves over rounds: a value at every round, its mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedexp.runs.reading import UnitResult

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """A curve, each array ``[num_points]``.

    Attributes:
        x: rounds, bytes, or simulated seconds.
        mean: over the seeds that have a value there.
        std: their sample standard deviation, with ``n - 1``; 0 where only one has a value.
    """

    x: Floats
    mean: Floats
    std: Floats

    @property
    def drawable(self) -> bool:
        """Whether there is a point to draw."""
        return bool(np.isfinite(self.x + self.mean).any())

    @property
    def positive(self) -> Series:
        """Without the points that have no logarithm."""
        return Series(self.x, np.where(self.mean > 0, self.mean, math.nan), self.std)

    def low(self, log: bool) -> Floats:
        """The lower edge of the band; on a logarithmic axis, which has no 0, not far below."""
        low = self.mean - self.std
        return np.maximum(low, self.mean / 10) if log else low


def groups_of(units: Sequence[UnitResult]) -> dict[str, list[UnitResult]]:
    """Results that differ in their seed alone, by a name that tells them apart; no tuning."""
    found: dict[tuple[str, str], list[UnitResult]] = {}
    for unit in units:
        if not unit.tuning:
            found.setdefault((unit.strategy, settings_text(unit.settings)), []).append(unit)
    several = [strategy for strategy, _ in found]
    return {
        f"{strategy}, {text}" if text and several.count(strategy) > 1 else strategy: group
        for (strategy, text), group in found.items()
    }


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in a line: ``learning-rate=0.1, batch-size=20``."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def as_number(value: Any) -> float:
    """``value``, NaN if it is no finite number."""
    fits = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if fits else math.nan


def over_seeds(units: Sequence[UnitResult], key: str, against: str = "round") -> Series:
    """The curve of ``key``.

    Args:
        units: a group's, one for each seed.
        key: of a row.
        against: ``round``; ``bytes``, all that has been moved until then; or ``simulated``, the
            simulated seconds until then.
    """
    rounds = sorted({row["round"] for unit in units for row in unit.rows})
    x = np.array(rounds, np.float64)
    if against != "round":
        ways = _UNTIL[against]
        x = _spread([_until(unit, rounds, ways) for unit in units])[0]
    return Series(x, *_spread([_aligned(unit, key, rounds) for unit in units]))


def is_wide(lines: Iterable[Series]) -> bool:
    """Whether a logarithmic axis shows more: all is positive, and one value 100 times another."""
    means = [line.mean[np.isfinite(line.mean)] for line in lines]
    all_ = np.concatenate([*means, np.ones(0)])
    return bool(len(all_) and all_.min() > 0 and all_.max() > 100 * all_.min())


def has(units: Sequence[UnitResult], key: str) -> bool:
    """Whether any row has a number for ``key``."""
    return any(not math.isnan(as_number(row.get(key))) for unit in units for row in unit.rows)


def _aligned(unit: UnitResult, key: str, rounds: Sequence[int]) -> Floats:
    values = {row["round"]: as_number(row.get(key)) for row in unit.rows}
    return np.array([values.get(r, math.nan) for r in rounds])


_UNTIL = {"bytes": ("bytes-down", "bytes-up"), "simulated": ("simulated-seconds",)}
"""What adds up over the rounds: bytes in both directions, or seconds."""


def _until(unit: UnitResult, rounds: Sequence[int], keys: Sequence[str]) -> Floats:
    """The sum of ``keys`` up to the end of each round."""
    each = sum(_aligned(unit, key, rounds) for key in keys)
    return np.where(np.isfinite(each), np.nancumsum(each), math.nan)


def _spread(values: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation over ``[num_seeds, num_points]``, without NaN."""
    table = np.array(values)
    count = np.isfinite(table).sum(0)
    mean = np.where(count > 0, np.nansum(table, 0) / np.maximum(count, 1), math.nan)
    squares = np.nansum((table - mean) ** 2, 0)
    return mean, np.sqrt(squares / np.maximum(count - 1, 1))
