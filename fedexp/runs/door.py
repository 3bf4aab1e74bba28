"""Runs from Python: one function over one object over the parts that the command line uses."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from logging import WARNING
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakSet, finalize

from flwr.clientapp import ClientApp
from torch import nn

from fedexp import verdict
from fedexp.choices import strategy_keys
from fedexp.clients.losses import Loss
from fedexp.config import Config
from fedexp.extras import need
from fedexp.logs import level
from fedexp.runs import folder as folders
from fedexp.runs.command import label_of
from fedexp.runs.engines import check_engine, engine_of, grid_of, seconds_of
from fedexp.runs.federation import Federation
from fedexp.runs.given import given
from fedexp.runs.job import UnitOutcome
from fedexp.runs.page import report
from fedexp.runs.plan import Unit
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.results import Result, Results, load_runs
from fedexp.runs.resuming import check_unit, check_units
from fedexp.runs.study import Study
from fedexp.runs.unit_run import UnitRun
from fedexp.simulation.grid import LocalGrid
from fedexp.specs import slug


class _Engine:
    """The grid of a simulation, as long as it runs; one at a time in a process.

    A notebook's cell that is run again makes another simulation while the one before still lives.
    """

    _running: ClassVar[WeakSet[_Engine]] = WeakSet()

    def __init__(self) -> None:
        self.grid: LocalGrid | None = None

    def hold(self, grid: LocalGrid) -> None:
        """Keep ``grid`` open; those of others are closed, now that Ray has a user again."""
        for other in list(self._running):
            other.close()
        self.grid = grid
        self._running.add(self)

    def close(self) -> None:
        """Give back what the grid holds."""
        if self.grid:
            self.grid.close()
        self.grid = None
        self._running.discard(self)


class Simulation:
    """One strategy on the clients of one federation, for as many rounds as one likes.

    Every part is either text, as on the command line, or an object.

    Args:
        strategy: a name with settings (``"fedexp(epsilon=0.01)"``), a Flower strategy, or a rule: a
            ``ServerOptimizer``, a step size or a direction. It is copied.
        model: a name, a ``torch.nn.Module``, or a class or function that makes one, of no
            arguments or of ``(input_shape, num_classes)``.
        data: a ``Dataset`` such as ``fedexp.data`` makes, or what it takes; text is the
            ``--data`` of the command line. By default ``dataset`` decides.
        optimizer: of the clients: a name with settings, a class of ``torch.optim``, or a function
            ``(parameters, lr) -> optimizer``.
        scheduler: of their learning rate over the rounds: a name with settings, or a function
            ``optimizer -> scheduler``.
        loss: ``(outputs, targets) -> scalar``; cross-entropy or squared error by default.
        metrics: name to ``(outputs, targets) -> number``, of all of a test set at once.
        client_app: a Flower ``ClientApp`` in place of ours; say ``num_clients``.
        evaluate: Flower's ``(server_round, arrays) -> metrics`` in place of our evaluation.
        out: folder to write to; nothing is written without.
        resume: go on with what is in ``out``.
        **settings: keys of the command line, with underscores: ``num_clients=20, seed=1``.

    Raises:
        ValueError: something of this cannot be trained; nothing has run then.

    Example:
        >>> import fedexp
        >>> sim = fedexp.Simulation(strategy="fedexp", num_clients=10, local_steps=2)
        >>> run = sim.run(rounds=2)
        >>> len(sim.run(rounds=3).metrics)
        5
    """

    def __init__(
        self,
        *,
        strategy: Any = "fedexp",
        model: str | nn.Module | Callable[..., nn.Module] | None = None,
        data: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Any] | str | None = None,
        client_app: ClientApp | None = None,
        evaluate: Callable[..., Any] | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        **settings: Any,
    ) -> None:
        is_text = isinstance(strategy, str)
        text = strategy if is_text else "fedavg"
        parts = {
            **{"model": model, "data": data, "optimizer": optimizer, "scheduler": scheduler},
            **{"loss": loss, "metrics": metrics, "client_app": client_app, "evaluate": evaluate},
            **{**settings, "strategy": text, "out": out},
        }
        self._object = None if is_text else _checked(strategy)
        label = text if is_text else _name(strategy)
        self.config, self._own = given("Simulation", parts, [] if is_text else [strategy])
        if len(strategy_keys(self.config)) > 1 or self.config.seeds or self.config.sweep:
            raise ValueError(
                f"Simulation(strategy={text!r}): is for one strategy, seed and setting. "
                "Use fedexp.compare for several."
            )
        unit = Unit(label, self.config, Path(slug(label)))
        self._federation = Federation(self.config, self._own)
        self._federation.check(self.config)
        self._kind = engine_of(self.config, lambda: seconds_of(self._federation))
        check_engine(self._federation, self._kind)
        self._held = ExitStack()
        self._live = _Engine()
        finalize(self, self._live.close)
        self._states: dict[int, Any] = {}
        root = self._folder(unit, resume) if out else None
        self._going = UnitRun(
            unit, self._federation, self._object, root / unit.folder if root else None
        )
        self._root, self._resume, self._began = root, resume, False

    def run(
        self,
        rounds: int | None = None,
        *,
        on_round: Callable[[MetricsRow], Any] = lambda _: None,
        stop: Callable[[MetricsRow], bool] = lambda _: False,
    ) -> Result:
        """Run more rounds; what has come of all so far.

        Args:
            rounds: how many more; by default as many as ``num_server_rounds`` has left.
            on_round: is called with the row of every round.
            stop: is asked after every round whether to end there.

        After an exception, such as a ``KeyboardInterrupt``, another ``run`` goes on after the last
        whole round.

        Raises:
            ValueError: ``rounds`` is not positive, or none are left.
            RuntimeError: no round succeeded.

        Warns:
            RuntimeWarning: a client never contributed, or else went wrong.
        """
        _check_calls(on_round=on_round, stop=stop)
        grid = self._ready()
        done = len(self._going.rows)
        more = self.config.num_server_rounds - done if rounds is None else rounds
        if more < 1:
            raise ValueError(f"run(rounds={more}): must be at least 1. {done} rounds are done.")
        try:
            with level(WARNING):
                self._summary = self._going.advance(grid, done + more, on_round, stop)
        except BaseException:
            self._states = dict(grid.states)
            self.close()  # clients may still be at work
            raise
        self._states = dict(grid.states)
        if self._root:
            report([self._root])
        _tell(self._summary["problem"], self._going.rows[done:])
        return self.result

    @property
    def result(self) -> Result:
        """What has come of the rounds so far, whatever ended them.

        Raises:
            ValueError: there are none.
        """
        if not self._going.rows:
            raise ValueError("result: no round is done. Call run first.")
        return self._result(self._going.summary())

    def close(self) -> None:
        """End the engine; another ``run`` starts it anew."""
        self._live.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._held.close()

    def _ready(self) -> LocalGrid:
        """The grid, with what the clients remember."""
        grid = self._live.grid
        if grid is None:
            grid = grid_of(self.config, self._federation, self._kind)
            self._live.hold(grid)
            grid.states.update(self._states)
        if not self._began:
            self._going.begin(grid, resume=self._resume)
            self._began = True
        return grid

    def _folder(self, unit: Unit, resume: bool) -> Path:
        need("matplotlib", "simulation")  # for the pictures of the report, at the end
        root = Path(self.config.out)
        if resume and (root / "config.toml").exists():
            self._held.enter_context(folders.reopened(root))
            check_unit(unit, root / unit.folder, self._federation)
            return root
        self._held.enter_context(folders.claimed(self.config))
        names = self._own.names()
        if self._object is not None:
            names["strategy"] = _name(self._object)
        folders.begin(self.config, root, self._federation, names)
        return root

    def _result(self, summary: MetricsRow) -> Result:
        going = self._going
        unit = UnitResult(
            going.unit.label,
            self.config.seed,
            {},
            tuple(going.rows),
            summary,
            tuple(going.clients),
            going.folder,
            going.unit.about() | self._federation.about(),
        )
        return Result(unit, self.config, _maker(self._federation), going.models())


def simulate(**parts: Any) -> Result:
    """Run one strategy from the first round to the last.

    Args:
        **parts: those of ``Simulation``, and ``on_round`` and ``stop`` of its ``run``.

    Raises:
        ValueError: as ``Simulation`` does.

    Example:
        >>> import fedexp
        >>> run = fedexp.simulate(strategy="fedexp", num_server_rounds=2, num_clients=10)
        >>> [row["round"] for row in run.metrics]
        [1, 2]
    """
    calls = {name: parts.pop(name) for name in ("on_round", "stop") if name in parts}
    with Simulation(**parts) as simulation:
        return simulation.run(**calls)


def compare(
    strategies: Mapping[str, Any] | Iterable[Any] | str,
    *,
    seeds: Iterable[int] | str | None = None,
    on_round: Callable[[str, int, MetricsRow], Any] = lambda *_: None,
    stop: Callable[[MetricsRow], bool] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **parts: Any,
) -> Results:
    """Run several strategies with several seeds, all else alike.

    Args:
        strategies: by what they are called, a list of them, or text as ``--strategy`` takes it;
            each as in ``Simulation``.
        seeds: each strategy runs once with each; by default ``seed`` alone.
        on_round: is called with a strategy's name, a seed and the row of a round.
        stop: is asked after every round whether its run is to end there.
        out: folder to write to; nothing is written without.
        resume: go on with what is in ``out``.
        **parts: those of ``Simulation``; with ``sweep={"learning_rate": [0.1, 0.3]}`` and
            ``select="best-accuracy"`` each strategy is tuned.

    Raises:
        ValueError: something of this cannot be trained; nothing has run then.
        RuntimeError: no round of any run succeeded.

    Warns:
        RuntimeWarning: something went wrong in a run.

    Example:
        >>> import fedexp
        >>> found = fedexp.compare(
        ...     "fedavg, fedexp", seeds=[0, 1], num_server_rounds=2, num_clients=10
        ... )
        >>> len(found), len(found["fedexp"])
        (4, 2)
    """
    _check_calls(on_round=on_round, stop=stop or on_round)
    named = _named(strategies)
    texts = {name: x if isinstance(x, str) else "fedavg" for name, x in named.items()}
    rules = {name: x for name, x in named.items() if not isinstance(x, str)}
    text = ",".join(dict.fromkeys(texts.values()))
    several = {"strategy": text, "seeds": _listed(seeds, parts), "out": out}
    config, own = given("compare", {**parts, **several}, rules.values())
    study = Study(config, texts, rules, own, resume=resume)
    with ExitStack() as held, level(WARNING):
        study.check()
        held.callback(study.close)
        if out:
            study.root = _study_folder(study, held)
        outcomes = study.run(lambda unit, row: on_round(unit.label, unit.config.seed, row), stop)
        if study.root:
            report([study.root])
    results = _results(study, outcomes)
    problems = verdict.problems({label_of(x.unit): x.summary for x in outcomes})
    _tell("; ".join(problems), [row for run in results for row in run.metrics])
    return results


def _listed(seeds: Iterable[int] | str | None, parts: Mapping[str, Any]) -> Any:
    """The seeds, in text; None for that of ``parts``."""
    if seeds is None or isinstance(seeds, str):
        return seeds
    if isinstance(seeds, int):
        raise ValueError(f"compare(seeds={seeds}): must be several. Give range({seeds}) or [0, 1].")
    if "seed" in parts:
        raise ValueError("compare(seed): seeds are given too. Leave one out.")
    return ",".join(map(str, seeds))


def _check_calls(**calls: Any) -> None:
    for name, call in calls.items():
        if not callable(call):
            raise ValueError(f"run({name}={call!r}): must be a function.")


def _tell(problem: str | None, rows: Sequence[MetricsRow]) -> None:
    """Say what went wrong in ``rows``, of which there are some.

    Raises:
        RuntimeError: all of them failed.
    """
    if problem and all(row["failed"] for row in rows):
        raise RuntimeError(problem)
    if problem:
        warnings.warn(problem, RuntimeWarning, stacklevel=_depth())


def _depth() -> int:
    """How many calls up from the function that asks the caller's own code is."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back and frame.f_code.co_filename == __file__:
        frame, depth = frame.f_back, depth + 1
    return depth


