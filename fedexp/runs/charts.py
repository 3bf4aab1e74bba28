"""The curves of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fedexp.runs import svg
from fedexp.runs.pictures import has_tuned_rates, rate_series
from fedexp.runs.reading import UnitResult
from fedexp.runs.scores import is_classification, target_accuracies
from fedexp.runs.series import Series, groups_of, is_wide, over_seeds

_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def charts(
    units: Sequence[UnitResult], classes: Mapping[str, str], targets: Sequence[float] = ()
) -> list[tuple[str, Markup]]:
    """Title and picture of every curve that there is data for.

    Args:
        units: results.
        classes: CSS classes by the name of a strategy.
        targets: test accuracies that have a line across; those of the units if there are none.
    """
    groups = groups_of(units)
    what = "accuracy" if is_classification(units) else "loss"
    score: dict[str, Any] = {"y": f"Test {what}"}
    if what == "accuracy":
        score["targets"] = targets or target_accuracies(units)
    step, learned = ({"y": y, "log": True} for y in ("Server step size", "Learned step size"))
    average, last = f"Test {what}, average of the iterates", f"Test {what}, last iterate"

    def of(key: str, against: str = "round") -> dict[str, Series]:
        return {name: over_seeds(group, key, against) for name, group in groups.items()}

    scores = [of(f"{prefix}test-{what}") for prefix in ("mean-", "")]
    score["log"] = what == "loss" and is_wide(line for lines in scores for line in lines.values())
    by_traffic, by_time = (of(f"mean-test-{what}", x) for x in ("bytes", "simulated"))
    rates = {name: rate_series(group) for name, group in groups.items() if has_tuned_rates(group)}
    wanted = [
        (average, scores[0], score),
        (last, scores[1], score),
        (f"{average}, by traffic", by_traffic, score | _axis(by_traffic)),
        (f"{average}, by simulated time", by_time, score | {"x": "Simulated seconds"}),
        ("Server step size", of("server-step-size"), step),
        ("Learned step size, mean over clients on the log scale", of("learned-step-size"), learned),
        ("Clients' learning rate, mean and spread over clients", rates, {"y": "Learning rate"}),
    ]
    drawn = [
        (title, svg.chart(lines, classes, label=_said(title, lines), **{"x": "Round"} | options))
        for title, lines, options in wanted
    ]
    return [(title, picture) for title, picture in drawn if picture]


def _axis(lines: Mapping[str, Series]) -> dict[str, Any]:
    """The x axis of bytes, in the unit that the longest line needs."""
    most = max((float(np.nanmax(x.x)) for x in lines.values() if x.drawable), default=0)
    unit, sign = next((x for x in _BYTES if most >= x[0]), _BYTES[-1])
    return {"x": f"Moved, {sign}", "unit": unit}


def _said(title: str, lines: Mapping[str, Series]) -> str:
    """A picture in words: where each line ends."""
    ends = [
        f"{name} {line.mean[np.isfinite(line.mean)][-1]:.4g}"
        for name, line in lines.items()
        if line.drawable
    ]
    return f"{title}. At the end: {', '.join(ends)}."
