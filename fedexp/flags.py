"""Flags of the command line, made from the fields of ``Config``, in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, get_args

from fedexp.config import SHORT, Config, robust_by_default
from fedexp.parser import Joined, Named, Once, Parser, Switch

GROUPS: dict[str, tuple[str, ...]] = {
    "what": (
        *("strategy", "model", "initial-model", "num-server-rounds", "target-accuracy"),
        *("stop-at-target", "patience", "max-minutes"),
        *("metrics", "seed", "seeds", "sweep", "select", "tuning-seeds"),
    ),
    "data": (
        *("dataset", "data-dir", "data", "target", "client-from", "drop", "test-fraction"),
        *("standardize", "image-size", "impute", "targets", "partitioner", "num-clients"),
        *("alpha", "sigma", "shards-per-client", "classes-per-client"),
    ),
    "clients": (
        *("fraction-train", "fraction-evaluate", "local-test-fraction", "local-steps"),
        *("local-epochs", "batch-size", "learning-rate", "learning-rate-decay"),
        *("scheduler", "local-scheduler", "weight-decay"),
        *("learning-rate-exponent", "learning-rate-offset", "augmentation"),
        *("local-optimizer", "hyper-learning-rate", "hyper-height", "hyper-between-rounds"),
        "max-grad-norm",
    ),
    "server": (
        *("server-learning-rate", "server-step-size", "epsilon", "epsilon-decay"),
        *("epsilon-per-client", "smoothing"),
        *("extrapolation-factor", "max-step-size", "relaxation", "robust", "clip"),
        *("clip-quantile", "drop-beyond", "privacy", "private-layers"),
        *("buffers", "average", "weighted", "min-replies", "max-failed-rounds"),
    ),
    "engine": (
        *("engine", "num-workers", "num-gpus", "ray-address", "vectorize", "device", "timeout"),
    ),
    "faults": ("faults", "client-profiles"),
    "devices": ("min-nodes", "sample", "enough", "deadline"),
    "output": ("out", "name", "checkpoint-every", "log", "worker-log"),
}
"""Every key of ``Config``, by the heading it has in the help."""

OF_A_PARTITION = (*GROUPS["data"], "server-step-size", "seed", "out")
"""Keys that splitting a dataset reads."""

_METAVARS = {
    **dict.fromkeys(("strategy", "metrics", "log", "seeds", "tuning-seeds", "drop"), "LIST"),
    **dict.fromkeys(("faults", "client-profiles"), "LIST"),
    **dict.fromkeys(("data-dir", "out"), "FOLDER"),
    **dict.fromkeys(("learning-rate", "hyper-learning-rate", "server-learning-rate"), "RATE"),
    **dict.fromkeys(
        ("target-accuracy", "test-fraction", "fraction-train", "fraction-evaluate"), "SHARE"
    ),
    **dict.fromkeys(("local-test-fraction", "clip-quantile"), "SHARE"),
    **{"initial-model": "FILE", "data": "FILES", "target": "COLUMN", "timeout": "SECONDS"},
    "deadline": "SECONDS",
    **{
        "client-from": "file|folder|column:NAME",
        "average": "last-K|ema-B",
        "ray-address": "ADDRESS",
    },
    **{"sweep": "KEY=LIST", "select": "SCORE"},
}
_CHOSEN = {  # key to the kind of `fedexp list` that its names are
    "strategy": "strategies",
    "dataset": "datasets",
    "model": "models",
    "partitioner": "partitioners",
    "local-optimizer": "optimizers",
    **dict.fromkeys(("scheduler", "local-scheduler"), "schedulers"),
}


def _names(kind: str) -> list[str]:
    from fedexp import listing  # which imports PyTorch

    return listing.names(kind)


def add_simulate_flags(parser: Parser) -> None:
    """The flags of a run."""
    parser.add_argument("--resume", action=Once, metavar="FOLDER", help="as `fedexp resume FOLDER`")
    parser.add_argument(
        "--overwrite", action=Once, nargs=0, const=True, help="replace the run in --out"
    )
    _add_config(parser)
    for title, keys in GROUPS.items():
        if title == "faults":
            text = "of a round, in simulated seconds; a later reply does not count; 0: none"
            add_flags(parser, title, (*keys, "deadline"), deadline=text)
        elif title != "devices":
            add_flags(parser, title, keys)


_NOT_ON_DEVICES = {"seeds", "sweep", "select", "tuning-seeds", "worker-log", "log"}


def add_run_flags(parser: Parser, defaults: Mapping[str, Any]) -> None:
    """The flags of a run on devices: one strategy, one seed, and no engine."""
    parser.add_argument(
        "--resume", action=Once, nargs=0, const=True, help="go on with the run in --out"
    )
    parser.add_argument(
        "--overwrite", action=Once, nargs=0, const=True, help="replace the run in --out"
    )
    _add_config(parser)
    for title, keys in GROUPS.items():
        if title not in ("engine", "faults"):
            own = [key for key in keys if key not in _NOT_ON_DEVICES]
            own += ["timeout"] if title == "devices" else []
            text = "seconds to wait for --min-nodes, and in a round without --deadline"
            add_flags(parser, title, own, defaults, timeout=text)


def add_partition_flags(parser: Parser) -> None:
    """The flags of a partition: those of the data, the seed and the folder."""
    _add_config(parser)
    add_flags(parser, "data", OF_A_PARTITION, out="folder of the picture; this one if empty")


def _add_config(parser: Parser) -> None:
    parser.add_argument("--config", action=Once, metavar="FILE", help="TOML file with these keys")


def add_flags(
    parser: Parser,
    title: str,
    keys: Sequence[str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    **lines: str,
) -> None:
    """One flag per configuration key, under a heading.

    Args:
        parser: gets them.
        title: the heading.
        keys: of ``Config``.
        defaults: where they are not those of ``Config``; see ``config_of``.
        **lines: other words for some.
    """
    group, fields = parser.add_argument_group(title), Config.keys()
    for key in keys:
        field = fields[key]
        value = defaults.get(key, field.default)
        default = "" if value == "" else f" (default: {_shown(value)})"
        text = f"{lines.get(key, field.description)}{default}".replace("%", "%%")
        names = [f"--{key}", *(f"--{name}" for name in [SHORT.get(key)] if name)]
        own: dict[str, Any] = {"action": Once, "metavar": _metavar(key, field.annotation)}
        if kind := _CHOSEN.get(key):
            own |= {"action": Named, "names": partial(_names, kind)}
        if key == "sweep":
            own["action"] = Joined
        if field.annotation is bool:
            names.append(f"--no-{key}")
            own |= {"action": Switch, "nargs": "?", "const": True}
        group.add_argument(*names, dest=key, help=text, **own)


def _metavar(key: str, kind: Any) -> str:
    if key in _METAVARS:
        return _METAVARS[key]
    if choices := [str(x) for x in get_args(kind) if x]:
        return "|".join(choices)
    return {bool: "true|false", int: "N", float: "X"}.get(kind, "NAME")


def _shown(default: Any) -> str:
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return text.replace(",", ", ")  # so that a line can end there


def config_of(
    values: dict[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Config, set[str]]:
    """Defaults, overridden by the file, overridden by the flags; and the keys of those.

    A default of ``robust`` gives way to privacy.
    """
    given = {key: value for key, value in values.items() if value is not None}
    path = given.pop("config", None)
    told = {**(Config.read(path) if path else {}), **given}
    robust = {"robust": robust_by_default(told)} if defaults.get("robust") else {}
    return Config.of({**defaults, **robust, **told}), set(given)
