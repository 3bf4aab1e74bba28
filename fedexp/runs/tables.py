"""Tables of runs: every unit, every row, and means over seeds, as data, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from itertools import accumulate, pairwise
from typing import Any

from fedexp.extras import need
from fedexp.runs.columns import best_of, cell, columns, headings, shown
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.scores import ITERATES, numbers, rounds_to, target_accuracies
from fedexp.runs.series import as_number, groups_of, settings_text

BASELINE = "fedavg"
_NO_MEASURES = {"seed", "target-accuracy", "rounds-to-target", "mean-rounds-to-target"}


def results(units: Sequence[UnitResult]) -> list[MetricsRow]:
    """A row for every unit: strategy, seed, settings, and all numbers of its summary."""
    return [
        {
            "strategy": unit.strategy,
            "seed": unit.seed,
            "tuning": unit.tuning,
            **unit.settings,
            **{k: v for k, v in numbers(unit).items() if not isinstance(v, list | dict)},
        }
        for unit in units
    ]


def round_rows(units: Sequence[UnitResult]) -> list[MetricsRow]:
    """A row for every round of every unit."""
    return [
        {"strategy": unit.strategy, "seed": unit.seed, **unit.settings, **row}
        for unit in units
        if not unit.tuning
        for row in unit.rows
    ]


def frame(rows: Sequence[MetricsRow]) -> Any:
    """``rows`` as a ``pandas.DataFrame``.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    need("pandas", "files")
    import pandas

    return pandas.DataFrame(rows)


def aggregate(
    units: Sequence[UnitResult], targets: Sequence[float] = (), baseline: str = BASELINE
) -> list[MetricsRow]:
    """A row for every strategy and settings: means over seeds.

    For each number ``x`` there is its mean ``x`` over the seeds that have it and the sample
    standard deviation ``x-std``, None with fewer than two. ``rounds-to-T`` (last iterate) and
    ``mean-rounds-to-T`` (average) are None unless every seed reached the target ``T``; their
    ``-reached`` says how many did, their ``-speed-up`` is the baseline's rounds over these.

    Args:
        units: results; those that tuned settings are left out.
        targets: test accuracies; those of the units if there are none.
        baseline: the strategy that others are compared with.
    """
    targets = targets or target_accuracies(units)
    groups = groups_of(units)
    rows = [_means(name, group, targets) for name, group in groups.items()]
    for row in rows:
        row |= _speed_ups(row, _baseline_of(row, rows, baseline), targets)
    return rows


def short(units: Sequence[UnitResult], targets: Sequence[float] = ()) -> list[MetricsRow]:
    """Of ``aggregate`` what the tables for people show, as numbers."""
    rows = aggregate(units, targets)
    keys = [key for c in shown(columns(units, targets), rows) for key in (c.key, f"{c.key}-std")]
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    return [
        {"strategy": row["name"], "seeds": row["seeds"], **{key: row.get(key) for key in keys}}
        for row in rows
    ]


def to_csv(rows: Sequence[MetricsRow]) -> str:
    """``rows`` as CSV, with a header of all their keys; a value that is None is empty."""
    file = io.StringIO()
    keys = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(file, list(keys), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def to_markdown(units: Sequence[UnitResult], targets: Sequence[float] = ()) -> str:
    """The aggregated table in Markdown, the best of each column in bold."""
    head, *body = _cells(units, targets, "±", lambda text: f"**{text}**")
    body = [[cell.replace("|", "\\|") for cell in line] for line in body]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))


def to_html(units: Sequence[UnitResult], targets: Sequence[float] = ()) -> str:
    """The aggregated table as a ``<table>``, the best of each column in bold."""
    head, *body = _cells(units, targets, "±", lambda text: f"<b>{text}</b>")
    lines = [[escape(line[0]), *line[1:]] for line in body]
    rows = [("th", list(map(escape, head))), *(("td", line) for line in lines)]
    inside = "".join(
        f"<tr>{''.join(f'<{tag}>{x}</{tag}>' for x in line)}</tr>\n" for tag, line in rows
    )
    return f"<table>\n{inside}</table>"


def to_latex(units: Sequence[UnitResult], targets: Sequence[float] = ()) -> str:
    r"""The aggregated table as a ``tabular`` for ``\usepackage{booktabs}``, the best in bold."""
    head, *body = _cells(units, targets, r"$\pm$", lambda text: rf"\textbf{{{text}}}")
    above, below = headings([_latex(title) for title in head[2:]])
    ends = list(accumulate((span for _, span in above), initial=2))
    spans = [rf"\multicolumn{{{span}}}{{c}}{{{title}}}" for title, span in above]
    rules = [rf"\cmidrule(lr){{{first + 1}-{last}}}" for first, last in pairwise(ends)]
    body = [[_latex(line[0]), *(x.replace("–", "--") for x in line[1:])] for line in body]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(["", "", *spans]) + r" \\",
            " ".join(rules),
            " & ".join([*head[:2], *below]) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _means(name: str, group: Sequence[UnitResult], targets: Sequence[float]) -> MetricsRow:
    row: MetricsRow = {"name": name, "strategy": group[0].strategy}
    row |= {"settings": settings_text(group[0].settings), "seeds": len(group)}
    found = [numbers(unit) for unit in group]
    for key in dict.fromkeys(key for each in found for key in each):
        values = [each[key] for each in found if each.get(key) is not None]
        if key.endswith("seconds-to-target") and len(values) < len(found):
            values = []  # as rounds: a mean over those that came there would look too good
        if key not in _NO_MEASURES and all(not math.isnan(as_number(x)) for x in values):
            row |= _mean(key, values)
    for target in targets:
        for prefix in ITERATES:
            key = f"{prefix}rounds-to-{target:g}"
            reached = [r for u in group if (r := rounds_to(u, target, prefix)) is not None]
            row |= _mean(key, reached if len(reached) == len(group) else [])
            row[f"{key}-reached"] = len(reached)
    return row


def _mean(key: str, values: Sequence[float]) -> MetricsRow:
    return {
        key: statistics.fmean(values) if values else None,
        f"{key}-std": statistics.stdev(values) if len(values) > 1 else None,
    }


def _baseline_of(row: MetricsRow, rows: Sequence[MetricsRow], baseline: str) -> MetricsRow:
    """The baseline with the settings of ``row``, else the only one that there is."""
    all_ = [other for other in rows if other["strategy"] == baseline]
    alike = [other for other in all_ if other["settings"] == row["settings"]]
    return (alike or (all_ if len(all_) == 1 else [{}]))[0]


def _speed_ups(row: MetricsRow, other: MetricsRow, targets: Sequence[float]) -> MetricsRow:
    keys = [f"{prefix}rounds-to-{target:g}" for target in targets for prefix in ITERATES]
    return {
        f"{key}-speed-up": other[key] / row[key] if other.get(key) and row[key] else None
        for key in keys
    }


def _cells(
    units: Sequence[UnitResult],
    targets: Sequence[float],
    plus_minus: str,
    bold: Callable[[str], str],
) -> list[list[str]]:
    """A header and a line for every strategy and settings; columns without a value are left out."""
    rows = aggregate(units, targets)
    seen = shown(columns(units, targets), rows)
    lines = [["Strategy", "Seeds", *(column.title for column in seen)]]
    for row in rows:
        texts = []
        for column in seen:
            text = cell(row, column, plus_minus)
            is_best = row.get(column.key) is not None and row[column.key] == best_of(rows, column)
            texts.append(bold(text) if is_best else text)
        lines.append([row["name"], str(row["seeds"]), *texts])
    return lines


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
