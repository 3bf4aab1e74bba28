"""The tables that a person reads at the end of a run."""

from __future__ import annotations

import shutil
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedexp.progress import Progress
from fedexp.specs import Spec
from fedexp.terminal import filled, is_fixed, is_live

__all__ = ["Progress", "client_table", "partition_table", "table"]

Summary = Mapping[str, Any]
"""What ``summary.json`` holds of a strategy and seed."""

_MOST = 20  # lines or columns of a table that may be long
_TITLE = 12  # columns that a strategy's name over numbers gets; two more part it from the next
_NARROW = 80  # columns; below, a space is all that parts two numbers
_UNBOUNDED = 1000  # columns, where no terminal folds the lines


def table(summaries: Sequence[Summary], target: float) -> None:
    """Print a line per strategy (and setting): the last iterate, then the average of them.

    Over several seeds each number is the mean ± the standard deviation of a sample.

    Args:
        summaries: of every strategy and seed.
        target: accuracy that rounds are counted to.
    """
    groups = _by_strategy(summaries)
    has_accuracy = any(s[f"{p}best-accuracy"] is not None for s in summaries for p in _PREFIXES)
    columns = _accuracies(target) if has_accuracy else _LOSSES
    learned = {key: x for key, x in _LEARNED.items() if any(s.get(key) for s in summaries)}
    own_columns = {"mean-server-step-size": ("step", "{:.2f}"), **learned, **_SECONDS}
    view = _table("strategy", *columns, *(title for title, _ in own_columns.values()))
    for label, group in groups.items():
        own = [_over(group, key, form) for key, (_, form) in own_columns.items()]
        view.add_row(label, *(f(group, "") for f in columns.values()), *own)
        view.add_row(f"  {group[0]['average']}", *(f(group, "mean-") for f in columns.values()))
    _print(view)
    seeds = max(map(len, groups.values()))
    spread = f"Mean±standard deviation over {seeds} seeds." if seeds > 1 else ""
    print(filled(_ITERATES, spread, 0))
    _privacy_notes(groups, learned.keys())
    _failure_table(groups)


def _privacy_notes(groups: Mapping[str, Sequence[Summary]], shown: Iterable[str]) -> None:
    """Print whom each epsilon protects, and who has no budget left to train with."""
    for key in shown:
        if key in _WHOM:
            print(filled(*_WHOM[key], 0))
    for label, group in groups.items():
        if share := statistics.fmean(s.get("budget-is-spent") or 0.0 for s in group):
            who = f"{share:.0%} of the clients of the last round, by examples,"
            print(filled(f"{label}: ", f"{who} have spent their budget and train no more.", 0))


_WHOM = {
    "privacy-epsilon": (
        "ε: ",
        "protects a client against those who see the models; with local privacy, the server too.",
    ),
    "epsilon-spent": (
        "ε example: ",
        "protects one example of a client against the server; of the client that spent most.",
    ),
}
_LEARNED = {
    "learned-step-size": ("learned", "{:.3g}"),
    "privacy-epsilon": ("ε", "{:.3g}"),
    "epsilon-spent": ("ε example", "{:.3g}"),
}
_SECONDS = {"seconds-a-round": ("s/round", "{:.3f}")}
_PREFIXES = "", "mean-"
_ITERATES = (
    "First line: the last iterate (model.safetensors). "
    "Second line: the average of the iterates (model-mean.safetensors). "
)
_Cell = Callable[[Sequence[Summary], str], str]


def _accuracies(target: float) -> dict[str, _Cell]:
    return {
        f"to {100 * target:g}%": lambda group, prefix: _rounds(group, f"{prefix}rounds-to-target"),
        "best %": lambda group, prefix: _over(group, f"{prefix}best-accuracy", "{:.1f}", 100),
        "final %": lambda group, prefix: _over(group, f"{prefix}final-accuracy", "{:.1f}", 100),
    }


_LOSSES: dict[str, _Cell] = {
    "final loss": lambda group, prefix: _over(group, f"{prefix}final-test-loss", "{:.4g}")
}


