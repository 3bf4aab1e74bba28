"""The columns of the aggregated table, as people read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.scores import ITERATES, is_classification, target_accuracies
from fedexp.strategies.attendance import BAD_REPLIES

_WHEN = ("Best", "Final")


@dataclass(frozen=True)
class Column:
    """A number of the aggregated table, as people read it.

    Attributes:
        title: with the unit.
        key: of the row.
        text: of a value, without its unit.
        best: ``max`` or ``min``; None where neither is better.
        counts: whether each seed has a whole number.
    """

    title: str
    key: str
    text: Callable[[float], str]
    best: Callable[[list[float]], float] | None = None
    counts: bool = False


def columns(units: Sequence[UnitResult], targets: Sequence[float] = ()) -> list[Column]:
    """What the aggregated table shows: of the last iterate, then of the average.

    Accuracies where there are any, else losses.
    """
    steps = [
        Column("Server step", "mean-server-step-size", two_digits),
        Column("Learned step", "learned-step-size", three_figures),
        Column("Privacy ε", "privacy-epsilon", three_figures),
        Column("ε of an example", "epsilon-spent", three_figures),
        Column("Simulated s, in all", "simulated-seconds", three_figures),
        Column("Simulated s, last to target", "simulated-seconds-to-target", three_figures, min),
        Column(
            "Simulated s, average to target",
            "mean-simulated-seconds-to-target",
            three_figures,
            min,
        ),
        Column("Faults", "faults", one_digit, counts=True),
        *(
            Column(f"Bad replies, {kind}", f"bad-replies-{kind}", one_digit, counts=True)
            for kind in (*BAD_REPLIES, "other")
        ),
    ]
    if not is_classification(units):
        key = "{}-test-loss"
        losses = [Column(f"{x} loss", key.format(x.lower()), three_figures, min) for x in _WHEN]
        return [*_of_both(losses), *steps]
    pairs = []
    for target in targets or target_accuracies(units):
        key = f"rounds-to-{target:g}"
        pairs.append(Column(f"Rounds to {100 * target:.4g} %", key, one_digit, min, counts=True))
        pairs.append(Column("Speed-up", f"{key}-speed-up", two_digits, max))
    pairs += [Column(f"{x} %", f"{x.lower()}-accuracy", percent, max) for x in _WHEN]
    return [*_of_both(pairs), *steps]


def shown(columns: Sequence[Column], rows: Sequence[MetricsRow]) -> list[Column]:
    """The columns in which any row has something to say."""
    return [
        column
        for column in columns
        if any(row.get(column.key) is not None or row.get(f"{column.key}-reached") for row in rows)
    ]


def headings(titles: Sequence[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """Titles as two lines: what neighbours share with how many they are, and what each adds."""
    parts = [title.partition(", ") for title in titles]
    above = [(title, len(list(same))) for title, same in groupby(parts, key=lambda part: part[0])]
    return above, [part[2] for part in parts]


def best_of(rows: Sequence[MetricsRow], column: Column) -> float | None:
    """The best value in a column; None if there is nothing to choose from."""
    values = [row[column.key] for row in rows if row.get(column.key) is not None]
    return column.best(values) if column.best and len(rows) > 1 and values else None


def cell(row: MetricsRow, column: Column, plus_minus: str = "±") -> str:
    """A value and its spread; for a target not reached by all, how many seeds did."""
    value, std = row.get(column.key), row.get(f"{column.key}-std")
    if value is None:
        reached = row.get(f"{column.key}-reached")
        return f"({reached} of {row['seeds']})" if reached else "–"
    if std is None:
        return f"{value:.0f}" if column.counts and value == int(value) else column.text(value)
    text = column.text(value)
    if column.text is three_figures and "e" not in text:  # as many decimals as the mean
        return f"{text} {plus_minus} {std:.{len(text.partition('.')[2])}f}"
    return f"{text} {plus_minus} {column.text(std)}"


def percent(value: float) -> str:
    """``0.817`` as ``81.7``."""
    return f"{100 * value:.1f}"


def one_digit(value: float) -> str:
    """With one decimal."""
    return f"{value:.1f}"


def two_digits(value: float) -> str:
    """With two decimals."""
    return f"{value:.2f}"


def three_figures(value: float) -> str:
    """With three significant figures."""
    return f"{value:#.3g}".removesuffix(".")


def _of_both(columns: Sequence[Column]) -> list[Column]:
    """Each of the columns for the last iterate and for the average."""
    return [
        replace(column, title=f"{column.title}, {who}", key=f"{prefix}{column.key}")
        for column in columns
        for prefix, who in zip(ITERATES, ("last", "average"), strict=True)
    ]
