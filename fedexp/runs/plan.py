"""The runs that a configuration asks for: strategies, seeds, and the points of a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fedexp.choices import Choice, optimizer_key
from fedexp.config import Config, cut
from fedexp.readers import Fields, optimizer_fields, readers, strategy_arguments
from fedexp.specs import slug, split_list
from fedexp.strategies import STRATEGIES

Point = dict[str, str]
"""Values of the keys of a sweep."""

Strategies = Mapping[str, str]
"""What each strategy of a run is called, and how ``--strategy`` has it."""

TUNING = Path("tuning")
_NOT_SWEPT = ("strategy", "seed", "seeds", "sweep", "select", "tuning-seeds", "out", "name", "log")
_MORE_IS_BETTER = tuple(f"{a}{b}-accuracy" for a in ("", "mean-") for b in ("best", "final"))
_LESS_IS_BETTER = tuple(
    f"{a}{b}" for a in ("", "mean-") for b in ("final-test-loss", "rounds-to-target")
)
SCORES = _MORE_IS_BETTER + _LESS_IS_BETTER
"""What ``--select`` can go by: numbers of a summary."""


@dataclass(frozen=True)
class Unit:
    """One strategy with one seed at one point.

    Attributes:
        label: what the strategy is called.
        config: of this run alone.
        folder: below the folder of the whole.
        settings: the values that were swept, or selected.
        tuning: it only serves to select.
    """

    label: str
    config: Config
    folder: Path
    settings: Point = field(default_factory=dict)
    tuning: bool = False

    def about(self) -> dict[str, Any]:
        """What readers of its folder need to know; ``unit.json``."""
        c = self.config
        return {
            "strategy": self.label,
            "choice": c.strategy,
            "seed": c.seed,
            "settings": {key: c.values()[key] for key in self.settings},
            "tuning": self.tuning,
            "num-server-rounds": c.num_server_rounds,
            "target-accuracy": c.target_accuracy,
            "average": c.average,
            "dataset": c.data or c.dataset,
            "model": c.model,
        }


def first_units(config: Config, strategies: Strategies) -> list[Unit]:
    """The runs that depend on no other: those that select, where ``config`` selects, else all.

    Args:
        config: of the whole.
        strategies: what each is called, and how ``--strategy`` would have it.

    Raises:
        ValueError: seeds, a sweep or a score that cannot be read.
    """
    if config.select and not config.sweep:
        raise ValueError(f"Config(select={cut(config.select)}): there is no sweep. Add --sweep.")
    if config.tuning_seeds and not config.select:
        raise ValueError("Config(tuning-seeds): nothing is selected. Add --select.")
    if config.select not in ("", *SCORES):
        raise ValueError(
            f"Config(select={cut(config.select)}): must be one of {', '.join(SCORES)}."
        )
    if not config.select:
        return _units(config, strategies, seeds_of(config), {})
    tuning = tuning_seeds_of(config)
    if both := set(tuning) & set(seeds_of(config)):
        raise ValueError(
            f"Config(tuning-seeds={cut(config.tuning_seeds)}): seed {min(both)} also reports. "
            "Seeds that select must be others."
        )
    return _units(config, strategies, tuning, {}, tuning=True)


def selected_units(
    config: Config, strategies: Strategies, tried: Iterable[tuple[Unit, Mapping[str, Any]]]
) -> list[Unit]:
    """The runs that report, each strategy at the point that did best over the tuning seeds."""
    scores: dict[str, dict[str, list[float]]] = {}
    points: dict[str, Point] = {}
    for unit, summary in tried:
        label = _label(unit.settings)
        points[label] = unit.settings
        scores.setdefault(unit.label, {}).setdefault(label, []).append(_score(config, summary))
    best = {
        key: points[max(found, key=lambda label: sum(found[label]))]
        for key, found in scores.items()
    }
    return _units(config, strategies, seeds_of(config), best)


def reporting_units(config: Config, strategies: Strategies) -> list[Unit]:
    """As ``selected_units`` before anything is selected: in the same folders, at no point."""
    best: dict[str, Point] = {label: {} for label in strategies} if config.select else {}
    return _units(config, strategies, seeds_of(config), best)


def seeds_of(config: Config) -> list[int]:
    """The seeds that report."""
    return _numbers("seeds", config.seeds) or [config.seed]


def tuning_seeds_of(config: Config) -> list[int]:
    """The seeds that select: by default the two after the largest that reports."""
    last = max(seeds_of(config))
    return _numbers("tuning-seeds", config.tuning_seeds) or [last + 1, last + 2]


def points_of(config: Config) -> list[Point]:
    """The points of a sweep: every combination of its values.

    Raises:
        ValueError: it is not ``KEY=VALUE,VALUE``, or a key cannot be swept.
    """
    axes: dict[str, list[str]] = {}
    for part in split_list(config.sweep, ";"):
        key, equals, values = part.partition("=")
        key = key.strip().replace("_", "-")
        if not equals or not split_list(values):
            raise ValueError(f"Config(sweep={cut(part)}): must be KEY=VALUE,VALUE.")
        if key in _NOT_SWEPT or key in axes:
            why = "is given twice" if key in axes else "cannot be swept"
            raise ValueError(f"Config(sweep={cut(part)}): {key} {why}. Sweep another key.")
        axes[key] = split_list(values)
        for value in axes[key]:
            Config.of({key: value})
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def points_for(config: Config, choice: str) -> list[Point]:
    """The points at which a strategy differs: without the keys of the sweep that it does not read.

    So FedAvg runs once, not once for every ``epsilon`` of a sweep. A key that settings in brackets
    fix is not read either. Of code that is in no table nobody knows what it reads: all points.

    Args:
        config: of the whole.
        choice: how ``--strategy`` has the strategy.
    """
    found: list[Point] = []
    for swept in points_of(config):
        at = Config.of({**config.values(), **swept})
        point = {key: value for key, value in swept.items() if _is_read(at, choice, key)}
        found += [] if point in found else [point]
    return found


def _is_read(config: Config, choice: str, key: str) -> bool:
    """Whether ``key`` may change a run of a strategy."""
    entry, name = Choice.of(choice), key.replace("-", "_")
    if name == "local_optimizer":
        return not entry.optimizer
    of_strategies, of_optimizers = _tables()
    if not any(name in fields for fields in (*of_strategies.values(), *of_optimizers)):
        return True
    strategy = entry.strategy
    if strategy.name not in STRATEGIES:
        return True
    argument_of = {
        field: x for x, field in strategy_arguments(STRATEGIES[strategy.name].strategy).items()
    }
    fixed = {name, argument_of.get(name)} & set(strategy.settings)
    if name in of_strategies[strategy.name] and not fixed:
        return True
    return name in optimizer_fields(optimizer_key(config, choice))


@cache
def _tables() -> tuple[dict[str, Fields], list[Fields]]:
    """The settings that each strategy reads, and each local optimizer."""
    known = readers()
    return known["strategy"], list(known["local optimizer"].values())


def _units(
    config: Config,
    strategies: Strategies,
    seeds: Sequence[int],
    best: Mapping[str, Point],
    *,
    tuning: bool = False,
) -> list[Unit]:
    found = []
    for label, name in _names(list(strategies)).items():
        for point in [best[label]] if label in best else points_for(config, strategies[label]):
            inside = Path(TUNING, name) if tuning else Path(name)
            if point and label not in best:
                inside /= slug(_label(point))
            for seed in seeds:
                own = inside / f"seed-{seed}" if config.seeds or config.sweep else inside
                one = _alone(config, strategies[label], seed, point)
                found.append(Unit(label, one, own, point, tuning))
    return found


def _alone(config: Config, key: str, seed: int, point: Point) -> Config:
    one = {"strategy": key, "seed": seed, "seeds": "", "sweep": "", "select": ""}
    return Config.of({**config.values(), **one, "tuning-seeds": "", **point})


def _names(labels: Sequence[str]) -> dict[str, str]:
    """A folder for every label; two that would get the same are numbered."""
    names: dict[str, str] = {}
    for label in labels:
        name = slug(label)
        taken = {x.lower() for x in names.values()} | {TUNING.name}
        number = next(i for i in itertools.count(1) if _numbered(name, i).lower() not in taken)
        names[label] = _numbered(name, number)
    return names


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _label(point: Point) -> str:
    return ",".join(f"{key}={value}" for key, value in point.items())


def _score(config: Config, summary: Mapping[str, Any]) -> float:
    """More is better; a run without the score is worst."""
    value = summary.get(config.select)
    if value is None:
        return -math.inf
    return float(value) if config.select in _MORE_IS_BETTER else -float(value)


def _numbers(key: str, text: str) -> list[int]:
    """``0,1,2`` or ``0-2``.

    Raises:
        ValueError: it is neither, or names a number twice.
    """
    found: list[int] = []
    for part in split_list(text):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise ValueError(f"Config({key}={cut(text)}): must be numbers by comma, or 0-9.")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) < len(found) or (text and not found):
        raise ValueError(f"Config({key}={cut(text)}): must name numbers, each once.")
    return found
