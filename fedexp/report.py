"""The picture of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedexp.extras import need
from fedexp.files import atomically


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of a strategy's ``metrics.jsonl``; none if there is no such file yet."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A line cut short by a crash has no end; the round is run again.
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot_curves(folder: Path, keys: list[str], target: float) -> Path:
    """Draw test accuracy and server step against rounds, ``curves.png`` in a run's folder."""
    need("matplotlib", "simulation")
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    accuracy, step = figure.subplots(1, 2)
    for key in keys:
        rows = read_rows(folder / key)
        numbers = [row["round"] for row in rows]
        accuracy.plot(numbers, _column(rows, "test-accuracy"), label=key)
        step.plot(numbers, _column(rows, "server-step-size"), label=key)
    accuracy.axhline(target, color="grey", lw=0.8, ls=":")
    accuracy.set(xlabel="round", ylabel="test accuracy", title="Test accuracy")
    step.set(xlabel="round", ylabel="server step size", title="Server step size")
    for axes in (accuracy, step):
        axes.grid(alpha=0.3)
        axes.legend()
    path = folder / "curves.png"
    atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=110))
    return path


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float("nan") if row[name] is None else row[name] for row in rows]
