"""Which choice reads which setting, so that none is given in vain."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from fedexp import keys
from fedexp.clients.local_optimizers import LOCAL_OPTIMIZERS
from fedexp.clients.named import named_optimizer
from fedexp.config import Config, cut
from fedexp.datasets import PARTITIONERS, SOURCES, from_arrays, from_hub
from fedexp.datasets.own_files import READS, WITH_TEST
from fedexp.strategies import STRATEGIES, FedOpt

Fields = frozenset[str]
"""Names of fields of ``Config``."""

_MOST = 8  # names in one line
_FIELDS: Fields = frozenset(Config.model_fields)
# An argument of a strategy, and the field that means it.
_SAME = {
    **{"eta": "server_learning_rate", "factor": "extrapolation_factor"},
    "extensions": "privacy",
}
_SIMULATED = Fields({"vectorize", "faults", "client_profiles", "deadline"})
_ENGINES = {
    "serial": _SIMULATED,
    "ray": _SIMULATED | {"num_workers", "num_gpus", "ray_address", "worker_log"},
    "fedexp run": Fields({"min_nodes", "sample", "enough", "deadline"}),
}


def strategy_arguments(strategy: type[FedOpt]) -> dict[str, str]:
    """Arguments that ``strategy`` takes, and the field of ``Config`` that fills each."""
    fields = {name: _SAME.get(name, name) for name in _arguments(strategy)}
    return {name: field for name, field in fields.items() if field in _FIELDS}


@lru_cache  # each run asks for those of every strategy
def _arguments(strategy: type[FedOpt]) -> frozenset[str]:
    return frozenset(x for base in strategy.__mro__ for x in inspect.signature(base).parameters)


def readers() -> dict[str, dict[str, Fields]]:
    """What is chosen (a strategy, a partitioner, ...), by name, and the fields that it reads.

    All is derived from what the choices are made of, but for the engines: looking at those would
    import Ray.
    """
    return {
        "strategy": {
            key: _with_search(Fields(strategy_arguments(row.strategy).values()))
            for key, row in STRATEGIES.items()
        },
        "local optimizer": {name: optimizer_fields(name) for name in LOCAL_OPTIMIZERS},
        "partitioner": {name: _parameters(f) & _FIELDS for name, f in PARTITIONERS.items()},
        "dataset": {
            **{name: Fields({"data_dir"} if x.files else ()) for name, x in SOURCES.items()},
            ".npz": _parameters(from_arrays) & _FIELDS,
            "hub:": _parameters(from_hub) & _FIELDS,
            **{kind: fields & _FIELDS for kind, fields in READS.items() if kind != ".npz"},
        },
        "engine": _ENGINES,
    }


def _with_search(fields: Fields) -> Fields:
    """A strategy with a step that the user may fix may also search for it."""
    return fields | ({"server_step_size"} if "server_learning_rate" in fields else set())


def dataset_kind(name: str) -> str:
    """The row of ``readers`` that a dataset belongs to."""
    return ".npz" if name.endswith(".npz") else "hub:" if name.startswith("hub:") else name


def check_has_reader(
    config: Config, chosen: Mapping[str, Collection[str]], given: Collection[str] = ()
) -> None:
    """Find out whether each setting has a reader among the choices.

    Settings that no choice at all reads are the run's own, and pass.

    Args:
        config: values that differ from their default are judged.
        chosen: names by kind of choice, see ``readers``; kinds that are left out are not judged.
        given: keys that are judged though they have their default, those of the command line.

    Raises:
        ValueError: nothing that was chosen reads a setting; the line names what would.
    """
    known = readers()
    for text in chosen.get("local optimizer", ()):
        known["local optimizer"].setdefault(text, optimizer_fields(text))
    known = {  # without those of a name that is wrong, which is the error to name
        kind: options
        for kind, options in known.items()
        if kind in chosen and options.keys() >= set(chosen[kind])
    }
    for field, info in Config.model_fields.items():
        key, value = field.replace("_", "-"), getattr(config, field)
        would = {
            kind: [name for name, fields in options.items() if field in fields]
            for kind, options in known.items()
        }
        is_read = any(set(names) & set(chosen[kind]) for kind, names in would.items())
        if is_read or not any(would.values()) or (key not in given and value == info.default):
            continue
        instead = [f"no chosen {kind} reads {key}; {_do(x)}" for kind, x in would.items() if x]
        raise ValueError(f"Config({key}={cut(value)}): {', and '.join(instead)}.")


def optimizer_fields(text: str) -> Fields:
    """The settings that making the optimizer reads, and that of what it keeps between rounds.

    Those that came with its name are not read from anywhere else.
    """
    optimizer = named_optimizer(text)
    read = [*optimizer.reads(), *([keys.BETWEEN_ROUNDS] if optimizer.keeps != "nothing" else [])]
    return Fields(key.replace("-", "_") for key in read if key not in optimizer.given)


def _parameters(function: Any) -> Fields:
    return Fields(inspect.signature(function).parameters)


def _do(names: list[str]) -> str:
    names = [name for name in names if name not in WITH_TEST]  # they go by the plainer name
    shown = names if len(names) <= _MOST else [*names[:_MOST], f"{len(names) - _MOST} more"]
    *first, last = shown
    return f"{', '.join(first)} and {last} do" if first else f"{last} does"
