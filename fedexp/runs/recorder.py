"""A unit on disk: what it leaves after every round, and what it goes on from."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from logging import WARNING
from pathlib import Path

import numpy as np
from flwr.common.logger import log

from fedexp.arrays import Arrays
from fedexp.files import on_disk, read_json, remove_leftovers, save_json, save_text
from fedexp.records import from_record, to_record
from fedexp.runs.checkpoint import NAMES, Checkpoint
from fedexp.runs.client_states import FOLDER, ClientStates, forget_states, is_states
from fedexp.runs.fingerprint import Fingerprint, check_same, warn_of_code
from fedexp.runs.folder import FILES_OF_A_UNIT
from fedexp.runs.json_files import about_in
from fedexp.runs.pace import Pace
from fedexp.runs.reading import MetricsRow
from fedexp.runs.recorded import (
    EVALUATED,
    MODELS,
    chained,
    clients_until,
    of_clients,
    rows_until,
    say_nothing,
    summary_of,
    usable,
)
from fedexp.runs.run import Run
from fedexp.simulation.grid import LocalGrid
from fedexp.strategies import FedOpt

_ATTENDANCE = "attendance"


class Recorder:
    """Writes one unit into its folder, whole after every round.

    ``metrics.jsonl`` has a line a round, ``clients.csv`` a line for every client that evaluated;
    ``checkpoint.safetensors`` is what the unit goes on from, with what clients keep in ``clients``.
    The one before it is kept as well, in case the newer one gets damaged. They stay at the end, so
    that a run can be extended. Of a strategy that does not show what it remembers there is none:
    such a unit starts again.

    Args:
        folder: of the unit.
        fingerprint: of the run.
        every: rounds from one checkpoint to the next; 0 to choose by cost, see ``Pace``.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint, every: int = 0) -> None:
        self.folder = folder
        self._fingerprint = fingerprint
        self._checkpoint = folder / NAMES[0]
        self._states = ClientStates(folder / FOLDER)
        self._pace = Pace(every)
        self._waiting: Checkpoint | None = None
        self._digests = b"", b""  # of the rows of rounds, and of clients, so far

    def forget(self) -> None:
        """Remove what an earlier run left: nothing there is believed."""
        for name in ("summary.json", *NAMES, "metrics.jsonl", "clients.csv"):
            (self.folder / name).unlink(missing_ok=True)
        forget_states(self.folder)

    def begin(
        self, about: MetricsRow, run: Run, grid: LocalGrid
    ) -> tuple[list[MetricsRow], list[MetricsRow]]:
        """The rows so far, of rounds and of clients; the run goes on after them.

        Raises:
            ValueError: what there is cannot be gone on from.
        """
        remove_leftovers(self.folder, FILES_OF_A_UNIT.__contains__)
        remove_leftovers(self.folder / FOLDER, is_states)
        damage: list[str] = []
        saved = usable(self.folder, self._states, warn=damage.append)
        rows = rows_until(self.folder, saved.server_round) if saved else []
        clients = clients_until(self.folder, saved) if saved else []
        if saved:
            check_same(saved.fingerprint, self._fingerprint, self._checkpoint)
            warn_of_code(saved.fingerprint, self._fingerprint, self._checkpoint)
            restore(run, grid, saved)
            for line in damage:
                log(WARNING, "%s", line)
            _clear_way(self.folder)
            if damage:  # else the next one would move the damaged one over the only sound one
                self._checkpoint.with_name(NAMES[1]).replace(self._checkpoint)
        elif (self.folder / "metrics.jsonl").exists():
            log(WARNING, "%s: has no checkpoint, it starts again from round 1.", self.folder)
        (self.folder / "summary.json").unlink(missing_ok=True)  # it is an end no more
        save_json(self.folder / "unit.json", about)
        self.save_rows(rows, clients)
        return rows, clients

    def save_rows(self, rows: Sequence[MetricsRow], clients: Sequence[MetricsRow]) -> None:
        """Write all rows anew."""
        save_text(self.folder / "metrics.jsonl", "".join(map(_line, rows)))
        self.save_clients(clients)
        self._digests = chained(b"", rows), chained(b"", clients)

    def after_round(
        self,
        run: Run,
        grid: LocalGrid,
        row: MetricsRow,
        clients: Sequence[MetricsRow],
        new: Sequence[MetricsRow],
    ) -> None:
        """Write what a round has added: a row, and the rows of clients that evaluated.

        The checkpoint follows where it is due; else it waits for that of a later round, or for
        ``catch_up``.
        """
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(_line(row))
        if new:
            self._append_clients(clients, new)
        self._waiting = saved_of(run, row["round"], grid, self._recorded(row, clients, new))
        if self._waiting and self._pace.is_due(row["round"], self._waiting.num_bytes):
            self.catch_up()

    def _recorded(
        self, row: MetricsRow, clients: Sequence[MetricsRow], new: Sequence[MetricsRow]
    ) -> Arrays:
        """What the checkpoint of a round keeps of all rows so far."""
        digests = {
            "rounds": chained(self._digests[0], [row]),
            "clients": self._digests[1],  # of rounds before: those of the last may be asked again
        }
        self._digests = digests["rounds"], chained(digests["clients"], new)
        known = {name: np.frombuffer(digest, np.uint8) for name, digest in digests.items()}
        return {**of_clients(clients, new), **known}

    def catch_up(self) -> None:
        """Write the checkpoint of the last round, if it waits."""
        saved, self._waiting = self._waiting, None  # what fails is not tried again
        if saved:
            for name in ("clients.csv", "metrics.jsonl"):  # which the checkpoint counts on
                on_disk(self.folder / name)
            with self._pace.writing():
                own = replace(saved, fingerprint=self._fingerprint)
                own.save(self._checkpoint, self._states)
            self._states.clean()

    def end(self, run: Run, summary: MetricsRow) -> None:
        """Write both models, then the summary, which says that the unit has ended."""
        run.save(self.folder)
        save_json(self.folder / "summary.json", summary)

    def _append_clients(self, clients: Sequence[MetricsRow], new: Sequence[MetricsRow]) -> None:
        path = self.folder / "clients.csv"
        columns = _header(path) if path.exists() else []
        if not set(_columns(new)) <= set(columns):
            self.save_clients(clients)  # with the columns of all
            return
        with open(path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns).writerows(new)

    def save_clients(self, clients: Sequence[MetricsRow]) -> None:
        """Write ``clients.csv`` anew."""
        if not clients:
            (self.folder / "clients.csv").unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _columns(clients))
        writer.writeheader()
        writer.writerows(clients)
        save_text(self.folder / "clients.csv", text.getvalue())


