"""What came of a run, and of several: numbers, tables, pictures and the final model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedexp import clients
from fedexp.arrays import Arrays
from fedexp.config import Config
from fedexp.extras import need
from fedexp.files import read_model, save_text
from fedexp.runs import pictures, tables
from fedexp.runs.page import report
from fedexp.runs.reading import MetricsRow, UnitResult, read_units

if TYPE_CHECKING:
    from torch import nn

_MODELS = ("model.safetensors", "model-mean.safetensors")


@dataclass(frozen=True, eq=False)
class Result:
    """What one strategy did with one seed.

    Attributes:
        unit: its rows, summary and settings.
        config: of the run.
        make: the model, with any weights; None where nobody knows it.
        arrays: the last iterate and the average of iterates; None if they are in the folder.

    Example:
        >>> import fedexp
        >>> run = fedexp.simulate(strategy="fedavg", rounds=2, clients=10, local_steps=1)
        >>> run
        Result(fedavg, seed=0, num-rounds=2, final-accuracy=..., ended=finished)
        >>> sorted(run.model().state_dict())
        ['1.bias', '1.weight', '3.bias', '3.weight']
    """

    unit: UnitResult
    config: Config
    make: Callable[[], nn.Module] | None = None
    arrays: tuple[Arrays, Arrays] | None = None

    @property
    def strategy(self) -> str:
        """What the strategy is called."""
        return self.unit.strategy

    @property
    def seed(self) -> int | None:
        """What fixed all that was drawn."""
        return self.unit.seed

    @property
    def metrics(self) -> list[MetricsRow]:
        """A row for every round: the lines of ``metrics.jsonl``."""
        return list(self.unit.rows)

    @property
    def clients(self) -> list[MetricsRow]:
        """A row for every client and round in which it evaluated."""
        return list(self.unit.clients)

    @property
    def summary(self) -> dict[str, Any]:
        """How the run ended, and its scores; ``summary["problem"]`` is None if all went well."""
        return dict(self.unit.summary)

    @property
    def folder(self) -> Path | None:
        """Where it is on disk; None if nothing was written."""
        return self.unit.folder

    def frame(self) -> Any:
        """``metrics`` as a ``pandas.DataFrame``, indexed by round.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return tables.frame(self.metrics).set_index("round")

    def model(self, model: nn.Module | None = None, *, average: bool = False) -> nn.Module:
        """The model that was scored, ready to predict.

        Args:
            model: to be filled, in place of a new one; needed where a run on disk had a class of
                its own.
            average: the average of the iterates (``mean-test-accuracy``), in place of the last.

        Raises:
            ValueError: nobody knows the class, or it is another model.
            ModuleNotFoundError: PyTorch is not installed.
        """
        if model is None and self.make is None:
            raise ValueError(
                "model(): the run had a model of its own. Give one to be filled: model(Net())."
            )
        module = model if model is not None else self.make()  # type: ignore[misc]
        clients.load_arrays(module, self._arrays(module, average))
        return module.eval()

    def plot(self, path: str | Path | None = None) -> Any:
        """Curves as a matplotlib figure; also written to ``path``, if it is given."""
        return _plotted([self.unit], self.config, path)

    def _arrays(self, module: nn.Module, average: bool) -> Arrays:
        if self.arrays:
            return self.arrays[average]
        assert self.folder is not None
        return read_model(self.folder / _MODELS[average], clients.module_arrays(module))

    def __repr__(self) -> str:
        score = "accuracy" if self.summary.get("final-accuracy") is not None else "test-loss"
        keys = ("num-rounds", f"final-{score}", "ended")
        shown = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self._of(keys)]
        return f"Result({self.strategy}, {', '.join([f'seed={self.seed}', *shown])})"

    def _of(self, keys: Sequence[str]) -> list[tuple[str, Any]]:
        return [(key, self.summary[key]) for key in keys if self.summary.get(key) is not None]


