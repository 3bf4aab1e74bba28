"""The tables of ``experiments.server_steps``, from its file."""

from __future__ import annotations

from collections.abc import Iterable
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
        for title, table in (
            ("", tuned_table(mine)),
            ("All at one client rate:\n", fixed_table(mine)),
        ):
            if table.count("\n") > 1:
                print(f"{title}\n{table}\n")


def tuned_table(rows: Rows) -> str:
    """Each method at its own client rate, chosen for the score of the column on other seeds."""
    target = rows[0]["target"]
    heads = [f"{score}: rate | accuracy | rounds to {target:.0%}" for score in SCORES]
    lines = [f"| method | {' | '.join(heads)} |", "| --- |" + " ---: |" * 3 * len(heads)]
    for method in unique(rows, "method"):
        rates = {name: tuned_rate(rows, method, name) for name in SCORES.values()}
        cells = [
            cell
            for name, rate in rates.items()
            if rate and (chosen := reported(rows, method, rate))
            for cell in (f"{rate:g}", accuracy(chosen, name), rounds_to_target(chosen, name))
        ]
        if len(cells) == 3 * len(SCORES):
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fixed_table(rows: Rows) -> str:
    """Every average of every method, at the client rates that all methods were run at."""
    methods, names = unique(rows, "method"), list(rows[0]["accuracy"])
    rates = sorted(set.intersection(*({row["rate"] for row in reported(rows, m)} for m in methods)))
    heads = [f"{rate:g}: {name}" for rate in rates for name in names]
    lines = [f"| method | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for method in methods if rates else []:
        cells = [
            f"{fmean(row['accuracy'][name] for row in reported(rows, method, rate)):.3f}"
            for rate in rates
            for name in names
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuned_rate(rows: Rows, method: str, average: str) -> float:
    """The client rate that did best on the tuning seeds, of equal ones the smaller; 0 for none."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["method"] == method and row["seed"] in TUNING:
            found.setdefault(row["rate"], []).append(row["accuracy"][average])
    return max(sorted(found), key=lambda rate: fmean(found[rate]), default=0.0)


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


def rounds_to_target(rows: Rows, average: str) -> str:
    """Mean and range; with a seed that does not arrive, how many do."""
    arrived = [row["to-target"][average] for row in rows if row["to-target"][average]]
    if len(arrived) < len(rows):
        return f"{len(arrived)} of {len(rows)} arrive"
    return f"{fmean(arrived):.1f} ({min(arrived)} to {max(arrived)})"


def unique(rows: Iterable[dict[str, Any]], key: str) -> list[Any]:
    """Values of a key in order of their first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))
