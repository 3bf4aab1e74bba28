"""The numbers that sum up a unit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.series import as_number

ITERATES = ("", "mean-")
"""Prefixes of the keys of the last iterate and of the average of the iterates."""


def numbers(unit: UnitResult) -> MetricsRow:
    """All that a summary says, and what it can be completed with from the rows.

    Scores before the first round that succeeded are those of the initial model, and do not count.
    ``epsilon-spent`` is the most that any client has spent, ``budget-is-spent`` the share of the
    clients of the last round that have spent all. ``train-seconds``, ``move-seconds`` and
    ``server-seconds`` are means over rounds; traffic, ``simulated-seconds`` and the counts of
    faults and bad replies are sums.
    """
    found: MetricsRow = {"num-rounds": len(unit.rows)}
    for prefix in ITERATES:
        found |= _scores(unit, prefix)
    steps = _values(unit.rows, "server-step-size")
    found["mean-server-step-size"] = statistics.fmean(steps) if steps else None
    for last in ("learned-step-size", "privacy-epsilon", "budget-is-spent"):
        if values := _values(unit.rows, last):
            found[last] = values[-1]
    if spent := [_spent(row) for row in unit.rows if not math.isnan(_spent(row))]:
        found["epsilon-spent"] = max(spent)  # it never falls, but other clients may train last
    found["seconds-a-round"] = _median(_values(unit.rows, "round-seconds"))
    for part in ("train", "move", "server"):
        values = _values(unit.rows, f"{part}-seconds")
        found[f"{part}-seconds"] = statistics.fmean(values) if values else None
    found |= _sums(unit.rows)
    if times := _values(unit.rows, "simulated-seconds"):
        found["simulated-seconds"] = sum(times)
        for prefix in ITERATES:
            reached = found[f"{prefix}rounds-to-target"]
            until = sum(r["simulated-seconds"] for r in unit.rows if r["round"] <= (reached or 0))
            found[f"{prefix}simulated-seconds-to-target"] = until if reached else None
    for way in ("down", "up"):
        values = _values(unit.rows, f"bytes-{way}")
        found[f"bytes-{way}"] = int(sum(values)) if values else None
    return found | dict(unit.summary)


def rounds_to(unit: UnitResult, target: float, prefix: str = "") -> int | None:
    """The first round whose test accuracy is at least ``target``; None if there is none."""
    rows, key = _scored(unit.rows), f"{prefix}test-accuracy"
    return next((row["round"] for row in rows if as_number(row.get(key)) >= target), None)


def target_accuracies(units: Sequence[UnitResult]) -> list[float]:
    """The target accuracies of some units, each once."""
    all_ = [u.about.get("target-accuracy", u.summary.get("target-accuracy")) for u in units]
    return sorted({float(target) for target in all_ if target is not None})


def is_classification(units: Sequence[UnitResult]) -> bool:
    """Whether there is an accuracy, or no row yet that could have one."""
    rows = [row for unit in units for row in unit.rows if not row.get("failed")]
    return not rows or any(
        row.get(f"{prefix}test-accuracy") is not None for row in rows for prefix in ITERATES
    )


def _scores(unit: UnitResult, prefix: str) -> MetricsRow:
    rows = _scored(unit.rows)
    accuracies = _values(rows, f"{prefix}test-accuracy")
    losses = _values(rows, f"{prefix}test-loss")
    targets = target_accuracies([unit])
    return {
        f"{prefix}rounds-to-target": rounds_to(unit, targets[0], prefix) if targets else None,
        f"{prefix}best-accuracy": max(accuracies, default=None),
        f"{prefix}final-accuracy": accuracies[-1] if accuracies else None,
        f"{prefix}best-test-loss": min(losses, default=None),
        f"{prefix}final-test-loss": (_values(rows[-1:], f"{prefix}test-loss") or [None])[0],
    }


def _spent(row: MetricsRow) -> float:
    """What the client that has spent most has spent; the mean where a strategy tells no more."""
    return as_number(row.get("largest-epsilon-spent", row.get("epsilon-spent")))


def _sums(rows: Sequence[MetricsRow]) -> MetricsRow:
    """Bad replies and ordered faults over all rounds, by kind; ``faults`` is all of those."""
    counted = [key for row in rows for key in row if key.startswith(("bad-replies-", "faults-"))]
    sums = {key: int(sum(_values(rows, key))) for key in sorted({*counted})}
    ordered = [n for key, n in sums.items() if key.startswith("faults-")]
    return sums | ({"faults": sum(ordered)} if ordered else {})


def _scored(rows: Sequence[MetricsRow]) -> list[MetricsRow]:
    return list(dropwhile(lambda row: row.get("failed"), rows))


def _values(rows: Sequence[MetricsRow], key: str) -> list[Any]:
    return [row[key] for row in rows if not math.isnan(as_number(row.get(key)))]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
