"""What the page of a run shows beside its table and its curves: clients, failures, traffic."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fedexp.runs.columns import percent, three_figures, two_digits
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.series import as_number, groups_of
from fedexp.runs.svg import WIDTH, AxisScale, box, ends, picture, words
from fedexp.strategies.attendance import kind_of_failure

_FEW_CLIENTS = 20  # have a table by name
_MOST_CLIENTS = 100  # in the picture of the partition
_COSTS = {
    "train-seconds": "Training, s a round",
    "move-seconds": "Moving, s",
    "server-seconds": "Server, s",
    "seconds-a-round": "All, s (median)",
    "bytes-down": "Down, in all",
    "bytes-up": "Up, in all",
}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def clients(units: Sequence[UnitResult], classes: Mapping[str, str]) -> MetricsRow:
    """Every client's last accuracy, or loss; by name if they are few, and how it is spread."""
    groups = {name: _by_client(group) for name, group in groups_of(units).items()}
    groups = {name: values for name, values in groups.items() if values}
    names = list(dict.fromkeys(client for values in groups.values() for client in values))
    is_accuracy = _key(units) == "accuracy"
    text = percent if is_accuracy else three_figures
    spread = {name: _spread(list(x.values()), is_accuracy) for name, x in groups.items()}
    examples = _examples(units)
    return {
        "what": "accuracy, %" if is_accuracy else "loss",
        "count": len(names),
        "strategies": list(groups),
        "names": names if len(names) <= _FEW_CLIENTS else [],
        "lines": [
            [
                name,
                examples.get(name),
                *(text(x[name]) if name in x else "–" for x in groups.values()),
            ]
            for name in names
        ],
        "spread_lines": [[name, *map(text, values.values())] for name, values in spread.items()],
        "measures": list(next(iter(spread.values()), {})),
        "picture": _strips(groups, classes),
    }


def failures(units: Sequence[UnitResult]) -> list[MetricsRow]:
    """What failed or was late, a row for each strategy and reason: replies, nodes and rounds.

    Faults that were ordered have a row of their own, since not all of them make a reply fail.
    """
    found = []
    for name, group in groups_of(units).items():
        kinds: dict[str, list[tuple[int, Any]]] = {}
        for row in (row for unit in group for row in unit.rows):
            for reason, nodes in (row.get("failures") or {}).items():
                kinds.setdefault(str(reason), []).extend((row["round"], node) for node in nodes)
        for reason, cases in kinds.items():
            found.append(
                {
                    "strategy": name,
                    "kind": kind_of_failure(reason),
                    "reason": reason,
                    "replies": len(cases),
                    "nodes": len({node for _, node in cases}),
                    "rounds": _from_to([r for r, _ in cases]),
                }
            )
        rows = [row for unit in group for row in unit.rows if row.get("num-late")]
        if rows:
            number = sum(int(row["num-late"]) for row in rows)
            told = {"replies": number, "nodes": "", "rounds": _from_to([x["round"] for x in rows])}
            found.append({"strategy": name, "kind": "late", "reason": _LATE, **told})
        found += _ordered(name, group)
    return found


def _ordered(name: str, group: Sequence[UnitResult]) -> list[MetricsRow]:
    rows = [row for unit in group for row in unit.rows]
    counts: dict[str, int] = {}
    for row in rows:
        for key, number in row.items():
            if key.startswith("faults-"):
                kind = key.removeprefix("faults-")
                counts[kind] = counts.get(kind, 0) + int(number or 0)
    if not sum(counts.values()):
        return []
    told = {"strategy": name, "replies": sum(counts.values()), "nodes": ""}
    told["rounds"] = _from_to([row["round"] for row in rows])
    said = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    return [{**told, "kind": "ordered", "reason": f"faults to order: {said}"}]


_LATE = "missing when the round ended; whatever comes later is ignored"


def _from_to(rounds: Sequence[int]) -> str:
    first, last = min(rounds), max(rounds)
    return str(first) if first == last else f"{first} to {last}"


