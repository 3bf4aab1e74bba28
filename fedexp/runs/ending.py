"""When a unit ends before its last round: it is good enough, gets no better, or time is over."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedexp.config import Config
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.scores import ITERATES, rounds_to
from fedexp.runs.series import as_number


@dataclass(frozen=True)
class End:
    """Why a unit ended early.

    Attributes:
        why: a sentence without its full stop; empty where the caller knows it.
        goes_on: whether a resumed run takes the rounds that are left.
    """

    why: str = ""
    goes_on: bool = False


def time_of_end(config: Config) -> float:
    """When ``max-minutes`` from now are over, on ``time.monotonic``, in seconds."""
    return time.monotonic() + 60 * config.max_minutes if config.max_minutes else math.inf


def end_of(config: Config, rows: Sequence[MetricsRow], num_rounds: int, until: float) -> End | None:
    """Whether a unit ends before its last round, and why.

    It depends on the rows and the clock alone, so a resumed run ends where the whole one does.

    Args:
        config: of the unit.
        rows: of all its rounds so far.
        num_rounds: how many are wanted.
        until: the time of ``time_of_end``.
    """
    if not rows:
        return None
    if why := _reached(config, rows) or _no_better(config, rows):
        return End(why)
    if time.monotonic() < until or len(rows) >= num_rounds:
        return None
    return End(f"--max-minutes {config.max_minutes:g} were over after round {len(rows)}", True)


def _reached(config: Config, rows: Sequence[MetricsRow]) -> str:
    """Both models, each in some round: so the rounds to the target are those of a whole run."""
    if not config.stop_at_target:
        return ""
    unit = UnitResult("", rows=rows)
    firsts = [rounds_to(unit, config.target_accuracy, prefix) for prefix in ITERATES]
    if None in firsts:
        return ""
    return f"reached the test accuracy {config.target_accuracy:g} in round {len(rows)}"


def _no_better(config: Config, rows: Sequence[MetricsRow]) -> str:
    if not config.patience:
        return ""
    name = next((name for name in _SIGNS if any(_has(row, name) for row in rows)), "")
    if not name:
        return ""
    last = max(_round_of_best(rows, f"{prefix}{name}", _SIGNS[name]) for prefix in ITERATES)
    if (since := len(rows) - last) < config.patience:
        return ""
    many = "rounds" if since > 1 else "round"
    return f"had no better {name.replace('-', ' ')} in {since} {many} after round {last}"


_SIGNS = {"test-accuracy": 1.0, "test-loss": -1.0}  # that make more better


def _has(row: MetricsRow, name: str) -> bool:
    return not all(math.isnan(as_number(row.get(f"{prefix}{name}"))) for prefix in ITERATES)


def _round_of_best(rows: Sequence[MetricsRow], key: str, sign: float) -> int:
    """The first round with the best value, counted from 1; 0 without any."""
    values: list[Any] = [sign * as_number(row.get(key)) for row in rows]
    known = [value for value in values if not math.isnan(value)]
    return 1 + values.index(max(known)) if known else 0
