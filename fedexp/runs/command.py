"""A run as the command line asks for it: everything checked, then its folder held."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedexp import checks, factories
from fedexp.choices import strategy_keys
from fedexp.config import Config
from fedexp.extras import need
from fedexp.files import save_json
from fedexp.runs import folder as folders
from fedexp.runs.federation import Federation
from fedexp.runs.job import OnUnitRow, UnitOutcome
from fedexp.runs.page import Live
from fedexp.runs.plan import Unit, points_of
from fedexp.runs.reading import MetricsRow, read_clients
from fedexp.runs.resuming import check_resumable, config_in
from fedexp.runs.study import Study


@dataclass(frozen=True, eq=False)
class Command:
    """A run that is ready to begin, or to go on.

    Attributes:
        study: its units.
        folder: is held until the run ends.
    """

    study: Study
    folder: Path

    @classmethod
    def prepared(
        cls,
        config: Config,
        held: ExitStack,
        given: Collection[str] = (),
        *,
        overwrite: bool = False,
    ) -> Command:
        """Find out what is wrong with a new run before a round is run, and take its folder.

        Args:
            config: of the run.
            held: takes the folder, until the run ends.
            given: keys that are judged though they have their default.
            overwrite: take a folder with an old run in it.

        Raises:
            ValueError: something is wrong.
        """
        study = _checked(folders.absolute(config), given)
        study.root = held.enter_context(folders.claimed(config, overwrite=overwrite))
        held.callback(study.close)
        study.open()
        folders.begin(study.config, study.root)
        return cls(study, study.root)

    @classmethod
    def resumed(cls, folder: Path, held: ExitStack) -> Command:
        """The same for a run that was interrupted, or extended.

        Raises:
            ValueError: it cannot go on.
        """
        config = config_in(folder)
        study = _checked(config, ())
        held.enter_context(folders.reopened(folder))
        check_resumable(config, folder)
        folders.check_inputs(config, folder)
        folders.show_partition(folder, Federation(study.config))
        study.root, study.resume = folder, True
        held.callback(study.close)
        study.open()
        return cls(study, folder)

    def run(self, on_row: OnUnitRow) -> list[UnitOutcome]:
        """Run what is left; ``summary.json`` says how it ended, whatever ended it."""
        self._ended("interrupted")
        live = Live(self.folder)

        def told(unit: Unit, row: MetricsRow) -> None:
            on_row(unit, row)
            live()

        try:
            outcomes = self.study.run(told)
        except Exception as error:
            self._ended("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            raise
        problems = [o.summary["problem"] for o in outcomes if o.summary["problem"]]
        how = "interrupted" if self.study.is_cut else "finished"
        self._ended("failed" if problems else how, *problems[:1])
        return outcomes

    def _ended(self, how: str, problem: str | None = None) -> None:
        save_json(self.folder / "summary.json", {"ended": how, "problem": problem})


def label_of(unit: Unit) -> str:
    """A name for a unit among those of its run."""
    settings = ", ".join(f"{key} {value}" for key, value in unit.settings.items())
    many = "seed-" in unit.folder.name
    parts = [unit.label, settings, f"seed {unit.config.seed}" if many else ""]
    return ("tuning " if unit.tuning else "") + " ".join(part for part in parts if part)


def summaries_of(outcomes: list[UnitOutcome]) -> dict[str, dict[str, Any]]:
    """Summary by label."""
    return {label_of(outcome.unit): outcome.summary for outcome in outcomes}


def early_ends(outcomes: list[UnitOutcome]) -> list[str]:
    """A sentence for each unit that ended before its last round, and is done."""
    done = [x for x in outcomes if x.summary["ended"] != "interrupted"]
    return [f"{label_of(x.unit)} {why}." for x in done if (why := x.summary.get("stopped"))]


def clients_of(command: Command, outcomes: list[UnitOutcome]) -> list[MetricsRow]:
    """What clients reported when they evaluated, each row with its strategy, seed and settings."""
    return [
        {**row, **{key: outcome.summary[key] for key in ("strategy", "seed", "settings")}}
        for outcome in outcomes
        for row in read_clients(command.folder / outcome.unit.folder)
    ]


def strategies_of(config: Config) -> dict[str, str]:
    """What each strategy is called: as it is written."""
    return {key: key for key in strategy_keys(config)}


def _checked(config: Config, given: Collection[str]) -> Study:
    factories.reread_changed(config)
    _check_read(config, given)
    if config.seeds and "seed" in given:
        raise ValueError(f"Config(seeds={config.seeds!r}): --seed was given too. Leave one out.")
    strategies = strategies_of(config)
    study = Study(Federation(config).resolved(), strategies)
    study.check()
    need("matplotlib", "simulation")
    return study


def _check_read(config: Config, given: Collection[str]) -> None:
    """As ``checks.check_read``; of a sweep, all has to be read at one point at least."""
    refused = None
    for point in points_of(config):
        try:
            checks.check_read(Config.of({**config.values(), **point}), {*given, *point})
            return
        except ValueError as error:
            refused = refused or error
    if refused:
        raise refused
