"""A run from Python: one function over one object over the parts that the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from logging import WARNING
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakSet, finalize

from flwr.clientapp import ClientApp
from torch import nn

from fedexp.choices import strategy_keys
from fedexp.clients.losses import Loss
from fedexp.extras import need
from fedexp.logs import level
from fedexp.runs import folder as folders
from fedexp.runs.engines import check_engine, engine_of, grid_of, seconds_of
from fedexp.runs.federation import Federation
from fedexp.runs.given import given
from fedexp.runs.page import report
from fedexp.runs.plan import Unit, first_units
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.results import Result
from fedexp.runs.resuming import check_around, check_unit
from fedexp.runs.said import check_calls, check_folder, maker_of, name_of, tell
from fedexp.runs.trackers import Trackers, trackers_of
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
        label = text if is_text else name_of(strategy)
        self.config, self._own = given("Simulation", parts, [] if is_text else [strategy])
        if len(strategy_keys(self.config)) > 1 or self.config.seeds or self.config.sweep:
            raise ValueError(
                f"Simulation(strategy={text!r}): is for one strategy, seed and setting. "
                "Use fedexp.compare for several."
            )
        check_folder("Simulation", self.config, resume)
        first_units(self.config, {label: text})  # there is nothing to select from
        trackers_of(self.config.log, Path(self.config.out))
        unit = Unit(label, self.config, Path(slug(label)))
        self._federation = Federation(self.config, self._own)
        self._federation.check(self.config)
        self._kind = engine_of(self.config, lambda: seconds_of(self._federation))
        check_engine(self._federation, self._kind)
        self._held = ExitStack()
        self._live = _Engine()
        finalize(self, self._live.close)
        self._states: dict[int, Any] = {}
        try:
            root = self._folder(unit, resume) if out else None
            self._going = UnitRun(
                unit, self._federation, self._object, root / unit.folder if root else None
            )
        except BaseException:
            self._held.close()  # whatever was wrong, the folder is free again
            raise
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
            rounds: how many more; by default as many as ``num_server_rounds`` has left, even none.
            on_round: is called with the row of every round.
            stop: is asked after every round whether to end there.

        After an exception, such as a ``KeyboardInterrupt``, another ``run`` goes on after the last
        whole round.

        Raises:
            ValueError: ``rounds`` is not positive.
            RuntimeError: no round succeeded.

        Warns:
            RuntimeWarning: a client never contributed, or else went wrong.
        """
        check_calls(on_round=on_round, stop=stop)
        grid = self._ready()
        done = len(self._going.rows)
        more = self.config.num_server_rounds - done if rounds is None else rounds
        if rounds is None and more < 1:
            if self._root is None:
                return self.result
            more = 0  # it ends anew, for going on has removed the end
        elif more < 1:
            raise ValueError(f"run(rounds={more}): must be at least 1. {done} rounds are done.")
        trackers = self._trackers(done + 1)

        def told(row: MetricsRow) -> None:
            trackers.row(row)
            on_round(row)

        try:
            with level(WARNING):
                self._summary = self._going.advance(grid, done + more, told, stop)
        except BaseException:
            self._states = dict(grid.states)
            self.close()  # clients may still be at work
            raise
        self._states = dict(grid.states)
        trackers.end(self._summary)
        if self._root:
            report([self._root])
        if more:
            tell(self._summary["problem"], self._going.rows[done:])
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

    def _trackers(self, first: int) -> Trackers:
        """What ``log`` names, from a round on."""
        trackers = trackers_of(self.config.log, self._root) if self._root else Trackers({})
        unit = self._going.unit
        trackers.begin(unit.about(), (self._root or Path()) / unit.folder, first)
        return trackers

    def _folder(self, unit: Unit, resume: bool) -> Path:
        need("matplotlib", "simulation")  # for the pictures of the report, at the end
        root = Path(self.config.out)
        if resume and (root / "config.toml").exists():
            self._held.enter_context(folders.reopened(root))
            check_around(root, [unit])
            check_unit(unit, root / unit.folder, self._federation)
            folders.show_partition(root, self._federation)
            return root
        self._held.enter_context(folders.claimed(self.config))
        names = self._own.names()
        if self._object is not None:
            names["strategy"] = name_of(self._object)
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
        return Result(unit, self.config, maker_of(self._federation), going.models())


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


def _checked(strategy: Any) -> Any:
    if strategy is None or isinstance(strategy, list | tuple | Mapping):
        raise ValueError("Simulation(strategy): give one. Use fedexp.compare for several.")
    return strategy
