"""The folders of runs, read: one unit for each strategy, seed and point of a sweep."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedexp.config import Config
from fedexp.runs.json_files import MOVE, about_in, environment_in, partition_in, summary_in
from fedexp.specs import slug, split_list, value_of

MetricsRow = dict[str, Any]
"""One line of ``metrics.jsonl`` or of ``clients.csv``."""

# What may differ between runs that are alike.
_NO_SETTINGS = {
    "strategy",
    "seed",
    "seeds",
    "sweep",
    "select",
    "tuning-seeds",
    "name",
    "out",
    "log",
    "checkpoint-every",
}
_NO_SETTINGS |= {"engine", "num-workers", "num-gpus", "ray-address", "worker-log", "vectorize"}


@dataclass(frozen=True)
class UnitResult:
    """What one strategy did with one seed.

    Attributes:
        strategy: its key.
        seed: None if the folder does not tell it.
        settings: value by key, of what tells it from other units of this strategy and seed.
        rows: one for each round.
        summary: empty until the unit has ended.
        clients: one row for each client and round in which it evaluated.
        folder: None if it is in memory alone.
        about: what ``unit.json`` says beyond that: ``dataset``, ``target-accuracy``, ``tuning``.

    Example:
        >>> from fedexp.runs import UnitResult
        >>> UnitResult("fedavg", 0, rows=[{"round": 1, "test-accuracy": 0.5}]).rows[-1]["round"]
        1
    """

    strategy: str
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[MetricsRow] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    clients: Sequence[MetricsRow] = ()
    folder: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tuning(self) -> bool:
        """Whether it chose settings, and is no result itself."""
        return bool(self.about.get("tuning"))


@dataclass(frozen=True)
class RunData:
    """What one or several runs left.

    Attributes:
        units: of all runs.
        config: the keys and values in which the runs agree.
        command: the command lines.
        environment: of the first run.
        partition: ``clients`` and ``classes`` by name, ``counts`` ``[num_clients, num_classes]``,
            ``sizes`` ``[num_clients]``; empty where the run left none.

    Example:
        >>> from fedexp.runs import RunData, UnitResult
        >>> RunData([UnitResult("fedavg", seed) for seed in (0, 1)], {"dataset": "digits"}).config
        {'dataset': 'digits'}
    """

    units: Sequence[UnitResult]
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    partition: Mapping[str, Any] = field(default_factory=dict)


def read(folders: Sequence[Path]) -> RunData:
    """All that is in the folders of some runs; what differs between runs becomes a setting.

    Raises:
        ValueError: a folder holds no run, or a file in it is damaged.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from fedexp.runs import read
        >>> folder = Path(mkdtemp())  # of a run that has taken one round
        >>> _ = (folder / "config.toml").write_text('dataset = "digits"')
        >>> (folder / "fedavg").mkdir()
        >>> line = '{"round": 1, "test-accuracy": 0.5}' + chr(10)
        >>> _ = (folder / "fedavg" / "metrics.jsonl").write_text(line)
        >>> read([folder]).units[0].rows
        [{'round': 1, 'test-accuracy': 0.5}]
    """
    configs = [_config(folder) for folder in folders]
    shared = {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)}
    units = []
    for folder, config in zip(folders, configs, strict=True):
        own = {k: v for k, v in config.items() if k not in shared.keys() | _NO_SETTINGS}
        units += [
            replace(unit, settings={**own, **unit.settings}) for unit in read_units(folder, config)
        ]
    first = folders[0]
    return RunData(
        _told_apart(units, folders),
        shared,
        "\n".join(_text(folder / "command.txt") for folder in folders).strip(),
        environment_in(first),
        partition_in(first) if len(folders) == 1 else {},
    )


def read_units(folder: Path, config: Mapping[str, Any] | None = None) -> list[UnitResult]:
    """The units of one run folder, in the order of its strategies, settings and seeds.

    Args:
        folder: of the run.
        config: of the run; what units of older runs do not say themselves is taken from there.

    Raises:
        ValueError: a file is damaged.
    """
    config = _config(folder) if config is None else config
    order = [*_strategies(config), "fedavg"]
    return sorted(
        (_unit(folder, path, config) for path in _units_in(folder)),
        key=lambda u: (
            u.tuning,
            order.index(u.strategy) if u.strategy in order else len(order),
            u.strategy,
            *([str(x) for x in u.settings.values()], u.seed or 0),
        ),
    )


def check_others(folder: Path, own: Collection[Path]) -> None:
    """Find out whether the page of a run that goes on can be written at its end.

    Args:
        folder: of the run.
        own: folders of its units, which are checked, or written anew, when they go on.

    Raises:
        ValueError: a file that the page would show is damaged.
    """
    config = _config(folder)
    environment_in(folder)
    for path in _units_in(folder) - set(own):
        _unit(folder, path, config)


def _units_in(folder: Path) -> set[Path]:
    inner = {path.parent for path in folder.rglob("config.toml")} - {folder}  # other runs
    found = {p.parent for name in ("unit.json", "metrics.jsonl") for p in folder.rglob(name)}
    return {path for path in found if not inner & {path, *path.parents}}


def read_metrics(folder: Path) -> list[MetricsRow]:
    """The lines of a unit's ``metrics.jsonl``; none if there is no such file yet.

    Raises:
        ValueError: a line is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        # A line cut short by a crash has no end; the round is run again.
        rows = [json.loads(line) for line in _whole_lines(path)]
    except ValueError as error:
        raise ValueError(f"{path}: is damaged, {error}. {MOVE}") from None
    if not all(
        isinstance(row, dict)
        and isinstance(row.get("round"), int)
        and isinstance(row.get("failures") or {}, dict)
        for row in rows
    ):
        raise ValueError(f"{path}: is damaged, not every line is a round's. {MOVE}")
    return rows


