"""What is given in Python: text becomes configuration keys, all else objects in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedexp import checks, factories
from fedexp.config import SHORT, Config, cut
from fedexp.datasets import Dataset, data
from fedexp.readers import readers
from fedexp.runs.federation import Own, arrays_of
from fedexp.specs import Spec, split_list
from fedexp.strategy_settings import privacy_of

PARTS = ("model", "data", "optimizer", "scheduler", "loss", "metrics", "client_app", "evaluate")
_OBJECTS_ALONE = ("loss", "client_app", "evaluate")  # no key of the command line means them
_FIELDS = {short: key.replace("-", "_") for key, short in SHORT.items()}
_PART = {"local_optimizer": "optimizer"}
_ALWAYS = {"strategy", "out", "seed", "seeds", "engine", "num-clients"}
_OF_DATA = {
    *("target", "client-from", "test-fraction", "drop"),
    *("impute", "standardize", "targets", "image-size"),
}
_LISTS = {  # whose text has commas
    *("strategy", "metrics", "log", "seeds", "tuning-seeds", "sweep", "drop", "augmentation"),
    *("private-layers", "faults", "client-profiles"),
}
_ONE = (str, Path, int, float, np.generic)
_SEVERAL = (list, tuple, range, set, frozenset, np.ndarray)
_RUNS = ("on_round", "stop")


def given(
    owner: str, parts: Mapping[str, Any], strategies: Iterable[Any] = ()
) -> tuple[Config, Own]:
    """The configuration and the objects that ``parts`` come to; None stands for nothing given.

    Args:
        owner: who takes them, for the messages.
        parts: by name: those of ``PARTS``, and keys of the command line.
        strategies: objects, which have settings of their own.

    Raises:
        ValueError: a name that nobody knows or a value that cannot be.
    """
    values: dict[str, Any] = {}
    _check_dataset(owner, parts.get("dataset"))
    own: dict[str, Any] = {}
    for name, value in _by_field(owner, parts).items():
        if name in _OBJECTS_ALONE or (name in PARTS and not _is_text(name, value)):
            own[name] = value
        elif name == "initial_model" and not isinstance(value, str | Path):
            own["arrays"] = arrays_of(value)
        else:
            values[_key(name)] = _plain(_key(name), value)
    _check_strategies(owner, strategies, values)
    config = Config.of(values)
    factories.reread_changed(config)
    taken = _OF_DATA if "data" in own else set[str]()  # by the data itself
    if taken:
        config = _with_data(owner, own, config, values)
    if "client_app" in own:
        own |= _of_client_app(owner, own, values)
        if not own.keys() & {"data"} and "dataset" in values:
            own["data"] = factories.loaded(config)  # for the server's evaluation
    untold = {key: field.default for key, field in Config.keys().items() if key in taken}
    checks.check_read(Config.of({**config.values(), **untold}), values.keys() - _ALWAYS - taken)
    return config, Own(**own)


def _check_dataset(owner: str, dataset: Any) -> None:
    if not isinstance(dataset, str | Path | None):
        raise ValueError(
            f"{owner}(dataset={type(dataset).__name__}): must be a name. Give an object as data=."
        )


def _by_field(owner: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, by names that are known.

    Raises:
        ValueError: a name that is not, or two for the same.
    """
    known = {*PARTS, *Config.model_fields}
    found: dict[str, Any] = {}
    for written, value in parts.items():
        if value is None:
            continue
        name = written.replace("-", "_")
        name = (_FIELDS | _PART).get(name, name)
        if name in _RUNS:
            raise ValueError(f"{owner}({name}): belongs to run. Write run({name}=...).")
        if name not in known:
            close = get_close_matches(name, [*known, *_FIELDS], 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."
            raise ValueError(f"{owner}({written}): is not known. {hint}")
        if name in found:
            raise ValueError(f"{owner}({written}): {name} is given twice. Leave one out.")
        found[name] = value
    return found


def _is_text(name: str, value: Any) -> bool:
    """Whether the command line could have it."""
    names = name == "metrics" and isinstance(value, list | tuple)
    return isinstance(value, str | Path) or (names and all(isinstance(x, str) for x in value))


def _plain(key: str, value: Any) -> Any:
    """A value as the command line would have it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    field = Config.keys().get(key)
    if field is None or field.annotation is not str:
        return value
    if key in _LISTS and isinstance(value, Mapping) and all(map(_is_simple, value.values())):
        return "; ".join(f"{_key(k)}={_plain(key, v)}" for k, v in value.items())
    if key in _LISTS and isinstance(value, _SEVERAL) and all(isinstance(x, _ONE) for x in value):
        return ",".join(map(str, value))
    return value


def _is_simple(value: Any) -> bool:
    return isinstance(value, _ONE) or (
        isinstance(value, _SEVERAL) and all(isinstance(x, _ONE) for x in value)
    )


def _key(name: str) -> str:
    name = name.replace("-", "_")
    return "local-optimizer" if name == "optimizer" else _FIELDS.get(name, name).replace("_", "-")


def _of_client_app(owner: str, own: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, int]:
    if not values.get("num-clients") and "data" not in own:
        raise ValueError(f"{owner}(client_app): say num_clients, how many there are.")
    if not own.keys() & {"model", "arrays"} and "model" not in values:
        raise ValueError(
            f"{owner}(client_app): the first model is needed. Give model, or initial_model with "
            "the arrays that your clients start from."
        )
    return {"num_clients": int(values.get("num-clients", 0))}


def _with_data(
    owner: str, own: dict[str, Any], config: Config, values: Mapping[str, Any]
) -> Config:
    """``config`` without a dataset of its own; ``own`` gets the ``Dataset``."""
    if "dataset" in values:
        raise ValueError(f"{owner}(dataset={config.dataset!r}): data is given too. Leave one out.")
    if not (isinstance(own["data"], Dataset) and not values.keys() & _OF_DATA):
        own["data"] = _data(own["data"], config, values)
    split_by = {"dataset": "", "partitioner": factories.partitioner_of(config, own["data"])}
    return Config.of({**config.values(), **split_by})


def _data(source: Any, config: Config, values: Mapping[str, Any]) -> Dataset:
    """A dataset of what ``fedexp.data`` takes, by the keys of the command line."""
    kind, _, column = config.client_from.partition(":")
    return data(
        source,
        target=config.target or None,
        client=column or kind or None,
        test=config.test_fraction if "test-fraction" in values else None,
        drop=split_list(config.drop),
        impute=config.impute,
        standardize=config.standardize,
        targets=config.targets,
        image_size=config.image_size,
    )


def _check_strategies(owner: str, strategies: Iterable[Any], values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a setting that a strategy object would not hear of."""
    for strategy in strategies:
        name = type(strategy).__name__
        if isinstance(strategy, Strategy) and (lost := sorted(values.keys() & _of_strategies())):
            raise ValueError(
                f"{owner}({lost[0].replace('-', '_')}): a strategy object has its own. Give it "
                f"there: {_with_argument(name, lost[0], values[lost[0]])}."
            )


def _with_argument(name: str, key: str, value: Any) -> str:
    """The strategy in Python, with what takes the place of a key of the command line."""
    if key == "server-step-size":
        return "FedOpt(optimizer=ServerOptimizer(Identity(), LineSearch(loss)))"
    return f"{name}({_argument(key, value)})"


def _argument(key: str, value: Any) -> str:
    if key == "privacy":
        spec, kind = Spec.of(value), type(privacy_of(value)).__name__
        settings = ", ".join(f"{name}={x!r}" for name, x in spec.settings.items())
        return f"extensions=[fedexp.strategies.{kind}({settings})]"
    if key == "clip":
        return f"clip=fedexp.strategies.FixedClip({cut(value)})"
    return f"{key.replace('-', '_')}={cut(value)}"


def _of_strategies() -> set[str]:
    """Keys that strategies read, and nothing else does."""
    known = readers()
    theirs = set[str]().union(*known.pop("strategy").values())
    others = (fields for options in known.values() for fields in options.values())
    return {field.replace("_", "-") for field in theirs.difference(*others)}
