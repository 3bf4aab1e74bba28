"""What `FedOpt` takes: each argument by itself, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from fedexp.strategies.extensions import Extension, check_extensions
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.private_layers import PrivateLayers
from fedexp.strategies.robustness import Clip, DropBeyond
from fedexp.strategies.waiting import Waiting


def check_kinds(
    optimizer: Any, waiting: Any, clip: Any, robust: Any, trainable: Any, buffers: Any
) -> None:
    """Raise ``ValueError`` for an argument that is not of its kind."""
    _check("optimizer", optimizer, ServerOptimizer | None, "ServerOptimizer(step_size=...)")
    _check("waiting", waiting, Waiting | None, "Waiting(deadline=60)")
    _check("clip", clip, Clip | None, "FixedClip(1.0)")
    _check("robust", robust, bool | MedianBounds, "True")
    if buffers not in ("average", "keep"):
        raise ValueError(f"FedOpt(buffers={buffers!r}): unknown. Use 'average' or 'keep'.")
    if isinstance(trainable, str):  # which is an iterable of names as well, of one letter each
        raise ValueError(f"FedOpt(trainable={trainable!r}): must be a list. Give [{trainable!r}].")
    _check("trainable", trainable, Iterable | None, "['head.weight']")


def check_replies(min_replies: int, waiting: Waiting, *, is_secret: bool) -> None:
    """Raise ``ValueError`` if a round cannot end as it is to.

    Args:
        min_replies: with fewer replies a step is undone.
        waiting: when a round ends.
        is_secret: whether privacy hides who takes part, and so how many do.
    """
    _check("min_replies", min_replies, Real, "2")
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


def _check(name: str, value: Any, kinds: Any, example: str) -> None:
    if not isinstance(value, kinds):
        raise ValueError(f"FedOpt({name}={value!r}): cannot be that. Use {name}={example}.")
