"""The tables of ``experiments.server_steps``, from its file.

    python -m experiments.server_step_tables docs/server-steps.jsonl

prints all of them: for the README, then for ``docs/server-steps.md``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Rows = list[dict[str, Any]]

TUNING = (100, 101)
SCORES = {"last iterate": "last-1", "averaged (ema-0.7)": "ema-0.7"}
DEMO = "FedAvg", "FedExP", "NesterovExP", "NesterovExP, hypersgd"
STEPS = "FedAvg", "fixed step 2", "fixed step 3"
OVERVIEW = (
    "FedExP",
    "FedExP, smoothing 0.5",
    "FedAdagrad 0.1 / 0.01",
    "Nesterov 1 / 0.9",
    "NesterovExP",
    "NesterovExP, hypersgd",
)


def read(file: Path) -> Rows:
    """The whole lines of the file; one that was cut short has no end."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def document(rows: Rows) -> str:
    """Of each federation a table of tuned methods, and one of all averages at fixed rates."""
    parts = []
    for federation in unique(rows, "federation"):
        mine = [row for row in rows if row["federation"] == federation]
        parts.append(f"## {federation}")
        tables = ("", tuned_table(mine)), ("All at one client rate:\n\n", fixed_table(mine))
        parts += [f"{title}{table}" for title, table in tables if table.count("\n") > 1]
    return "\n\n".join(parts)


def overview(rows: Rows) -> str:
    """Tuned accuracy of the averaged iterate, a line per federation with tuned rates."""
    columns = "FedAvg", "fixed step", *OVERVIEW
    lines = [f"| federation | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    average = SCORES["averaged (ema-0.7)"]
    for federation in unique(rows, "federation"):
        mine = [row for row in rows if row["federation"] == federation]
        if tuned_rate(mine, "FedAvg", average):
            step = max(STEPS, key=lambda method: tuned_accuracy(mine, method, average))
            chosen = (
                reported(mine, method, tuned_rate(mine, method, average))
                for method in ("FedAvg", step, *OVERVIEW)
            )
            cells = [accuracy(found, average) for found in chosen]
            cells[1] += f" ({step.removeprefix('fixed step ').replace('FedAvg', '1')})"
            lines.append(f"| {federation} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuned_table(rows: Rows, methods: Sequence[str] = ()) -> str:
    """Each method at its own client rate, chosen for the score of the column on other seeds."""
    target = rows[0]["target"]
    heads = [f"{score}: rate | accuracy | rounds to {target:.0%}" for score in SCORES]
    lines = [f"| method | {' | '.join(heads)} |", "| --- |" + " ---: |" * 3 * len(heads)]
    for method in methods or unique(rows, "method"):
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
    found = tuning(rows, method, average)
    return max(sorted(found), key=lambda rate: found[rate], default=0.0)


def tuned_accuracy(rows: Rows, method: str, average: str) -> float:
    """The mean accuracy at that rate, on the tuning seeds."""
    return max(tuning(rows, method, average).values(), default=0.0)


def tuning(rows: Rows, method: str, average: str) -> dict[float, float]:
    """Mean accuracy on the tuning seeds by client rate."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["method"] == method and row["seed"] in TUNING:
            found.setdefault(row["rate"], []).append(scored(row, "accuracy", average))
    return {rate: fmean(values) for rate, values in found.items()}


def scored(row: dict[str, Any], what: str, average: str) -> Any:
    """What a run has reached; where an average is part of the method, it is *the* average."""
    own = [name for name in row[what] if name.startswith("poly-")]
    return row[what][own[0] if own and average != "last-1" else average]


def reported(rows: Rows, method: str, rate: float | None = None) -> Rows:
    """Runs of the seeds that are reported."""
    return [
        row
        for row in rows
        if row["method"] == method and row["seed"] not in TUNING and rate in (None, row["rate"])
    ]


def accuracy(rows: Rows, average: str) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    values = [100 * scored(row, "accuracy", average) for row in rows]
    return f"{fmean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}"


def rounds_to_target(rows: Rows, average: str) -> str:
    """Mean and range; with a seed that does not arrive, how many do."""
    arrived = [x for row in rows if (x := scored(row, "to-target", average))]
    if len(arrived) < len(rows):
        return f"{len(arrived)} of {len(rows)} arrive"
    return f"{fmean(arrived):.1f} ({min(arrived)} to {max(arrived)})"


def unique(rows: Iterable[dict[str, Any]], key: str) -> list[Any]:
    """Values of a key in order of their first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


if __name__ == "__main__":
    found = read(Path(sys.argv[1]))
    digits = [row for row in found if row["federation"] == "digits"]
    print(tuned_table(digits, DEMO), overview(found), document(found), sep="\n\n")
