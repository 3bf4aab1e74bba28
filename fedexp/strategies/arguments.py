"""What `FedOpt` takes: each argument by itself, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from fedexp.strategies.extensions import Extension, check_extensions
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.private_layers import PrivateLayers
from fedexp.strategies.robustness import Clip, DropBeyond
from fedexp.strategies.waiting import Waiting

_SENT = (int, float, str, bytes, list)  # what Flower's config records hold
_KINDS: dict[str, tuple[Any, str]] = {
    "optimizer": (ServerOptimizer | None, "ServerOptimizer(step_size=...)"),
    "weighted": (bool | np.bool_, "False"),
    "trainable": (Iterable | None, "['head.weight']"),
    "seed": (Integral | None, "0"),
    "max_step_size": (Real | None, "1.5"),
    "relaxation": (Real, "0.5"),
    "clip": (Clip | None, "FixedClip(1.0)"),
    "drop_beyond": (Real | None, "5.0"),
    "robust": (bool | MedianBounds, "True"),
    "client_config": (Mapping | None, "{'proximal-mu': 0.1}"),
    "control_variates": (bool | np.bool_, "True"),
    "min_replies": (Integral, "2"),
    "waiting": (Waiting | None, "Waiting(deadline=60)"),
}


def check_kinds(**given: Any) -> None:
    """Raise ``ValueError`` for an argument of `FedOpt` that is not of its kind."""
    _check(given, _KINDS)
    trainable, seed, config = given["trainable"], given["seed"], given["client_config"]
    if given["buffers"] not in ("average", "keep"):
        raise ValueError(f"FedOpt(buffers={given['buffers']!r}): unknown. Use 'average' or 'keep'.")
    if isinstance(trainable, str):  # which is an iterable of names as well, of one letter each
        raise ValueError(f"FedOpt(trainable={trainable!r}): must be a list. Give [{trainable!r}].")
    if seed is not None and seed < 0:
        raise ValueError(f"FedOpt(seed={seed}): must be at least 0.")
    for key, value in (config or {}).items():
        if not (isinstance(key, str) and isinstance(value, _SENT)):
            raise ValueError(
                f"FedOpt(client_config={{{key!r}: {value!r}}}): cannot be sent. "
                "A key is text; a value is a number, text or bytes, or a list of these."
            )


_FLOWERS: dict[str, tuple[Any, str]] = {
    "fraction_train": (Real, "0.5"),
    "fraction_evaluate": (Real, "0.5"),
    "min_train_nodes": (Integral, "2"),
    "min_evaluate_nodes": (Integral, "2"),
    "min_available_nodes": (Integral, "2"),
    "weighted_by_key": (str, "'num-examples'"),
    "arrayrecord_key": (str, "'arrays'"),
    "configrecord_key": (str, "'config'"),
    "train_metrics_aggr_fn": (Callable | None, "None"),
    "evaluate_metrics_aggr_fn": (Callable | None, "None"),
}


def check_flowers(strategy: Any) -> None:
    """Raise ``ValueError`` for an argument of Flower's ``FedAvg`` that cannot be meant."""
    given = {name: getattr(strategy, name) for name in _FLOWERS}
    _check(given, _FLOWERS)
    for name, value in given.items():
        if name.startswith("fraction") and not 0 <= value <= 1:
            raise ValueError(f"FedOpt({name}={value!r}): must lie between 0 and 1.")
        if name.startswith("min") and value < 0:
            raise ValueError(f"FedOpt({name}={value!r}): must be at least 0.")


def check_replies(min_replies: int, waiting: Waiting, *, is_secret: bool) -> None:
    """Raise ``ValueError`` if a round cannot end as it is to.

    Args:
        min_replies: with fewer replies a step is undone.
        waiting: when a round ends.
        is_secret: whether privacy hides who takes part, and so how many do.
    """
    if not min_replies >= 1:
        raise ValueError(f"FedOpt(min_replies={min_replies!r}): must be at least 1.")
    if min_replies > waiting.enough:
        raise ValueError(
            f"FedOpt(min_replies={min_replies}): a round ends with "
            f"enough={waiting.enough:g} of them. Wait for more."
        )
    if is_secret and min_replies > 1:
        raise ValueError(
            f"FedOpt(min_replies={min_replies}): under privacy the number of replies is a "
            "secret, which an undone round would tell. Use 1."
        )
    if is_secret and min(waiting.enough, waiting.sample) < math.inf:
        raise ValueError(
            f"FedOpt(waiting={waiting}): under privacy every client is asked with the "
            "same probability, and no reply makes another superfluous. Use a deadline alone."
        )


def extensions_of(
    clip: Clip | None,
    robust: bool | MedianBounds,
    drop_beyond: float | None,
    private_layers: str,
    extensions: Iterable[Extension],
) -> list[Extension]:
    """The extensions that the arguments stand for, then those that are given as such."""
    bounds = MedianBounds() if robust is True else robust or None
    dropping = None if drop_beyond is None else DropBeyond(drop_beyond)
    layers = PrivateLayers(private_layers) if private_layers else None
    own = check_extensions(extensions)
    return [*filter(None, (clip, bounds, dropping, layers)), *own]


def _check(given: Mapping[str, Any], table: Mapping[str, tuple[Any, str]]) -> None:
    for name, (kinds, example) in table.items():
        value = given[name]
        if not isinstance(value, kinds):
            raise ValueError(f"FedOpt({name}={value!r}): cannot be that. Use {name}={example}.")