def costs(rows: Sequence[MetricsRow]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines: seconds a round by part, and bytes in all, of an aggregated table."""
    keys = [key for key in _COSTS if any(row.get(key) is not None for row in rows)]
    lines = [[row["name"], *(_cost(key, row.get(key)) for key in keys)] for row in rows]
    return ["Strategy", *(_COSTS[key] for key in keys)], lines if keys else []


def _cost(key: str, value: float | None) -> str:
    if value is None or key.startswith("bytes"):
        return size(value)
    return two_digits(value)


def size(count: float | None) -> str:
    """Bytes as people say them: ``1.2 GB``."""
    if count is None:
        return "–"
    power = min(int(np.log10(max(count, 1)) // 3), len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def partition_markup(data: Mapping[str, Any]) -> Markup:
    """Examples of each client by class, darker for more, and how many it has in all."""
    if not data.get("sizes"):
        return Markup()
    sizes = data["sizes"][:_MOST_CLIENTS]
    names = [str(name) for name in data.get("clients") or range(len(sizes))][: len(sizes)]
    labels = [str(name) for name in data.get("classes") or []]
    counts = np.array(data["counts"][: len(sizes)] if labels else np.zeros((len(sizes), 0)))
    height = 20 if len(sizes) <= _FEW_CLIENTS else 8
    left, middle, right, top = 130, (330 if labels else 130), WIDTH - 44, 22
    parts = _cells(counts, left, top, (middle - left) / max(len(labels), 1), height)
    parts += [
        words(left + (i + 0.5) * (middle - left) / len(labels), top - 6, label[:9], "middle")
        for i, label in enumerate(labels)
        if len(labels) <= 12
    ]
    each = 1 if height > 12 else 5
    for i, (name, count) in enumerate(zip(names, sizes, strict=True)):
        y = top + i * height
        parts.append(
            box(middle + 8, y + 1, count / max(*sizes, 1) * (right - middle - 8), height - 2, "bar")
        )
        if i % each == 0:
            parts.append(words(left - 6, y + height / 2 + 4, _short(name), "end"))
            parts.append(words(right + 4, y + height / 2 + 4, f"{count}"))
    parts += [words(middle + 8, top - 6, "examples")]
    parts += [words(left - 6, top - 6, "class", "end")] if labels else []
    label = f"Examples of {len(sizes)} clients by class, {min(sizes)} to {max(sizes)} a client."
    return picture(label, WIDTH, top + len(sizes) * height + 4, parts)


def _cells(
    counts: np.ndarray[Any, Any], left: float, top: float, width: float, height: float
) -> list[Markup]:
    most = counts.max(initial=1)
    return [
        box(
            left + j * width,
            top + i * height,
            width - 1,
            height - 1,
            "bar",
            0.1 + 0.9 * count / most,
        )
        for (i, j), count in np.ndenumerate(counts)
        if count
    ]


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _key(units: Sequence[UnitResult]) -> str:
    told = any(row.get("accuracy") is not None for unit in units for row in unit.clients)
    return "accuracy" if told else "loss"


def _by_client(group: Sequence[UnitResult]) -> dict[str, float]:
    """Of each client its last value, the mean over seeds."""
    key, found = _key(group), dict[str, list[float]]()
    for unit in group:
        last = {row["client"]: as_number(row.get(key)) for row in unit.clients}
        for client, value in last.items():
            found.setdefault(client, []).append(value)
    means = {client: statistics.fmean(values) for client, values in found.items()}
    return {client: mean for client, mean in means.items() if mean == mean}


def _examples(units: Sequence[UnitResult]) -> dict[str, Any]:
    return {row["client"]: row.get("examples") for unit in units for row in unit.clients}


def _spread(values: list[float], more_is_better: bool) -> dict[str, float]:
    """From the worst client to the best, each client counted once."""
    ordered = sorted(values, reverse=not more_is_better)
    tenth = ordered[: -(-len(ordered) // 10)]
    return {
        "Worst": ordered[0],
        "Worst tenth": statistics.fmean(tenth),
        "Median": statistics.median(ordered),
        "Mean": statistics.fmean(ordered),
        "Best": ordered[-1],
    }


def _strips(groups: Mapping[str, Mapping[str, float]], classes: Mapping[str, str]) -> Markup:
    """A line from the lowest to the highest client, a box around the middle half, the median."""
    if not groups:
        return Markup()
    all_ = [value for values in groups.values() for value in values.values()]
    across = AxisScale(*ends([np.array(all_)]), 150, WIDTH - 16)
    parts, bottom = [], 24 * len(groups) + 4
    for i, (name, values) in enumerate(groups.items()):
        quarters = across(np.quantile(list(values.values()), [0, 0.25, 0.5, 0.75, 1]))
        parts.append(words(140, 24 * i + 18, _short(name), "end"))
        parts.append(_strip(name, classes[name], [float(x) for x in quarters], 24 * i + 14))
    parts += [words(float(across(t)), bottom + 14, f"{t:.4g}", "middle") for t in across.ticks]
    said = "; ".join(
        f"{name}: {min(v.values()):.3g} to {max(v.values()):.3g}" for name, v in groups.items()
    )
    return picture(f"Spread over clients. {said}.", WIDTH, bottom + 20, parts)


def _strip(name: str, kind: str, quarters: list[float], y: float) -> Markup:
    low, first, median, third, high = quarters
    shape = '<path class="line solid" d="M{:.1f} {}H{:.1f}M{:.1f} {}V{}"/>'
    line = Markup(shape).format(low, y, high, median, y - 7, y + 7)
    return Markup('<g class="{}"><title>{}</title>{}{}</g>').format(
        kind, name, box(first, y - 5, max(third - first, 1), 10, "band strong"), line
    )