def _by_strategy(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    """The seeds of each strategy; settings that a sweep gave it stand in brackets."""
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(_label(summary), []).append(summary)
    return groups


def _label(of: Mapping[str, Any]) -> str:
    return str(Spec(of["strategy"], of.get("settings") or {}))


def _over(group: Sequence[Summary], name: str, form: str, factor: float = 1) -> str:
    """Mean and spread of a number over the seeds that have it."""
    values = [factor * s[name] for s in group if s.get(name) is not None]
    if not values:
        return "-"
    spread = "±" + form.format(statistics.stdev(values)) if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + spread


def _rounds(group: Sequence[Summary], name: str) -> str:
    """The same of rounds to the target, and how many seeds came there if not all did."""
    reached = [s for s in group if s[name] is not None]
    text = _over(group, name, "{:.1f}" if len(group) > 1 else "{:.0f}")
    return text if len(reached) in (0, len(group)) else f"{text} ({len(reached)}/{len(group)})"


def _is_kind(key: str) -> bool:
    return key.startswith("bad-replies-")


def _failure_table(groups: Mapping[str, Sequence[Summary]]) -> None:
    """Print what failed, if anything did."""
    names = ("failed-rounds", "num-failures", "missing-nodes")
    titles = ("failed rounds", "failed replies", "clients never used")
    if not any(s[name] for group in groups.values() for s in group for name in names):
        return
    kinds = sorted({key for group in groups.values() for s in group for key in s if _is_kind(key)})
    view = _table("strategy", *titles, *(key.removeprefix("bad-replies-") for key in kinds))
    for label, group in groups.items():
        failed = sum(s["failed-rounds"] for s in group)
        rounds = sum(s["num-rounds"] for s in group)
        missing = {node for s in group for node in s["missing-nodes"]}
        replies = sum(s["num-failures"] for s in group)
        counts = [str(sum(s.get(key) or 0 for s in group)) for key in kinds]
        view.add_row(label, f"{failed} of {rounds}", str(replies), str(len(missing)), *counts)
    _print(view)


def client_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print how each client fared when it last evaluated, the worst first; none if none did.

    Args:
        rows: lines of ``clients.csv`` (client, round, examples, loss, accuracy), each with its
            strategy, seed and settings.
    """
    in_order = sorted(rows, key=lambda row: int(row["round"]))
    last = {(_label(row), row.get("seed"), row["client"]): row for row in in_order}.values()
    is_known = any(row.get("accuracy") is not None for row in last)
    name, form, factor = ("accuracy", "{:.1f}", 100) if is_known else ("loss", "{:.4g}", -1)
    clients: dict[str, list[Mapping[str, Any]]] = {}
    for row in last:
        if row.get(name) is not None:
            clients.setdefault(str(row["client"]), []).append(row)
    if not clients:
        return
    every = list(dict.fromkeys(map(_label, last)))
    strategies = every[: _num_fitting()]
    titles = map(_folded, strategies)
    view = _table("client", "examples", "last\nround", *titles)
    by_mean = sorted(clients, key=lambda c: statistics.fmean(factor * r[name] for r in clients[c]))
    for client in by_mean[:_MOST]:
        own = clients[client]
        cells = [[r for r in own if _label(r) == strategy] for strategy in strategies]
        view.add_row(
            *(client, str(own[-1]["examples"]), str(own[-1]["round"])),
            *(_over(cell, name, form, abs(factor)) for cell in cells),
        )
    _print(view)
    unit = "Accuracy in % of " if is_known else "Loss of "
    print(filled(unit, "each client on its own examples, in the last round that it evaluated.", 0))
    _left_out(len(clients), "clients")
    _left_out(len(every), "strategies, which the report has", len(strategies))


def _num_fitting() -> int:
    """How many columns of strategies the terminal has room for."""
    width = shutil.get_terminal_size().columns if is_fixed() else _UNBOUNDED
    return max(1, (width - 28) // (_TITLE + 2))


def _folded(label: str) -> str:
    """A name over a column of numbers, on as many lines as it needs."""
    return "\n".join(textwrap.wrap(label.replace("(", " (").replace("+", " +"), _TITLE))


def partition_table(
    sizes: NDArray[np.integer[Any]],
    counts: NDArray[np.integer[Any]] | None = None,
    names: Sequence[str] = (),
    class_names: Sequence[str] = (),
    most: int = _MOST,
) -> None:
    """Print who holds how many examples; at most ``most`` clients and classes.

    Args:
        sizes: examples of each client, ``[num_clients]``.
        counts: of each class, ``[num_clients, num_classes]``; None if there are no classes.
        names: of the clients, if they have any.
        class_names: of the classes, if they have any.
        most: rows and columns.
    """
    counts = np.zeros((len(sizes), 0), int) if counts is None else counts
    num_clients, num_classes = (min(n, most) for n in counts.shape)
    titles = class_names or list(map(str, range(num_classes)))
    view = _table("client", "size", *map(escape, titles[:num_classes]))
    for i, row in enumerate(counts[:num_clients]):
        name = escape(names[i]) if names else str(i)
        view.add_row(name, str(sizes[i]), *(str(n or "") for n in row[:num_classes]))
    _print(view)
    _left_out(len(sizes), "clients")
    _left_out(counts.shape[1], "classes")


def _left_out(number: int, noun: str, most: int = _MOST) -> None:
    if number > most:
        print(f"... and {number - most:,} more {noun}")


def _table(first: str, *others: str) -> Table:
    """A column of names, which may be folded, and columns of numbers, which may not."""
    view = Table(box=SIMPLE, show_edge=False)
    view.add_column(first, overflow="fold")
    for title in others:
        view.add_column(title, justify="right", no_wrap=True)
    return view


def _print(view: Table) -> None:
    """In a terminal's colours and width; as plain text, as wide as it is, anywhere else."""
    live = is_live()
    width = None if is_fixed() else _UNBOUNDED
    console = Console(force_terminal=live, no_color=not live, width=width)
    view.padding = (0, 0) if console.width < _NARROW else (0, 1, 0, 0)
    console.print(view)
