"""How far a run is: bars in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from fedexp.terminal import is_live

_SECONDS = 5.0  # between two lines
_LOGGERS = "", "flwr", "ray"


class _View(Protocol):
    def advance(self, key: str, number: int, score: str) -> None: ...


class Progress:
    """What a person sees while a run goes on.

    Args:
        keys: label of each strategy (and seed, and setting) that will run; more may turn up.
        num_rounds: of each.
    """

    def __init__(self, keys: Sequence[str], num_rounds: int) -> None:
        self._held = ExitStack()
        self._bars = _Bars(keys, num_rounds) if is_live() else None
        self._view: _View = self._bars or _Lines(num_rounds)

    def __enter__(self) -> Self:
        if self._bars:
            self._held.enter_context(self._bars.shown())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def advance(self, key: str, row: Mapping[str, Any]) -> None:
        """Show that the round of ``row`` has ended."""
        self._view.advance(key, row["round"], score(row))


def score(row: Mapping[str, Any]) -> str:
    """The accuracy after a round, or the loss where there is none."""
    if (accuracy := row.get("test-accuracy")) is not None:
        return f"{accuracy:.1%}"
    if (loss := row.get("test-loss")) is not None:
        return f"loss {loss:.4g}"
    return "failed" if row.get("failed") else "-"


class _Bars:
    """A bar per label when its turn comes; ended ones make room if there are many."""

    def __init__(self, keys: Sequence[str], num_rounds: int) -> None:
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False, table_column=_column(4)),
            BarColumn(None, table_column=_column(2)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=Console(force_terminal=True),
            redirect_stderr=is_live(sys.stderr),
            expand=True,
        )
        self._most = max(3, self._rich.console.size.height - 4)
        self._num_rounds = num_rounds
        self._tasks = {key: self._added(key, visible=not i) for i, key in enumerate(keys)}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the bars on the screen; what is printed or logged meanwhile stands above them."""
        with self._rich, _logs_of(sys.stderr):
            yield

    def advance(self, key: str, number: int, score: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._added(key)
        task = self._tasks[key]
        self._rich.start_task(task)
        self._rich.update(task, completed=number, score=score, visible=True)
        self._arrange()

    def _added(self, key: str, visible: bool = True) -> TaskID:
        total = self._num_rounds
        return self._rich.add_task(key, total=total, score="", start=False, visible=visible)

    def _arrange(self) -> None:
        """Show the next label once none that is shown has rounds to go; hide the oldest ended."""
        shown = [task for task in self._rich.tasks if task.visible]
        ended = [task for task in shown if task.finished]
        following = [task for task in self._rich.tasks if not (task.visible or task.finished)]
        if len(ended) == len(shown) and following:
            self._rich.update(following[0].id, visible=True)
            shown.append(following[0])
        for task in ended[: max(0, len(shown) - self._most)]:
            self._rich.update(task.id, visible=False)


def _column(ratio: int) -> Column:
    return Column(ratio=ratio, no_wrap=True, overflow="ellipsis")


@contextmanager
def _logs_of(stream: Any) -> Iterator[None]:
    """Let loggers that hold the terminal itself write to what stands for it now."""
    handlers = [
        handler
        for name in _LOGGERS
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, old in zip(handlers, before, strict=True):
            handler.setStream(old or handler.stream)


class _Lines:
    """A line every few seconds, and one at each label's end."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._first: dict[str, tuple[int, float]] = {}
        self._said = time.monotonic()

    def advance(self, key: str, number: int, score: str) -> None:
        now = time.monotonic()
        first, began = self._first.setdefault(key, (number, now))
        if number < self._num_rounds and now - self._said < _SECONDS:
            return
        self._said = now
        left = ""
        if first < number < self._num_rounds:
            seconds = (now - began) / (number - first) * (self._num_rounds - number)
            left = f", {timedelta(seconds=round(seconds))} left"
        print(f"{key}: round {number} of {self._num_rounds}, {score}{left}", flush=True)
