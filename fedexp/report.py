"""The picture of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedexp.extras import need
from fedexp.files import atomically


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of a strategy's ``metrics.jsonl``; none if there is no such file yet.

    Raises:
        ValueError: a line is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line cut short by a crash has no end; the round is run again.
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path}: is damaged, {error}.") from None
    if not all(isinstance(row, dict) and isinstance(row.get("round"), int) for row in rows):
        raise ValueError(f"{path}: is damaged, not every line is a round's.")
    return rows


def plot_curves(folder: Path, keys: list[str], target: float, average: str) -> Path:
    """Draw test accuracy, server step and tuned learning rates, ``curves.png`` in the folder.

    Every strategy has a line for the average of its iterates and dots for its last iterates.
    """
    need("matplotlib", "simulation")
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    found = {key: read_rows(folder / key) for key in keys}
    tuned = {key: rows for key, rows in found.items() if any(map(_spread, rows))}
    panels = 3 if tuned else 2
    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    accuracy, step, *rate = figure.subplots(1, panels)
    for i, (key, rows) in enumerate(found.items()):
        numbers = [row["round"] for row in rows]
        color = f"C{i}"
        accuracy.plot(numbers, _column(rows, "mean-test-accuracy"), label=key, color=color)
        accuracy.plot(numbers, _column(rows, "test-accuracy"), ".", ms=3, alpha=0.6, color=color)
        step.plot(numbers, _column(rows, "server-step-size"), label=key, color=color)
    accuracy.axhline(target, color="grey", lw=0.8, ls=":")
    title = f"Test accuracy: line {average} of the iterates, dots the last"
    accuracy.set(xlabel="round", ylabel="test accuracy", title=title)
    step.set(xlabel="round", ylabel="server step size", title="Server step size")
    for axes in rate:
        _draw_rates(axes, tuned, keys)
    for axes in (accuracy, step, *rate):
        axes.grid(alpha=0.3)
        axes.legend()
    path = folder / "curves.png"
    atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=110))
    return path


def _draw_rates(axes: Any, tuned: dict[str, list[dict[str, Any]]], keys: list[str]) -> None:
    """The cohort's mean learning rate, in a band of one standard deviation."""
    for key, rows in tuned.items():
        rows = [row for row in rows if row.get("learning-rate") is not None]
        numbers = [row["round"] for row in rows]
        mean = [row["learning-rate"] for row in rows]
        ends = [(m - _spread(r), m + _spread(r)) for m, r in zip(mean, rows, strict=True)]
        color = f"C{keys.index(key)}"
        axes.plot(numbers, mean, label=key, color=color)
        axes.fill_between(numbers, *zip(*ends, strict=True), color=color, alpha=0.2, lw=0)
    axes.set(xlabel="round", ylabel="mean and spread", title="Learning rate of the clients")


def _spread(row: dict[str, Any]) -> float:
    return row.get("learning-rate-std") or 0.0


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float("nan") if row[name] is None else row[name] for row in rows]
