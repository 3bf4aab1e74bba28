"""The picture of a run, as a paper would have it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fedexp.extras import need
from fedexp.files import atomically
from fedexp.runs.reading import UnitResult
from fedexp.runs.scores import is_classification, target_accuracies
from fedexp.runs.series import Series, groups_of, has, is_wide, over_seeds
from fedexp.runs.titles import shared, title_of

Style = Mapping[str, Any]
"""Colour and dashes, as keyword arguments of ``Axes.plot``."""

# Okabe and Ito 2008, without yellow, which white paper swallows: told apart by all eyes.
COLORS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
DASHES = ("solid", "dashed", "dotted", "dashdot")
_STYLES: list[dict[str, Any]] = [
    {"color": color, "ls": dash} for dash, color in product(DASHES, COLORS)
]

_FAINT: list[dict[str, Any]] = [
    {"ls": "", "marker": ".", "ms": 3, "alpha": 0.5},  # of one seed
    {"lw": 0.6, "alpha": 0.6},
]
_NOTE = {"va": "bottom", "size": 8, "color": "dimgrey"}

# Letters stay letters; nothing in a file says when or in which process it was made.
_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "fedexp", "pdf.fonttype": 42}
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def curves(units: Sequence[UnitResult], config: Mapping[str, Any] | None = None) -> Any:
    """Test accuracy, server step and tuned learning rates against rounds, a matplotlib ``Figure``.

    Every strategy has a line for the average of its iterates, in a band of one standard deviation
    over seeds, and dots for its last iterates. Without accuracies it is the test loss.

    Args:
        units: results.
        config: of the runs, for the title.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    need("matplotlib", "simulation")
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    groups = groups_of(units)
    tuned = {name: group for name, group in groups.items() if has_tuned_rates(group)}
    panels = 3 if tuned else 2
    figure = Figure(figsize=(4.8 * panels + 1.6, 4.0), layout="constrained")
    score, step, *rate = figure.subplots(1, panels)
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(groups)}
    _draw_scores(score, groups, styles, units)
    step.set(title="Server step size", xlabel="Round", ylabel="Server step size", yscale="log")
    for name, group in groups.items():
        _draw(step, over_seeds(group, "server-step-size"), styles[name])
    for axes, (name, group) in product(rate, tuned.items()):
        _draw(axes, rate_series(group), styles[name])
        axes.set(title="Clients' learning rate, mean and spread", xlabel="Round", ylabel="Rate")
    for axes in (score, step, *rate):
        _finish(axes)
    figure.suptitle(title_of(units, config or {}))
    _legend(figure, styles)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write a ``Figure`` in the format that the suffix names: ``.png``, ``.svg``, ``.pdf``."""
    import matplotlib

    kind = path.suffix[1:].lower()
    with matplotlib.rc_context(_RC):
        atomically(
            path,
            lambda beside: figure.savefig(
                beside, format=kind, dpi=150, metadata=_NO_DATE.get(kind, {})
            ),
        )
    return path


def as_png(figure: Any) -> bytes:
    """A ``Figure`` as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def has_tuned_rates(group: Sequence[UnitResult]) -> bool:
    """Whether the clients of a group choose their learning rates themselves."""
    return any(row.get("learning-rate-std") for unit in group for row in unit.rows)


def rate_series(group: Sequence[UnitResult]) -> Series:
    """The clients' mean rate and their spread, both as means over seeds."""
    rate = over_seeds(group, "learning-rate")
    return Series(rate.x, rate.mean, over_seeds(group, "learning-rate-std").mean)


def _draw_scores(
    axes: Any,
    groups: Mapping[str, Sequence[UnitResult]],
    styles: Mapping[str, Style],
    units: Sequence[UnitResult],
) -> None:
    what = "accuracy" if is_classification(units) else "loss"
    average = shared(units, "average") or "average"
    has_seeds = any(len(group) > 1 for group in groups.values())
    averages = {name: over_seeds(group, f"mean-test-{what}") for name, group in groups.items()}
    if what == "loss" and is_wide(averages.values()):
        axes.set_yscale("log")
    for name, group in groups.items():
        _draw(axes, averages[name], styles[name])
        last, faint = over_seeds(group, f"test-{what}"), _FAINT[has_seeds]
        axes.plot(last.x, last.mean, color=styles[name]["color"], **faint)
    lines = "thin line" if has_seeds else "dots"
    title = f"Test {what}: line {average} of the iterates, {lines} the last"
    axes.set(title=title, xlabel="Round", ylabel=f"Test {what}")
    for target in (
        target_accuracies(units) if what == "accuracy" and has(units, "test-accuracy") else []
    ):
        axes.axhline(target, color="grey", lw=0.8, ls=":")
        axes.text(0.01, target, f"target {target:g}", transform=axes.get_yaxis_transform(), **_NOTE)


def _draw(axes: Any, series: Series, style: Style) -> None:
    """A line in its band; a point where there is but one round."""
    log = axes.get_yscale() == "log"
    series = series.positive if log else series
    if series.drawable:
        marker = "o" if len(series.x) == 1 else ""
        axes.plot(series.x, series.mean, marker=marker, ms=4, lw=1.4, **style)
        edges = series.low(log), series.mean + series.std
        axes.fill_between(series.x, *edges, color=style["color"], alpha=0.15, lw=0)


def _finish(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.title.set_size(10)


def _legend(figure: Any, styles: Mapping[str, Style]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, lw=1.6, **style) for name, style in styles.items()]
    if handles:
        figure.legend(handles=handles, loc="outside right center", handlelength=3, fontsize=9)
