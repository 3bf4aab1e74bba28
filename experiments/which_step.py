"""Which server step to use: tables and picture of ``docs/which-step.md``, from the study's file.

    python -m experiments.server_steps --full --data-dir DATA --out docs/server-steps.jsonl
    python -m experiments.which_step docs/server-steps.jsonl --picture docs/which-step.png

Every method is scored at the average of its iterates (``ema-0.7``, or the one that is part of it),
at its own client rate, chosen on other seeds than those reported. Only federations whose client
rate was tuned for every method count.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import fmean

from experiments.server_step_tables import (
    SCORES,
    Rows,
    accuracy,
    read,
    reported,
    rounds_to_target,
    scored,
    tuned_rate,
    tuning,
    unique,
)

AVERAGE = SCORES["averaged (ema-0.7)"]
PICTURED = (
    *("FedAvg", "FedExP", "NesterovExP", "NesterovExP, relative step 0.2"),
    *("Nesterov 1 / 0.9", "Nesterov 1 / 0.8", "FedAdagrad 0.1 / 0.01", "FedAdam 0.01 / 0.001"),
)


def federations(rows: Rows) -> dict[str, Rows]:
    """The runs of each federation that every method was tuned on."""
    parts = {
        name: [r for r in rows if r["federation"] == name] for name in unique(rows, "federation")
    }
    return {name: mine for name, mine in parts.items() if complete(mine, unique(rows, "method"))}


def complete(mine: Rows, methods: list[str]) -> bool:
    """Whether each method has runs of the reported seeds at the rate that was chosen for it."""
    return all(chosen(mine, method) for method in methods)


def chosen(mine: Rows, method: str) -> Rows:
    """Runs of the reported seeds at the tuned rate."""
    rate = tuned_rate(mine, method, AVERAGE)
    return reported(mine, method, rate) if rate else []


def sensitivity(mine: Rows, method: str) -> float:
    """The mean accuracy over the grid of client rates, on the logarithmic scale, in per cent.

    That is the area under the curve of accuracy against the logarithm of the rate (trapezoids),
    divided by the grid's width; runs of the tuning seeds, at the rates that all methods have.
    """
    rates = set.intersection(*(set(tuning(mine, m, AVERAGE)) for m in unique(mine, "method")))
    curve = [
        value for rate, value in sorted(tuning(mine, method, AVERAGE).items()) if rate in rates
    ]
    return 100 * fmean((a + b) / 2 for a, b in pairwise(curve))


def against(mine: Rows, method: str, rival: str = "FedAvg") -> str:
    """``ahead`` or ``behind`` if it is so with every reported seed of both, else ``level``."""
    ours, theirs = (
        {row["seed"]: scored(row, "accuracy", AVERAGE) for row in chosen(mine, name)}
        for name in (method, rival)
    )
    pairs = [(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()]
    signs = {(value > rivals) - (value < rivals) for value, rivals in pairs}
    return {frozenset({1}): "ahead", frozenset({-1}): "behind"}.get(frozenset(signs), "level")


def marked(mine: Rows, method: str, rival: str) -> str:
    """Accuracy, bold if ahead of the rival with every seed, ``-`` if behind; empty without runs."""
    runs = chosen(mine, method)
    if not runs:
        return ""
    text, word = accuracy(runs, AVERAGE), against(mine, method, rival)
    return {"ahead": f"**{text}**", "behind": f"{text} -"}.get(word, text)


def table(parts: dict[str, Rows], cell: Callable[[Rows, str], str]) -> str:
    """A line for each method, a column for each federation."""
    methods = unique([row for mine in parts.values() for row in mine], "method")
    lines = [f"| method | {' | '.join(parts)} |", "| --- |" + " ---: |" * len(parts)]
    lines += [
        f"| {method} | {' | '.join(cell(mine, method) for mine in parts.values())} |"
        for method in methods
    ]
    return "\n".join(lines)


def wins(parts: dict[str, Rows]) -> str:
    """In how many federations a method is ahead of FedAvg, level with it and behind it."""
    methods = unique([row for mine in parts.values() for row in mine], "method")
    lines = ["| method | ahead | level | behind |", "| --- |" + " ---: |" * 3]
    for method in methods:
        found = Counter(against(mine, method) for mine in parts.values())
        counts = " | ".join(str(found[word]) for word in ("ahead", "level", "behind"))
        lines.append(f"| {method} | {counts} |")
    return "\n".join(lines)


def document(rows: Rows) -> str:
    """All tables."""
    parts = federations(rows)
    tables = {
        "Accuracy": table(parts, lambda mine, m: accuracy(chosen(mine, m), AVERAGE)),
        "Rounds to the target": table(
            parts, lambda mine, m: rounds_to_target(chosen(mine, m), AVERAGE)
        ),
        "The client rate that was chosen": table(
            parts, lambda mine, m: f"{tuned_rate(mine, m, AVERAGE):g}"
        ),
        "Mean accuracy over all client rates": table(
            parts, lambda mine, m: f"{sensitivity(mine, m):.1f}"
        ),
        "Against FedAvg, over the federations": wins(parts),
    }
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in tables.items())


def draw(rows: Rows, path: Path) -> None:
    """Accuracy against the clients' learning rate, a panel for each federation."""
    from matplotlib.figure import Figure

    parts = federations(rows)
    lines = ceil(len(parts) / 3)
    figure = Figure(figsize=(11, 3.2 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, 3, squeeze=False).ravel()
    for axis in axes[len(parts) :]:
        axis.set_axis_off()
    for axis, (name, mine) in zip(axes, parts.items(), strict=False):
        for method in PICTURED:
            curve = sorted(tuning(mine, method, AVERAGE).items())
            axis.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=method)
        axis.set(title=name, xscale="log", xlabel="client learning rate")
    axes[0].set_ylabel("test accuracy, averaged iterate")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    rows = read(args.file)
    print(document(rows))
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
