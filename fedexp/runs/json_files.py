"""What the JSON files of a run say, if all of it can be; nothing of a file that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedexp.config import cut
from fedexp.files import read_json

MOVE = "Move it out of the run's folder."
"""What to do about a damaged file that a run goes on without."""

_ANEW = "Resume the run, which writes it anew, or move it out of the run's folder."
_NONE = type(None)
_OF_A_UNIT: dict[str, tuple[type, ...]] = {  # older ones hold less
    **{"strategy": (str,), "seed": (int, _NONE), "settings": (dict,), "tuning": (bool,)},
    **dict.fromkeys(("choice", "average", "dataset", "model"), (str, _NONE)),
    **{"num-server-rounds": (int, _NONE), "target-accuracy": (float, int, _NONE)},
    **{"input-shape": (list, _NONE), "num-outputs": (int, _NONE)},
}
_OF_AN_END: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("strategy", "model", "average"), (str, _NONE)),
    **dict.fromkeys(("ended", "problem", "stopped"), (str, _NONE)),
    **{"settings": (dict, _NONE), "missing-nodes": (list, _NONE)},
}
_NUMBER = (int, float, bool, _NONE)  # all else of an end


def environment_in(folder: Path) -> dict[str, Any]:
    """The ``environment.json`` of a run.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "environment.json"
    environment = _object(path, MOVE)
    for key in ("config", "objects"):
        if not isinstance(environment.get(key, {}), dict):
            raise ValueError(f"{path}: is damaged, {key} is {cut(environment[key])}. {MOVE}")
    return environment


def about_in(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``unit.json`` of a unit.

    Args:
        folder: of the unit.
        config: of the run.

    Raises:
        ValueError: it is damaged, or has a seed that is not the run's.
    """
    path = folder / "unit.json"
    if not path.exists():
        return {}
    about = _object(path, _ANEW)
    if odd := [key for key, kinds in _OF_A_UNIT.items() if type(about.get(key)) not in kinds]:
        value = cut(about[odd[0]]) if odd[0] in about else "missing"
        raise ValueError(f"{path}: is damaged, {odd[0]} is {value}. {_ANEW}")
    seed = about.get("seed")
    if folder.name != f"seed-{seed}" and seed != config.get("seed", seed):
        raise ValueError(f"{path}: is damaged, seed {seed} is not this run's. {_ANEW}")
    return about


def summary_in(folder: Path) -> dict[str, Any]:
    """The ``summary.json`` of a unit.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "summary.json"
    summary = _object(path, _ANEW)
    if path.exists() and "problem" not in summary:
        raise ValueError(f"{path}: is damaged, problem is missing. {_ANEW}")
    for key, value in summary.items():
        if type(value) not in _OF_AN_END.get(key, _NUMBER):
            raise ValueError(f"{path}: is damaged, {key} is {cut(value)}. {_ANEW}")
    return summary


def partition_in(folder: Path) -> dict[str, Any]:
    """The ``partition.json`` of a run.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "partition.json"
    if not path.exists():
        return {}
    told = _object(path, _ANEW)
    sizes, classes, counts, clients = (
        told.get(key, []) for key in ("sizes", "classes", "counts", "clients")
    )
    if not (
        _is_list(sizes, int)
        and sizes
        and _is_list(classes)
        and _is_list(counts, list)
        and all(_is_list(row, int) for row in counts)
        and (not classes or [*map(len, counts)] == [len(classes)] * len(sizes))
        and _is_list(clients)
        and len(clients) in (0, len(sizes))
    ):
        raise ValueError(f"{path}: is damaged, it does not say who has what. {_ANEW}")
    return told


def _is_list(value: Any, kind: type = object) -> bool:
    return isinstance(value, list) and all(isinstance(x, kind) for x in value)


def _object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file; none if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read, {error.strerror}. {remedy}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: is damaged, it is no JSON object. {remedy}")
    return value
