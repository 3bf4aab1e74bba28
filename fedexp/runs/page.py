"""``report.html``: all that a run left, in one file that needs no network."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from fedexp.config import Config
from fedexp.files import save_text
from fedexp.runs import columns, pictures, sections, tables
from fedexp.runs.charts import charts
from fedexp.runs.reading import MetricsRow, RunData, UnitResult, read
from fedexp.runs.series import groups_of, settings_text
from fedexp.runs.titles import agreed, shared, title_of

_warn = logging.getLogger("flwr").warning
_STATUS = ("running", "failed", "interrupted", "finished")


def report(
    folders: Sequence[str | Path], out: str | Path | None = None, targets: Sequence[float] = ()
) -> Path:
    """Write ``results.csv``, ``curves.png``, ``curves.svg`` and ``report.html``; the last's path.

    Args:
        folders: of one or several runs.
        out: where to write; the folder of the run if it is one.
        targets: test accuracies for the table; those of the runs if there are none.

    Raises:
        ValueError: no folder, one without a run, a damaged file, or several without ``out``.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from fedexp.runs import report
        >>> folder = Path(mkdtemp())  # of a run that has taken one round
        >>> _ = (folder / "config.toml").write_text('dataset = "digits"')
        >>> (folder / "fedavg").mkdir()
        >>> line = '{"round": 1, "test-accuracy": 0.5}' + chr(10)
        >>> _ = (folder / "fedavg" / "metrics.jsonl").write_text(line)
        >>> report([folder]).name, (folder / "curves.svg").exists()
        ('report.html', True)
    """
    if not folders or (len(folders) > 1 and out is None):
        raise ValueError(
            f"report(folders={len(folders)}, out={out}): there is one run, or a place for the page "
            "of several. Name a folder with --out."
        )
    found = read([Path(folder) for folder in folders])
    to = Path(folders[0] if out is None else out)
    if to.exists() and not to.is_dir():
        raise ValueError(f"report(out={str(to)!r}): is a file. Name a folder with --out.")
    to.mkdir(parents=True, exist_ok=True)
    save_text(to / "results.csv", tables.to_csv(tables.results(found.units)))
    figure = pictures.curves(found.units, found.config)
    for name in ("curves.png", "curves.svg"):
        pictures.save(figure, to / name)
    save_text(to / "report.html", render(found, targets=targets))
    return to / "report.html"


class Live:
    """The page of a run that goes on: call it after every round, it writes when it is time.

    It takes at most a twentieth of the time, and writes at most every two seconds. A page that
    cannot be written ends no run: it is heard of once.

    Args:
        folder: of the run.
        warn: takes the line about a page that cannot be written.

    Example:
        There is no run to draw, which is told once:

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from fedexp.runs import Live
        >>> said = []
        >>> page = Live(Path(mkdtemp()), said.append)
        >>> page(), page(), len(said)
        (None, None, 1)
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = _warn) -> None:
        self._folder = folder
        self._warn = warn
        self._next = 0.0

    def __call__(self) -> None:
        """Write the page, unless it is too early."""
        if (start := time.monotonic()) < self._next:
            return
        try:
            refresh(self._folder)
        except Exception as error:
            self._next = math.inf
            said = " ".join(str(error).split())[:300]
            return self._warn(f"report.html: {type(error).__name__}: {said}. The run goes on.")
        now = time.monotonic()
        self._next = now + max(2.0, 20 * (now - start))


def refresh(folder: Path) -> None:
    """Write ``report.html`` of a run that goes on: it reloads itself every few seconds."""
    save_text(folder / "report.html", render(read([folder]), live=True))


