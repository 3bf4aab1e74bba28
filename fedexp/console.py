"""What a person sees of a run in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table


class Progress:
    """A bar per strategy, with its latest accuracy.

    Args:
        keys: of the strategies.
        num_rounds: of each.
    """

    def __init__(self, keys: list[str], num_rounds: int) -> None:
        self._total = num_rounds
        columns = "{task.description}", "{task.fields[accuracy]}"
        self._bars = Bars(
            TextColumn(columns[0]),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(columns[1]),
            TimeRemainingColumn(),
        )
        self._tasks = {
            key: self._bars.add_task(key, total=num_rounds, accuracy="", start=False)
            for key in keys
        }

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def advance(self, key: str, row: dict[str, Any]) -> None:
        """Show that a round has ended."""
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(key, total=self._total, accuracy="")
        task = self._tasks[key]
        self._bars.start_task(task)
        self._bars.update(task, advance=1, accuracy=_percent(row["test-accuracy"]))


def table(summaries: dict[str, dict[str, Any]], target: float) -> None:
    """Print the summaries of a run, a line per strategy; the same two scores for all of them."""
    average = next(iter(summaries.values()))["average"]
    view = Table("strategy", f"to {target:.0%}", "best %", "final %", "step", "s/round", box=SIMPLE)
    for column in view.columns:
        column.no_wrap = True
        column.justify = "left" if column.header == "strategy" else "right"
    for key, summary in summaries.items():
        view.add_row(
            key,
            _both(summary, "rounds-to-target", lambda number: str(number or "-")),
            _both(summary, "best-accuracy", _hundredths),
            _both(summary, "final-accuracy", _hundredths),
            _number(summary["mean-server-step-size"]),
            _number(summary["seconds-a-round"], 3),
        )
    Console().print(view)
    print(
        f"Rounds to {target:.0%} test accuracy, best and final accuracy: of the last iterate "
        f"(model.safetensors) / of the average {average} of the iterates (model-mean.safetensors)."
    )
    _failure_table(summaries)


def _failure_table(summaries: dict[str, dict[str, Any]]) -> None:
    """Print what failed, if anything did."""
    names = ("failed-rounds", "num-failures", "missing-nodes")
    titles = ("failed rounds", "failed replies", "clients left out of all")
    if not any(summary[name] for summary in summaries.values() for name in names):
        return
    view = Table("strategy", *titles, box=SIMPLE)
    for column in view.columns[1:]:
        column.justify = "right"
    for key, summary in summaries.items():
        failed, replies, missing = (summary[name] for name in names)
        view.add_row(key, f"{failed} of {summary['num-rounds']}", str(replies), str(len(missing)))
    Console().print(view)


def _both(summary: dict[str, Any], name: str, text: Callable[[Any], str]) -> str:
    """A value of the last iterate and of the average."""
    return f"{text(summary[name])} / {text(summary[f'mean-{name}'])}"


def partition_table(counts: NDArray[np.integer[Any]], most: int = 20) -> None:
    """Print clients x labels, ``[num_clients, num_classes]``; at most ``most`` of each."""
    clients, classes = (min(n, most) for n in counts.shape)
    view = Table("client", "size", *map(str, range(classes)), box=SIMPLE, padding=(0, 0, 0, 1))
    for column in view.columns:
        column.justify = "right"
    for client, row in enumerate(counts[:clients]):
        view.add_row(str(client), str(row.sum()), *(str(n or "") for n in row[:classes]))
    Console().print(view)
    if left_out := len(counts) - clients:
        print(f"... and {left_out:,} more clients")


def _hundredths(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