def _study_folder(study: Study, held: ExitStack) -> Path:
    need("matplotlib", "simulation")
    root, config = Path(study.config.out), study.config
    if study.resume and (root / "config.toml").exists():
        held.enter_context(folders.reopened(root))
        check_units(config, study.strategies, root, lambda own: Federation(own, study.own))
        return root
    held.enter_context(folders.claimed(config))
    names = study.own.names() | {label: _name(x) for label, x in study.objects.items()}
    folders.begin(config, root, Federation(config, study.own), names)
    return root


def _results(study: Study, outcomes: list[UnitOutcome]) -> Results:
    if not study.root:
        return Results(tuple(_in_memory(study, outcome) for outcome in outcomes), study.config)
    units = {study.root / outcome.unit.folder: outcome.unit for outcome in outcomes}
    found = load_runs(study.root)
    runs = [
        replace(run, make=_maker(Federation(units[run.folder].config, study.own)))
        for run in found
        if run.folder in units
    ]
    return replace(found, runs=tuple(runs))


def _in_memory(study: Study, outcome: UnitOutcome) -> Result:
    unit, federation = outcome.unit, Federation(outcome.unit.config, study.own)
    about = unit.about() | federation.about()
    settings, last, mean = about["settings"], *outcome.models
    found = UnitResult(
        unit.label,
        unit.config.seed,
        settings,
        tuple(outcome.rows),
        outcome.summary,
        tuple(outcome.clients),
        None,
        about,
    )
    return Result(found, unit.config, _maker(federation), (last, mean))