@cache  # compiling it takes longer than filling it in
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def render(found: RunData, *, live: bool = False, targets: Sequence[float] = ()) -> str:
    """The page as HTML.

    Args:
        found: what it shows.
        live: whether it reloads itself.
        targets: test accuracies for the table; those of the runs if there are none.
    """
    units = found.units
    config = agreed(units, found.config)
    rows = tables.aggregate(units, targets)
    classes = {name: _classes(i) for i, name in enumerate(groups_of(units))}
    defaults = {key: field.default for key, field in Config.keys().items()}
    return _template().render(
        title=title_of(units, config) or "Runs",
        live=live,
        average=shared(units, "average"),
        model=shared(units, "model"),
        status=_status(units, live),
        progress=_progress(units),
        colors=list(zip(pictures.COLORS, _DARK, strict=True)),
        classes=classes,
        rows=rows,
        table_data=_table(units, rows, targets),
        has_seeds=any(row["seeds"] > 1 for row in rows),
        partly=any(
            0 < count < row["seeds"]
            for row in rows
            for key, count in row.items()
            if key.endswith("-reached")
        ),
        charts=charts(units, classes, targets),
        costs=sections.costs(rows),
        clients=sections.clients(units, classes),
        partition=sections.partition_markup(found.partition),
        has_classes=bool(found.partition.get("classes")),
        num_clients=len(found.partition.get("sizes", ())),
        failures=sections.failures(units),
        problems=_problems(units),
        tuning=_tuning(units, targets),
        runs=_runs(units),
        changed={k: v for k, v in config.items() if defaults.get(k) != v},
        config=config,
        command=found.command,
        environment=_flat(found.environment),
    )


# As ``pictures.COLORS``, for a dark ground.
_DARK = ("#f0f0f0", "#f0b030", "#5b9cff", "#ff7d3c", "#27c797", "#e39ac6", "#8ed8ff")


def _classes(i: int) -> str:
    """CSS classes of the i-th strategy: its place, colour and dashes."""
    count = len(pictures.COLORS)
    return f"g{i} c{i % count} d{i // count % len(pictures.DASHES)}"


def _table(
    units: Sequence[UnitResult], rows: Sequence[MetricsRow], targets: Sequence[float]
) -> MetricsRow:
    """Two lines of titles, then texts with whether they are the best of their column."""
    seen = columns.shown(columns.columns(units, targets), rows)
    titles, subtitles = columns.headings([column.title for column in seen])
    return {
        "titles": titles,
        "subtitles": subtitles,
        "lines": [
            (row, [(columns.cell(row, c), _is_best(row, rows, c)) for c in seen]) for row in rows
        ],
    }


def _is_best(row: MetricsRow, rows: Sequence[MetricsRow], column: columns.Column) -> bool:
    value = row.get(column.key)
    return value is not None and value == columns.best_of(rows, column)


def _status(units: Sequence[UnitResult], live: bool) -> str:
    ended = {
        str(unit.summary.get("ended", "finished" if unit.summary else "interrupted"))
        for unit in units
    }
    ended |= {"running"} if live else set()
    return next((status for status in _STATUS if status in ended), "interrupted")


def _progress(units: Sequence[UnitResult]) -> str:
    done = sum(bool(unit.summary) for unit in units)
    last = max((len(unit.rows) for unit in units), default=0)
    return f"{done} of {len(units)} runs done, {last} rounds"


def _problems(units: Sequence[UnitResult]) -> list[tuple[str, Any, str]]:
    return [(u.strategy, u.seed, u.summary["problem"]) for u in units if u.summary.get("problem")]


def _tuning(units: Sequence[UnitResult], targets: Sequence[float]) -> MetricsRow | None:
    """The table of the units that chose settings."""
    own = [
        UnitResult(
            u.strategy, u.seed, u.settings, u.rows, u.summary, about={**u.about, "tuning": False}
        )
        for u in units
        if u.tuning
    ]
    return _table(own, tables.aggregate(own, targets), targets) if own else None


def _runs(units: Sequence[UnitResult]) -> tuple[list[str], list[list[str]]]:
    """Every unit with all numbers of its summary."""
    rows = tables.results(units)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    return keys, [[_exact(row.get(key)) for key in keys] for row in rows]


def _exact(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _flat(values: Any) -> dict[str, str]:
    """An environment as lines of text; its copy of the configuration left out."""
    found = {}
    for key, value in values.items():
        if key != "config":
            found[str(key)] = settings_text(value) if isinstance(value, dict) else _exact(value)
    return found
