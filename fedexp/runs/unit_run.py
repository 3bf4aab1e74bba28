"""One unit on its way: rounds, what they leave, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedexp import verdict
from fedexp.arrays import Arrays
from fedexp.records import from_record
from fedexp.rounds import Round, evaluate_clients
from fedexp.runs.checkpoint import Checkpoint
from fedexp.runs.ending import End, end_of, time_of_end
from fedexp.runs.federation import Federation
from fedexp.runs.fingerprint import fingerprint_of
from fedexp.runs.plan import Unit
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.recorder import Recorder, restore, saved_of
from fedexp.runs.rows import client_rows, row_of
from fedexp.runs.run import Run
from fedexp.runs.scores import numbers
from fedexp.runs.signals import finishing
from fedexp.runs.simulated import simulated_row
from fedexp.simulation.grid import FIRST_NODE_ID, LocalGrid
from fedexp.strategies import FedOpt

_MOST_ASKED = 1000  # clients that evaluate the last model though nobody asked for it
OnRow = Callable[[MetricsRow], Any]
Stop = Callable[[MetricsRow], bool]


@dataclass(eq=False)
class UnitRun:
    """A unit that can be advanced, round by round, as far as one likes.

    Attributes:
        unit: what runs.
        federation: its clients, data and model.
        strategy: an object in place of the one that the unit names; a copy of it runs.
        folder: of the unit; None to write nothing.
        rows: of the rounds so far.
        clients: of the clients that evaluated so far.
        run: the strategy and the models.
    """

    unit: Unit
    federation: Federation
    strategy: Any = None
    folder: Path | None = None
    rows: list[MetricsRow] = field(default_factory=list)
    clients: list[MetricsRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run: Run = self.federation.run(self.unit.config, self.strategy)
        self._recorder = self._recording(self.folder) if self.folder else None
        self._end: End | None = None
        self._went_back = False

    def _recording(self, folder: Path) -> Recorder:
        config = self.unit.config
        return Recorder(
            folder, fingerprint_of(config, self.federation), every=config.checkpoint_every
        )

    def begin(self, grid: LocalGrid, *, resume: bool = False) -> None:
        """Make the folder ready; with ``resume`` go on with what is in it, else believe nothing."""
        grid.forget()
        if self._recorder:
            self._recorder.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._recorder.forget()
            about = self.unit.about() | self.federation.about()
            self.rows, self.clients = self._recorder.begin(about, self.run, grid)
            self.run.failed_in_a_row = verdict.failed_in_a_row(self.rows)

    def advance(
        self,
        grid: LocalGrid,
        num_rounds: int,
        on_row: OnRow = lambda _: None,
        stop: Stop = lambda _: False,
        until: float = 0.0,
    ) -> MetricsRow:
        """Run until ``num_rounds`` are done in all, or it ends early; the summary.

        It ends early where ``end_of`` says so, or ``stop(row)`` is true. Whatever ends a round in
        its middle, all is then as it was after the round before.

        Args:
            grid: of the clients.
            num_rounds: counted from the first round of all.
            on_row: is called with the line of every round.
            stop: is asked after every round.
            until: when ``max-minutes`` are over; by default they begin now.
        """
        until = until or time_of_end(self.unit.config)
        self._end = end_of(self.unit.config, self.rows, num_rounds, math.inf)  # time for one round
        if self._recorder and self._went_back:
            self._recorder.save_rows(self.rows, self.clients)
        self._went_back = False
        if not self._end:
            self._take_rounds(grid, num_rounds, on_row, stop, until)
        self._catch_up()
        if not self.goes_on:
            self._ask_everyone(grid)
        summary = self.summary(num_rounds)
        if self._recorder:
            with finishing():
                self._write_end(self._recorder, summary)
        return summary

    def _take_rounds(
        self, grid: LocalGrid, num_rounds: int, on_row: OnRow, stop: Stop, until: float
    ) -> None:
        """Rounds until the last or an early end; what cuts one short undoes it, and is raised."""
        first = len(self.rows) + 1
        saved = saved_of(self.run, first - 1, grid, {})
        try:
            for round_ in self.run.rounds(grid, first, num_rounds):
                row = self._note(grid, round_)
                saved = saved_of(self.run, row["round"], grid, {})
                on_row(row)
                self._end = end_of(self.unit.config, self.rows, num_rounds, until)
                self._end = self._end or (End() if stop(row) else None)
                if self._end:
                    break
        except BaseException:
            try:
                with suppress(OSError):  # the reason that is on its way out says more
                    self._catch_up()
            finally:
                if saved:
                    self._go_back(grid, saved)
            raise

    def _note(self, grid: LocalGrid, round_: Round) -> MetricsRow:
        """The line of a round, which is in memory and in the folder once this returns."""
        row = row_of(round_) | self.run.row(round_)
        by_steps = not self.unit.config.local_epochs
        row |= simulated_row(self.federation.conditions, round_, timed=by_steps)
        new = client_rows(round_.evaluation, round_.server_round, self._name_of)
        self.rows.append(row)
        self.clients += new
        if self._recorder:
            with finishing():  # a Ctrl-C waits: row and checkpoint belong together
                self._recorder.after_round(self.run, grid, row, self.clients, new)
        return row

    def _catch_up(self) -> None:
        if self._recorder:
            with finishing():
                self._recorder.catch_up()

    def _write_end(self, recorder: Recorder, summary: MetricsRow) -> None:
        if self.goes_on:
            self.run.save(recorder.folder)
        else:
            recorder.end(self.run, summary)

    @property
    def goes_on(self) -> bool:
        """Whether only its time was over, so that it goes on when it is resumed."""
        return bool(self._end and self._end.goes_on)

    def _go_back(self, grid: LocalGrid, saved: Checkpoint) -> None:
        last = saved.server_round
        self.run = self.federation.run(self.unit.config, self.strategy)
        restore(self.run, grid, saved)
        self.rows = self.rows[:last]
        self.clients = [row for row in self.clients if row["round"] <= last]
        self.run.failed_in_a_row = verdict.failed_in_a_row(self.rows)
        self._went_back = True

    def _ask_everyone(self, grid: LocalGrid) -> None:
        """Let clients that have names evaluate the last model, unless they did so anyway.

        Not under privacy: what they report of it is exact, and counts for no epsilon.
        """
        strategy, last = self.run.strategy, len(self.rows)
        if isinstance(strategy, FedOpt) and strategy.extensions.is_private:
            return
        if not 0 < len(self.federation.names) <= _MOST_ASKED or self._know_all(last):
            return
        asked = evaluate_clients(grid, self.run.arrays, self.unit.config.timeout)
        self.clients = [row for row in self.clients if row["round"] != last]
        self.clients += client_rows(asked, last, self._name_of)
        if self._recorder:
            self._recorder.save_clients(self.clients)

    def _know_all(self, last: int) -> bool:
        return len({r["client"] for r in self.clients if r["round"] == last}) == (
            self.federation.num_clients
        )

    def summary(self, num_rounds: int = 0) -> MetricsRow:
        """How the unit has done, and what went wrong if anything did; by default, until now."""
        wanted = len(self.rows) if self._end else num_rounds or len(self.rows)
        attendance = self.run.attendance
        # A private round without a reply does not fail, since their number is secret; the run does.
        is_needed = self.federation.needs_everyone or not attendance.contributed
        missing = attendance.missing if is_needed else ()
        told = verdict.of_run(self.rows, missing, wanted)
        about = self.unit.about()
        named = {key: about[key] for key in ("strategy", "seed", "model", "settings")}
        unit = UnitResult(self.unit.label, rows=self.rows, about=about)
        scores = {key: about[key] for key in ("target-accuracy", "average")} | numbers(unit)
        ended = "failed" if told["problem"] else "interrupted" if self.goes_on else "finished"
        stopped = {"stopped": self._end.why} if self._end and self._end.why else {}
        return {**named, **scores, **told, "ended": ended, **stopped}

    def models(self) -> tuple[Arrays, Arrays]:
        """The last iterate and the average."""
        return from_record(self.run.arrays), self.run.evaluation.mean

    def _name_of(self, node: int) -> str:
        partition, names = node - FIRST_NODE_ID, self.federation.names
        return names[partition] if 0 <= partition < len(names) else str(partition)
