"""Runs from Python: one function over one object over the parts that the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from logging import WARNING
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakSet, finalize

from flwr.clientapp import ClientApp
from torch import nn

from fedexp import app
from fedexp.choices import strategy_keys
from fedexp.clients.losses import Loss
from fedexp.config import Config
from fedexp.datasets import Dataset, data
from fedexp.datasets.own_files import READS
from fedexp.federation import Federation, Own
from fedexp.logs import level
from fedexp.runs import folder as folders
from fedexp.runs.engines import check_engine, engine_of, grid_of, seconds_of
from fedexp.runs.job import Outcome
from fedexp.runs.page import report
from fedexp.runs.plan import Unit
from fedexp.runs.reading import Row, UnitResult
from fedexp.runs.results import Result, Results, load_runs
from fedexp.runs.study import Study
from fedexp.runs.unit_run import UnitRun
from fedexp.simulation.grid import LocalGrid
from fedexp.specs import slug, split


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
        objects = {
            "model": model,
            "data": data,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "loss": loss,
            "metrics": metrics,
            "client_app": client_app,
            "evaluate": evaluate,
        }
        text = strategy if isinstance(strategy, str) else "fedavg"
        self.config, self._own = _sorted(objects, {**settings, "strategy": text, "out": out or ""})
        self._object = None if isinstance(strategy, str) else strategy
        label = text if self._object is None else _name(strategy)
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
        root = self._folder(resume) if out else None
        self._going = UnitRun(
            unit, self._federation, self._object, root / unit.folder if root else None
        )
        self._root, self._resume, self._began = root, resume, False

    def run(
        self,
        rounds: int | None = None,
        *,
        on_round: Callable[[Row], Any] = lambda _: None,
        stop: Callable[[Row], bool] = lambda _: False,
    ) -> Result:
        """Run more rounds; what has come of all so far.

        Args:
            rounds: how many more; by default as many as ``num_server_rounds`` has left.
            on_round: is called with the row of every round.
            stop: is asked after every round whether to end there.

        Raises:
            ValueError: ``rounds`` is not positive, or none are left.
        """
        grid = self._ready()
        done = len(self._going.rows)
        more = self.config.num_server_rounds - done if rounds is None else rounds
        if more < 1:
            raise ValueError(f"run(rounds={more}): must be at least 1. {done} rounds are done.")
        with level(WARNING):
            summary = self._going.advance(grid, done + more, on_round, stop)
        self._states = dict(grid.states)
        if self._root:
            report([self._root])
        return self._result(summary)

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

    def _folder(self, resume: bool) -> Path:
        root = Path(self.config.out)
        if resume and (root / "config.toml").exists():
            self._held.enter_context(folders.locked(root))
            return root
        self._held.enter_context(folders.claimed(self.config))
        names = self._own.names()
        if self._object is not None:
            names["strategy"] = _name(self._object)
        folders.begin(self.config, root, self._federation, names)
        return root

    def _result(self, summary: Row) -> Result:
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
    seeds: Iterable[int] | str = (0,),
    on_round: Callable[[str, int, Row], Any] = lambda *_: None,
    out: str | Path | None = None,
    resume: bool = False,
    **parts: Any,
) -> Results:
    """Run several strategies with several seeds, all else alike.

    Args:
        strategies: by what they are called, a list of them, or text as ``--strategy`` takes it;
            each as in ``Simulation``.
        seeds: each strategy runs once with each.
        on_round: is called with a strategy's name, a seed and the row of a round.
        out: folder to write to; nothing is written without.
        resume: go on with what is in ``out``.
        **parts: those of ``Simulation``; with ``sweep`` and ``select`` each strategy is tuned.

    Raises:
        ValueError: something of this cannot be trained; nothing has run then.

    Example:
        >>> import fedexp
        >>> found = fedexp.compare(
        ...     "fedavg, fedexp", seeds=[0, 1], num_server_rounds=2, num_clients=10
        ... )
        >>> len(found), len(found["fedexp"])
        (4, 2)
    """
    named = _named(strategies)
    texts = {name: x if isinstance(x, str) else "fedavg" for name, x in named.items()}
    own_names = ("model", "data", "optimizer", "scheduler", "loss", "metrics", "client_app")
    objects = {name: parts.pop(name, None) for name in (*own_names, "evaluate")}
    text = ",".join(dict.fromkeys(texts.values()))
    listed = seeds if isinstance(seeds, str) else ",".join(map(str, seeds))
    config, own = _sorted(
        objects, {**parts, "strategy": text, "seeds": listed, "out": str(out or "")}
    )
    rules = {name: x for name, x in named.items() if not isinstance(x, str)}
    study = Study(config, texts, rules, own, resume=resume)
    with ExitStack() as held, level(WARNING):
        study.check()
        held.callback(study.close)
        if out:
            study.root = _study_folder(study, held)
        outcomes = study.run(lambda unit, row: on_round(unit.label, unit.config.seed, row))
        if study.root:
            report([study.root])
    return _results(study, outcomes)


def _study_folder(study: Study, held: ExitStack) -> Path:
    root, config = Path(study.config.out), study.config
    if study.resume and (root / "config.toml").exists():
        held.enter_context(folders.locked(root))
        return root
    held.enter_context(folders.claimed(config))
    names = study.own.names() | {label: _name(x) for label, x in study.objects.items()}
    folders.begin(config, root, Federation(config, study.own), names)
    return root


def _results(study: Study, outcomes: list[Outcome]) -> Results:
    if study.root:
        found = load_runs(study.root)
        makers = {o.unit.config.seed: Federation(o.unit.config, study.own) for o in outcomes}
        runs = [replace(x, make=_maker(makers[x.config.seed])) for x in found]
        return replace(found, runs=tuple(runs))
    return Results(tuple(_in_memory(study, outcome) for outcome in outcomes), study.config)


def _in_memory(study: Study, outcome: Outcome) -> Result:
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
    return None if federation.own.arrays is not None else federation.model


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
    if not named:
        raise ValueError("compare(strategies): there are none. Name at least one.")
    return named


def _sorted(objects: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Config, Own]:
    """Text becomes configuration keys, all else the objects in their place."""
    keys = {"optimizer": "local-optimizer"}
    values = {name.replace("_", "-"): _plain(value) for name, value in settings.items()}
    own: dict[str, Any] = {}
    for name, value in objects.items():
        if isinstance(value, str) and name not in ("loss", "client_app", "evaluate"):
            values[keys.get(name, name)] = value
        elif value is not None:
            own[name] = value
    if "client_app" in own:
        own["num_clients"] = int(values.get("num-clients", 0))
        if not own["num_clients"] and "data" not in own:
            raise ValueError("Simulation(client_app): say num_clients, how many there are.")
    if "data" in own and "dataset" in values:
        raise ValueError(
            f"Simulation(dataset={values['dataset']!r}): data is given already. "
            "Leave one of the two out."
        )
    config = Config.of(values)
    if "data" in own and not isinstance(own["data"], Dataset):
        own["data"] = _data(own["data"], config)  # and nothing else reads the keys of own data
        values = {key: value for key, value in values.items() if key not in _OF_DATA}
        config = Config.of(values)
    app.check_read(config, [key for key in values if key not in _ALWAYS])
    return config, Own(**own)


def _data(source: Any, config: Config) -> Dataset:
    """A dataset of what ``fedexp.data`` takes, by the keys of the command line."""
    kind, _, column = config.client_from.partition(":")
    test = config.test_fraction
    return data(
        source,
        target=config.target or None,
        client=column or kind or None,
        test=None if test == Config.keys()["test-fraction"].default else test,
        drop=split(config.drop),
        impute=config.impute,
        standardize=config.standardize,
        targets=config.targets,
        image_size=config.image_size,
    )


_OF_DATA = {name.replace("_", "-") for names in READS.values() for name in names}
_ALWAYS = ("strategy", "out", "seed", "seeds", "engine", "num-clients")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _name(strategy: Any) -> str:
    return str(getattr(strategy, "__name__", type(strategy).__name__))