def read_clients(folder: Path) -> list[MetricsRow]:
    """The lines of a unit's ``clients.csv``; an empty cell is None, what is a number is one.

    Raises:
        ValueError: a line is damaged.
    """
    path = folder / "clients.csv"
    if not path.exists():
        return []
    try:
        names, *lines = list(csv.reader(_whole_lines(path))) or [[]]
        if names and not {"round", "client"} <= {*names}:
            raise ValueError("it has no columns round and client")
        if odd := [line for line in lines if len(line) != len(names)]:
            raise ValueError(f"a line holds {odd[0]}, its columns are {names}")
        rows = [dict(zip(names, line, strict=True)) for line in lines]
        return [{key: _cell(key, text) for key, text in row.items()} for row in rows]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: is damaged, {error}. {MOVE}") from None


def _unit(root: Path, folder: Path, config: Mapping[str, Any]) -> UnitResult:
    about: MetricsRow = {}
    for key in ("seed", "dataset", "model", "target-accuracy", "average", "num-server-rounds"):
        about |= {key: config[key]} if key in config else {}
    about |= about_in(folder, config) or _by_names(root, folder, config)
    strategy, seed, settings = (about.pop(key, None) for key in ("strategy", "seed", "settings"))
    return UnitResult(
        str(strategy),
        seed,
        settings,
        read_metrics(folder),
        summary_in(folder),
        read_clients(folder),
        folder,
        about,
    )


def _by_names(root: Path, folder: Path, config: Mapping[str, Any]) -> MetricsRow:
    """What the names of folders tell of a unit: ``tuning/fedavg/alpha=0.1/seed-0``."""
    parts = folder.relative_to(root).parts
    tuning = parts[:1] == ("tuning",)
    names = {slug(key): key for key in _strategies(config)}
    around = (names[part] for part in parts if part in names)
    inside = [part for part in parts[tuning + 1 :] if "=" in part]
    settings = [pair.partition("=") for part in inside for pair in part.split(",")]
    word, _, number = folder.name.partition("seed-")
    return {
        "strategy": next(around, [*parts[tuning:], folder.name][0]),
        "settings": {key: value_of(value) for key, _, value in settings},
        "tuning": tuning,
        **({"seed": int(number)} if not word and number.isdecimal() else {}),
    }


def _told_apart(units: Sequence[UnitResult], folders: Sequence[Path]) -> list[UnitResult]:
    """``units``, with the run as a setting of those that would look the same."""
    count = Counter(map(_identity, units))
    return [
        replace(unit, settings={**unit.settings, "run": _run_of(unit, folders)})
        if count[_identity(unit)] > 1
        else unit
        for unit in units
    ]


def _identity(unit: UnitResult) -> str:
    return repr((unit.strategy, unit.seed, sorted(unit.settings.items()), unit.tuning))


def _run_of(unit: UnitResult, folders: Sequence[Path]) -> str:
    assert unit.folder is not None
    return next(str(folder) for folder in folders if folder in unit.folder.parents)


def _config(folder: Path) -> MetricsRow:
    if not (folder / "config.toml").is_file():
        around = [*folder.glob("*/config.toml"), *(p / "config.toml" for p in folder.parents)]
        near = next((path.parent for path in around if path.is_file()), None)
        remedy = f"Name a run folder{'' if near is None else f', such as {str(near)!r}'}."
        raise ValueError(f"{str(folder)!r}: holds no run, it has no config.toml. {remedy}")
    return Config.read(folder / "config.toml")


def _strategies(config: Mapping[str, Any]) -> list[str]:
    with suppress(ValueError):
        return split_list(str(config.get("strategy", "")))
    return []


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _whole_lines(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [line for line in file if line.endswith("\n")]
    except OSError as error:
        raise ValueError(f"it cannot be read, {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not in UTF-8") from None


def _cell(key: str, text: str) -> Any:
    if key == "client" or not text:
        return text or None
    if key in ("round", "examples"):
        return int(float(text))
    try:
        return float(text)
    except ValueError:  # a metric that is a list
        return text
