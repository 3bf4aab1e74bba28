"""All units of a run: one after the other, or several at a time where cores allow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedexp.config import Config
from fedexp.runs.ending import time_of_end
from fedexp.runs.engines import check_engine, engine_of, grid_of, seconds_of
from fedexp.runs.federation import Federation, Own
from fedexp.runs.job import Job, OnUnitRow, UnitOutcome, run_job
from fedexp.runs.parallel import can_travel, cores, run_in_processes
from fedexp.runs.plan import Unit, first_units, selected_units
from fedexp.runs.recorder import save_about
from fedexp.runs.trackers import trackers_of
from fedexp.runs.unit_run import Stop
from fedexp.simulation.grid import LocalGrid

_WORTH_PROCESSES = 20.0  # seconds of work; starting a process takes some four


@dataclass(eq=False)
class Study:
    """The runs that a configuration asks for.

    Args:
        config: of the whole.
        strategies: what each is called, and how ``--strategy`` has it.
        objects: strategies and rules in place of those, by what they are called.
        own: objects in place of configuration keys, for all.
        root: the folder of the whole; None to write nothing.
        resume: go on with what is there.

    Attributes:
        is_cut: the last ``run`` ended because ``max-minutes`` were over.
    """

    config: Config
    strategies: Mapping[str, str]
    objects: Mapping[str, Any] = field(default_factory=dict)
    own: Own = field(default_factory=Own)
    root: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        self._grids = _Grids(self.own)
        self._known: dict[str, float] = {}
        self._until = math.inf
        self.is_cut = False

    def open(self) -> None:
        """Start the engine of the first units, which may fail."""
        units = self.units()
        if not self._several([self._job(unit) for unit in units], None):
            self._grids.of(units[0], self._engine(units[0]))

    def close(self) -> None:
        """End the engine; it starts anew when it is needed."""
        self._grids.close()

    def units(self) -> list[Unit]:
        """Those that depend on no other.

        Raises:
            ValueError: the configuration asks for what cannot be.
        """
        return first_units(self.config, self.strategies)

    def check(self) -> None:
        """Find out now what would fail in the first round of any unit.

        Raises:
            ValueError: something would.
        """
        trackers_of(self.config.log, self.root or Path())
        for unit in _unlike(self.units()):
            federation = Federation(unit.config, self.own)
            federation.check(unit.config)
            federation.run(unit.config, self.objects.get(unit.label))
            check_engine(federation, self._engine(unit))

    def run(
        self, on_row: OnUnitRow = lambda *_: None, stop: Stop | None = None
    ) -> list[UnitOutcome]:
        """Run all units; what came of those that report and began in time.

        Args:
            on_row: is called with a unit and the line of each of its rounds.
            stop: is asked after every round whether the unit is to end there.
        """
        self._until = time_of_end(self.config)
        outcomes = self._run(self.units(), on_row, stop)
        if not self.config.select:
            return outcomes
        if self.is_cut:
            return []  # not all was tried
        tried = [(outcome.unit, outcome.summary) for outcome in outcomes]
        best = selected_units(self.config, self.strategies, tried)
        return self._run(best, on_row, stop)

    def _run(
        self, units: Sequence[Unit], on_row: OnUnitRow, stop: Stop | None
    ) -> list[UnitOutcome]:
        """Outcomes in the order of ``units``."""
        jobs = [self._job(unit) for unit in units]
        done = {id(j): UnitOutcome(j.unit, s) for j in jobs if (s := j.finished()) is not None}
        for job in jobs:
            if id(job) in done and job.folder:
                federation = Federation(job.unit.config, self.own)
                save_about(job.folder, job.unit.about() | federation.about())
        left = [job for job in jobs if id(job) not in done]
        runner = run_in_processes if self._several(left, stop) else self._one_by_one
        for job, outcome in zip(left, runner(left, on_row, stop), strict=False):
            done[id(job)] = outcome  # of the first ones, where time was over
        outcomes = [done[id(job)] for job in jobs if id(job) in done]
        on_time = [x for x in outcomes if x.summary["ended"] != "interrupted"]
        self.is_cut = len(on_time) < len(units)
        return outcomes

    def _job(self, unit: Unit) -> Job:
        strategy = self.objects.get(unit.label)
        return Job(unit, self.own, strategy, self.root, self.resume, self._until)

    def _several(self, jobs: Sequence[Job], stop: Stop | None) -> bool:
        """Whether processes beside each other pay off, and nothing asks for this one alone."""
        config = self.config
        if len(jobs) < 2 or stop or cores() < 2 or config.log:  # a tracker's file is one process's
            return False
        if config.engine != "auto" or config.num_workers == 1 or config.device not in ("", "cpu"):
            return False
        has_objects = self.objects or self.own.names()
        if has_objects and not can_travel((self.own, dict(self.objects))):
            return False
        if any(self._engine(job.unit) != "serial" for job in jobs):
            return False
        return sum(self._seconds(job.unit) for job in jobs) > _WORTH_PROCESSES

    def _engine(self, unit: Unit) -> str:
        return engine_of(unit.config, lambda: self._seconds(unit))

    def _seconds(self, unit: Unit) -> float:
        """As ``seconds_of``, once for units that differ in their strategy and seed alone."""
        key = unit.config.model_copy(update={"strategy": "", "seed": 0}).to_toml()
        if key not in self._known:
            self._known[key] = seconds_of(Federation(unit.config, self.own))
        return self._known[key]

    def _one_by_one(
        self, jobs: Iterable[Job], on_row: OnUnitRow, stop: Stop | None
    ) -> Iterator[UnitOutcome]:
        for i, job in enumerate(jobs):
            if i and time.monotonic() >= job.until:
                return
            federation, grid = self._grids.of(job.unit, self._engine(job.unit))
            yield run_job(job, federation, grid, on_row, stop or _never)


class _Grids:
    """The grid of the unit that runs; units that differ in their strategy alone share it."""

    def __init__(self, own: Own) -> None:
        self._own = own
        self._config: Config | None = None
        self._federation: Federation | None = None
        self._grid: LocalGrid | None = None

    def of(self, unit: Unit, engine: str) -> tuple[Federation, LocalGrid]:
        """The clients of ``unit`` and a grid of them."""
        config = unit.config.model_copy(update={"strategy": ""})
        if self._federation is None or self._grid is None or config != self._config:
            federation, before = Federation(unit.config, self._own), self._grid
            self._grid = grid_of(unit.config, federation, engine)
            if before:
                before.close()  # not before the new one is open: so Ray itself goes on
            self._config, self._federation = config, federation
        return self._federation, self._grid

    def close(self) -> None:
        """Give back what the grid holds."""
        if self._grid:
            self._grid.close()
        self._config = self._federation = self._grid = None


def _never(row: Any) -> bool:
    return False


def _unlike(units: Iterable[Unit]) -> list[Unit]:
    """One unit of each strategy and point: seeds do not change what is allowed."""
    found: dict[str, Unit] = {}
    for unit in units:
        config = unit.config.model_copy(update={"seed": 0})
        found.setdefault(f"{unit.label} {config.to_toml()}", unit)
    return list(found.values())