def saved_of(run: Run, server_round: int, grid: LocalGrid, evaluated: Arrays) -> Checkpoint | None:
    """All that a run needs to go on; None for a strategy that does not show what it remembers.

    Args:
        run: of the unit.
        server_round: the last one.
        grid: of its clients.
        evaluated: which clients did so.
    """
    if not isinstance(run.strategy, FedOpt):
        return None
    own = {_ATTENDANCE: run.attendance.state(), EVALUATED: evaluated}
    state, memory = {**run.strategy.state, **own}, run.evaluation.memory
    return Checkpoint(server_round, from_record(run.arrays), state, memory, dict(grid.states))


def restore(run: Run, grid: LocalGrid, saved: Checkpoint) -> None:
    """The inverse of ``saved_of``."""
    run.arrays = to_record(saved.params)
    state = dict(saved.state)
    state.pop(EVALUATED, None)  # an older run has none
    run.attendance.restore(state.pop(_ATTENDANCE))
    run.strategy.state = state  # type: ignore[attr-defined]
    run.evaluation.memory = dict(saved.average)
    grid.forget()
    grid.states.update(saved.clients)


def _clear_way(folder: Path) -> None:
    """Rename folders that are in the place of checkpoints; what is in them is not ours."""
    for path in (folder / name for name in NAMES):
        if path.is_dir():
            names = (path.with_name(f"{path.name}-{i}") for i in itertools.count(1))
            path.rename(next(name for name in names if not name.exists()))


def save_about(folder: Path, about: MetricsRow) -> None:
    """Write ``unit.json`` of a unit that has ended, if it does not say this any more.

    The run of a unit that selected may have got more rounds since.
    """
    may_differ = {"num-server-rounds"} if about["tuning"] else set[str]()
    with suppress(ValueError):
        known = about_in(folder, {})
        if known.keys() == about.keys() and all(
            known[key] == value for key, value in about.items() if key not in may_differ
        ):
            return
    save_json(folder / "unit.json", about)


def is_finished(folder: Path, num_rounds: int) -> bool:
    """Whether the unit in ``folder`` has ended, of a run of so many rounds."""
    summary = summary_of(folder)
    if not summary or not all((folder / name).is_file() for name in MODELS):
        return False  # the checkpoint has them
    saved = usable(folder, warn=say_nothing)
    if saved and saved.server_round < summary["num-rounds"]:
        return False  # what there is of the last round is damaged
    try:
        return _rounds_of(folder, saved) >= num_rounds
    except (OSError, ValueError, TypeError, KeyError):
        if any((folder / name).exists() for name in NAMES):
            return False  # it only ends anew
        return bool(summary["num-rounds"] >= num_rounds or summary["problem"])  # of an older run


def _rounds_of(folder: Path, saved: Checkpoint | None) -> int:
    """How many rounds the unit was to have; nobody edits a checkpoint unnoticed."""
    if saved and saved.fingerprint:
        return int(saved.fingerprint["config"]["num-server-rounds"])
    return int(read_json(folder / "unit.json")["num-server-rounds"])


def _line(row: MetricsRow) -> str:
    return json.dumps(row) + "\n"


def _columns(clients: Sequence[MetricsRow]) -> list[str]:
    return list(dict.fromkeys(name for row in clients for name in row))


def _header(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])
