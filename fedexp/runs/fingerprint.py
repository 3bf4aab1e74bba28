"""What a checkpoint is of: configuration, data and code. Nothing else may go on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from logging import WARNING
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from flwr.common.logger import log

from fedexp.config import Config
from fedexp.datasets import Dataset
from fedexp.runs.federation import Federation

Fingerprint = Mapping[str, Any]
"""``config``, ``digests``, ``objects`` and ``code``, each by name, as JSON has it."""

MAY_CHANGE = frozenset(
    {
        *("engine", "num-workers", "ray-address", "worker-log"),  # no engine changes a bit
        *("out", "name", "log", "checkpoint-every", "max-minutes"),
        *("data", "data-dir", "initial-model"),  # files may move: their digests count
    }
)
"""Keys that a resumed run may have otherwise; it may also have more rounds."""

_ROUNDS = "num-server-rounds"
_CODE = ("fedexp", "flwr", "torch", "numpy")
_REMEDY = "Set it back, or start a new run."
_known: WeakKeyDictionary[Dataset, str] = WeakKeyDictionary()


def fingerprint_of(config: Config, federation: Federation) -> Fingerprint:
    """Of a run of one strategy.

    Args:
        config: of this run alone.
        federation: its clients and their data.
    """
    split = federation.resolved()
    decided = {"partitioner": split.partitioner, "num-clients": split.num_clients}
    return {
        "config": without_paths({**config.values(), **decided}),
        "digests": digests(config, federation),
        "objects": federation.own.names(),
        "code": {name: version_of(name) for name in _CODE},
    }


def without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration values that a resumed run must have again."""
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    is_file = str(kept.get("dataset", "")).endswith(".npz")
    return kept | ({"dataset": ".npz"} if is_file else {})


def check_same(began: Fingerprint, now: Fingerprint, owner: Path) -> None:
    """Find out whether a run may go on from a checkpoint.

    Args:
        began: of the checkpoint; an empty one says nothing.
        now: of the run.
        owner: the checkpoint's file, for the message.

    Raises:
        ValueError: the configuration or the data have changed.
    """
    if not began:
        return
    # A key that a newer version has added had its default before.
    before = {key: field.default for key, field in Config.keys().items() if key in now["config"]}
    for kind, word in (("config", ""), ("objects", "object ")):
        then, own = (before if kind == "config" else {}) | began[kind], now[kind]
        for key in [*own, *(then.keys() - own.keys())]:
            if not _may_follow(key, then.get(key), own.get(key)):
                raise ValueError(
                    f"{owner}: {word}{key} was {then.get(key)!r} when it was written, now it is "
                    f"{own.get(key)!r}. {_REMEDY}"
                )
    then, own = began["digests"], now["digests"]
    if changed := [name for name in then if own.get(name, then[name]) != then[name]]:
        raise ValueError(
            f"{owner}: the {changed[0].replace('-', ' ')} has changed since it was written. "
            "Put the old files back, or start a new run."
        )


def warn_of_code(began: Fingerprint, now: Fingerprint, owner: Path) -> None:
    """Say so if other versions wrote a checkpoint: what follows may differ in its last bits."""
    then, own = began.get("code", {}), now.get("code", {})
    changed = [f"{name} {then[name]}" for name in then if then[name] != own.get(name)]
    if changed:
        log(
            WARNING,
            "%s: was written with %s. The run goes on with what is installed now, and may differ "
            "from one that was not interrupted.",
            owner,
            ", ".join(changed),
        )


def digests(config: Config, federation: Federation) -> dict[str, str]:
    """Digests of what a run reads: the ``data``, and the ``initial-model`` where there is one."""
    found = {"data": data_hash(federation.dataset)} if federation.has_data else {}
    if config.initial_model:
        content = Path(config.initial_model).read_bytes()
        found["initial-model"] = hashlib.blake2b(content, digest_size=16).hexdigest()
    return found


def data_hash(dataset: Dataset) -> str:
    """A digest of all examples: the same data has the same, on every machine."""
    if dataset not in _known:  # a study asks for every unit
        digest = hashlib.blake2b(digest_size=16)
        for x in (*dataset.train, *dataset.test):
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
            digest.update(np.ascontiguousarray(x.numpy()).view(np.uint8).data)
        _known[dataset] = digest.hexdigest()
    return _known[dataset]


@cache  # a study asks for every unit
def version_of(package: str) -> str | None:
    """Of an installed package; None without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _may_follow(key: str, then: Any, now: Any) -> bool:
    if key == _ROUNDS and then is not None:
        return bool(now >= then)
    return bool(then == now)
