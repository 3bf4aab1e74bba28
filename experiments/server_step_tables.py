"""The tables of ``experiments.server_steps``, from its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import Any

Rows = list[dict[str, Any]]

TUNING = (100, 101)
SCORES = {"last iterate": "last-1", "averaged (ema-0.7)": "ema-0.7"}


def print_tables(rows: Rows) -> None:
    """A table of tuned methods per federation, then one of all averages at fixed client rates."""
    for federation in unique(rows, "federation"):
        mine = [row for row in rows if row["federation"] == federation]
        print(f"\n### {federation}\n")
        print(tuned_table(mine))
        print(f"\n{federation}, at the same client rate for all:\n")
        print(fixed_table(mine))


def tuned_table(rows: Rows) -> str:
    """Each method at its own client rate, chosen for the score of the column on other seeds."""
    target = rows[0]["target"]
    heads = [f"{score}: rate | accuracy | rounds to {target:.0%}" for score in SCORES]
    lines = [f"| method | {' | '.join(heads)} |", "| --- |" + " ---: |" * 3 * len(heads)]
    for method in unique(rows, "method"):
        cells = []
        for average in SCORES.values():
            rate = tuned_rate(rows, method, average)
            chosen = reported(rows, method, rate)
            if chosen:
                rounds = [row["to-target"][average] for row in chosen]
                cells += [f"{rate:g}", accuracy(chosen, average), spread_of_rounds(rounds)]
        if cells:
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fixed_table(rows: Rows) -> str:
    """Every average of every method, at the client rates that all methods were run at."""
    rates = sorted(
        set.intersection(
            *({row["rate"] for row in reported(rows, m)} for m in unique(rows, "method"))
        )
    )
    averages = list(rows[0]["accuracy"])
    heads = [f"{rate:g}: {name}" for rate in rates for name in averages]
    lines = [f"| method | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for method in unique(rows, "method"):
        cells = [
            f"{fmean(row['accuracy'][name] for row in reported(rows, method, rate)):.3f}"
            for rate in rates
            for name in averages
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuned_rate(rows: Rows, method: str, average: str) -> float:
    """The client rate that did best on the tuning seeds."""
    mine = [row for row in rows if row["method"] == method and row["seed"] in TUNING]
    by_rate: Callable[[float], float] = lambda rate: fmean(  # noqa: E731
        row["accuracy"][average] for row in mine if row["rate"] == rate
    )
    return max(sorted({row["rate"] for row in mine}), key=by_rate, default=0.1)


def reported(rows: Rows, method: str, rate: float | None = None) -> Rows:
    """Runs of the seeds that are reported."""
    return [
        row
        for row in rows
        if row["method"] == method and row["seed"] not in TUNING and rate in (None, row["rate"])
    ]


def accuracy(rows: Rows, average: str) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    values = [100 * row["accuracy"][average] for row in rows]
    return f"{fmean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}"


def spread_of_rounds(rounds: list[int | None]) -> str:
    """Mean and range; with a seed that does not arrive, how many do."""
    arrived = [n for n in rounds if n is not None]
    if len(arrived) < len(rounds):
        return f"{len(arrived)} of {len(rounds)} arrive"
    return f"{fmean(arrived):.1f} ({min(arrived)} to {max(arrived)})"


def unique(rows: Iterable[dict[str, Any]], key: str) -> list[Any]:
    """Values of a key in order of their first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))