@dataclass(frozen=True, eq=False)
class Results(Sequence[Result]):
    r"""Several runs beside each other; a sequence of them.

    Attributes:
        runs: one for each strategy, settings and seed.
        config: what they have in common.
        folder: of all; None if nothing was written.

    Example:
        >>> import fedexp
        >>> study = fedexp.compare("fedavg, fedexp", seeds=[0, 1], rounds=2, clients=10)
        >>> [run.seed for run in study["fedexp"]]
        [0, 1]
        >>> print(study.to_latex())
        \begin{tabular}{...
    """

    runs: tuple[Result, ...]
    config: Config
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        """By position; or by a strategy's name, its runs with all seeds."""
        if isinstance(index, str):
            found = tuple(run for run in self.runs if run.strategy == index)
            if not found:
                known = ", ".join(dict.fromkeys(run.strategy for run in self.runs))
                raise KeyError(f"{index!r}: no such strategy. Known: {known}.")
            return replace(self, runs=found)
        return self.runs[index]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.runs)

    @property
    def units(self) -> list[UnitResult]:
        """The runs as plain data."""
        return [run.unit for run in self.runs]

    def table(self, targets: Sequence[float] = ()) -> Any:
        """Means and standard deviations over seeds: a ``DataFrame`` with pandas, else rows.

        ``final-accuracy`` is that of the last iterate, ``mean-final-accuracy`` that of the average
        of iterates, ``...-std`` the standard deviation of either, where there are several seeds.

        Args:
            targets: test accuracies whose rounds are counted; by default ``target-accuracy``.
        """
        rows = tables.short(self.units, targets)
        try:
            return tables.frame(rows).set_index("strategy")
        except ModuleNotFoundError:
            return rows

    def frame(self) -> Any:
        """Every round of every run as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return tables.frame(tables.round_rows(self.units))

    def plot(self, path: str | Path | None = None) -> Any:
        """Curves as a matplotlib figure, mean and band over seeds; also written to ``path``."""
        return _plotted(self.units, self.config, path)

    def to_csv(self, path: str | Path) -> None:
        """Write the numbers of every run, a row for each."""
        save_text(Path(path), tables.to_csv(tables.results(self.units)))

    def to_latex(self, path: str | Path | None = None) -> str:
        """The table over seeds in LaTeX, for ``booktabs``; also written to ``path``."""
        return _written(tables.to_latex(self.units), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The table over seeds in Markdown; also written to ``path``."""
        return _written(tables.to_markdown(self.units), path)

    def report(self, out: str | Path | None = None) -> Path:
        """Write ``report.html`` and the pictures; its path.

        Raises:
            ValueError: the runs are not on disk.
        """
        if self.folder is None:
            raise ValueError("report(): the runs are not on disk. Run with out=FOLDER.")
        return report([self.folder], out)

    def _repr_html_(self) -> str:
        return tables.to_html(self.units)

    def __repr__(self) -> str:
        return tables.to_markdown(self.units)


def load_runs(folder: str | Path) -> Results:
    """All that the run in ``folder`` has left so far.

    Raises:
        ValueError: no run is there, or a file is damaged.

    Example:
        >>> import fedexp, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = fedexp.compare("fedavg, fedexp", rounds=1, clients=10, out=folder)
        >>> [run.strategy for run in fedexp.load_runs(folder)]
        ['fedavg', 'fedexp']
        >>> fedexp.load_run(folder, "fedexp").seed
        0
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise ValueError(f"load_run({str(folder)!r}): holds no run. Name the folder of out=.")
    config = Config.of(Config.read(folder / "config.toml"))
    units = [unit for unit in read_units(folder, config.values()) if not unit.tuning]
    return Results(tuple(_loaded(unit, config) for unit in units), config, folder)


def load_run(folder: str | Path, strategy: str = "", seed: int | None = None) -> Result:
    """One run on disk.

    Args:
        folder: that ``--out`` or ``out=`` named.
        strategy: which, if there are several.
        seed: which, if there are several.

    Raises:
        ValueError: no run is there, or several are.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from fedexp import load_run
        >>> folder = Path(mkdtemp())  # of a run that has taken one round
        >>> _ = (folder / "config.toml").write_text('dataset = "digits"')
        >>> (folder / "fedavg").mkdir()
        >>> line = '{"round": 1, "test-accuracy": 0.5}' + chr(10)
        >>> _ = (folder / "fedavg" / "metrics.jsonl").write_text(line)
        >>> load_run(folder).strategy
        'fedavg'
    """
    found = [
        run
        for run in load_runs(folder)
        if strategy in ("", run.strategy) and seed in (None, run.seed)
    ]
    if len(found) == 1:
        return found[0]
    every = "; ".join(f"{run.strategy}, seed {run.seed}" for run in found or load_runs(folder))
    which = "holds several" if found else "has no such run"
    raise ValueError(f"load_run({str(folder)!r}): {which}. Name strategy and seed of: {every}.")


def _loaded(unit: UnitResult, config: Config) -> Result:
    settings = {key: str(value) for key, value in unit.settings.items()}
    alone = {"strategy": unit.about.get("choice", unit.strategy), "seeds": "", "sweep": ""}
    more = {"select": "", "tuning-seeds": "", "seed": unit.seed or config.seed}
    values = {**config.values(), **alone, **more, **settings}
    own = Config.model_construct(**{k.replace("-", "_"): v for k, v in values.items()})
    return Result(unit, own, _maker(unit, own))


def _maker(unit: UnitResult, config: Config) -> Callable[[], nn.Module] | None:
    """What makes the model of a unit on disk; None if it was an object."""
    about = unit.about
    if about.get("model", config.model) != config.model:
        return None
    if "input-shape" in about:
        return partial(_of_shape, config.model, tuple(about["input-shape"]), about["num-outputs"])
    return partial(_of_config, config)  # of an older run


def _of_shape(name: str, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    need("torch", "torch")  # which the numbers of a run do without
    from fedexp.models import of_shape

    return of_shape(name, input_shape, num_outputs)


def _of_config(config: Config) -> nn.Module:
    need("torch", "torch")
    from fedexp.runs.federation import Federation

    return Federation(config).model()


def _plotted(units: Sequence[UnitResult], config: Config, path: str | Path | None) -> Any:
    figure = pictures.curves(units, config.values())
    figure._repr_png_ = lambda: pictures.as_png(figure)  # a notebook shows it, without pyplot
    if path is not None:
        pictures.save(figure, Path(path))
    return figure


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        save_text(Path(path), text)
    return text
