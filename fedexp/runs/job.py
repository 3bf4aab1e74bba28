"""One unit from its start to its end, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedexp.arrays import Arrays
from fedexp.files import read_json
from fedexp.runs.federation import Federation, Own
from fedexp.runs.plan import Unit
from fedexp.runs.reading import MetricsRow
from fedexp.runs.recorder import is_finished
from fedexp.runs.trackers import Trackers, trackers_of
from fedexp.runs.unit_run import Stop, UnitRun
from fedexp.simulation.grid import LocalGrid

OnUnitRow = Callable[[Unit, MetricsRow], Any]


@dataclass(frozen=True, eq=False)
class Job:
    """A unit that is to run.

    Attributes:
        unit: what runs.
        own: objects in place of configuration keys.
        strategy: an object in place of the strategy that the unit names.
        root: folder of the whole; None to write nothing.
        resume: what the folder holds of the unit is not run again.
        until: when ``max-minutes`` are over, on ``time.monotonic``.
    """

    unit: Unit
    own: Own = field(default_factory=Own)
    strategy: Any = None
    root: Path | None = None
    resume: bool = False
    until: float = math.inf

    @property
    def folder(self) -> Path | None:
        """Of the unit."""
        return self.root / self.unit.folder if self.root else None

    def finished(self) -> MetricsRow | None:
        """The summary of a unit that need not run again."""
        rounds = 0 if self.unit.tuning else self.unit.config.num_server_rounds
        if self.resume and self.folder and is_finished(self.folder, rounds):
            return dict(read_json(self.folder / "summary.json"))
        return None


@dataclass(frozen=True, eq=False)
class UnitOutcome:
    """What came of a unit.

    Attributes:
        unit: the unit.
        summary: how it did.
        rows, clients: of its rounds and of its clients' evaluations; empty if they are on disk.
        models: the last iterate and the average; empty if they are on disk.
    """

    unit: Unit
    summary: MetricsRow
    rows: list[MetricsRow] = field(default_factory=list)
    clients: list[MetricsRow] = field(default_factory=list)
    models: tuple[Arrays, ...] = ()


def run_job(
    job: Job,
    federation: Federation,
    grid: LocalGrid,
    on_row: OnUnitRow = lambda *_: None,
    stop: Stop = lambda _: False,
) -> UnitOutcome:
    """Run a unit on a grid of its federation, until its end or until its time is over."""
    unit = job.unit
    going = UnitRun(unit, federation, job.strategy, job.folder)
    going.begin(grid, resume=job.resume)
    trackers = trackers_of(unit.config.log, job.root) if job.root else Trackers({})
    trackers.begin(unit.about(), job.folder or Path(), len(going.rows) + 1)

    def told(row: MetricsRow) -> None:
        trackers.row(row)
        on_row(unit, row)

    summary = going.advance(grid, unit.config.num_server_rounds, told, stop, job.until)
    trackers.end(summary)
    if job.folder:
        return UnitOutcome(unit, summary)
    return UnitOutcome(unit, summary, going.rows, going.clients, going.models())