def _maker(federation: Federation) -> Callable[[], nn.Module] | None:
    return federation.model if federation.knows_model else None


def _named(strategies: Mapping[str, Any] | Iterable[Any] | str) -> dict[str, Any]:
    """Strategies by what they are called.

    Raises:
        ValueError: there are none, or two are called the same.
    """
    if isinstance(strategies, str):
        return {key: key for key in strategy_keys(Config.of({"strategy": strategies}))}
    if isinstance(strategies, Mapping):
        named = dict(strategies)
    else:
        listed = list(strategies)
        named = {x if isinstance(x, str) else _name(x): x for x in listed}
        if len(named) < len(listed):
            raise ValueError("compare(strategies): two are called the same. Give a dict of names.")
    for name, value in named.items():
        if isinstance(value, str) and len(strategy_keys(Config.of({"strategy": value}))) > 1:
            raise ValueError(f"compare({name!r}: {value!r}): is several. Give each a name.")
    if not named:
        raise ValueError("compare(strategies): there are none. Name at least one.")
    return named


def _checked(strategy: Any) -> Any:
    if strategy is None or isinstance(strategy, list | tuple | Mapping):
        raise ValueError("Simulation(strategy): give one. Use fedexp.compare for several.")
    return strategy


def _name(strategy: Any) -> str:
    return str(getattr(strategy, "__name__", type(strategy).__name__))
