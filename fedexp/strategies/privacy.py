"""What a server step may be where somebody else hides the clients' updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import numpy as np

from fedexp.arrays import Arrays, same
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.extensions import Extensions
from fedexp.strategies.line_search import LineSearch
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.step_sizes import ITERATE, StepSize, innermost

_Model = TypeVar("_Model")


def check_untouched(
    optimizer: ServerOptimizer,
    extensions: Extensions,
    released: _Model | None,
    given: _Model,
    arrays_of: Callable[[_Model], Arrays],
) -> None:
    """Raise unless the model that comes back is the one that the server step returned.

    Flower's differential-privacy wrappers hand the strategy clipped updates and add noise to
    what it returns, as much as a plain mean of them needs. A longer step, one that remembers
    earlier rounds, or bounds that depend on what other clients sent need more. A strategy does not
    know that it is wrapped; but it sees the noise in the model that it is asked to send out next,
    before any node does. A subclass that changes the result of our step looks the same.

    Args:
        optimizer: the server step; noise may be added to a mean with a step of at most 1.
        extensions: of the strategy; noise may be added if they keep that mean.
        released: what our server step returned last, None if it has not been called.
        given: what the strategy is asked to send out.
        arrays_of: decodes either.

    Raises:
        ValueError: they differ.
    """
    if released is None or released is given or (optimizer.averages and extensions.keeps_mean):
        return
    if not same(arrays_of(released), arrays_of(given)):
        raise ValueError(
            f"ServerOptimizer(direction={optimizer.direction}, step_size={optimizer.step_size}): "
            "the model was changed after the server step, as Flower's differential-privacy "
            "wrappers do. Their noise fits a plain mean; after this step it is too small for the "
            "privacy they state. Wrap FedAvg with a server_learning_rate of at most 1, without "
            "robust and without extensions of your own."
        )


def is_one_for_all(results: Sequence[object]) -> bool:
    """Whether several clients' results are one object.

    Flower's secure aggregation knows the clients' mean alone, and puts it in the place of each.
    """
    return len(results) > 1 and all(result is results[0] for result in results)


def check_mean_is_enough(
    owner: str, step_size: StepSize, extensions: Extensions, *, weighted: bool, has_norms: bool
) -> None:
    """Raise unless a server that knows the clients' mean and nothing else can take the step.

    Args:
        owner: name of the strategy.
        step_size: its rule.
        extensions: of the strategy.
        weighted: clients are weighted by what they report, as in the mean.
        has_norms: the mean of the clients' squared norms is known as well.

    Raises:
        ValueError: it cannot.
    """
    misses_norms = not has_norms and needs_norms(step_size)
    used = [f"{type(step_size).__name__}, its step size,"] if misses_norms else []
    used += [] if weighted else ["weighted=False"]
    used += [str(extension) for extension in extensions if extension.needs_updates]
    if used:
        remedy = "legacy.FedAvg, with a server_learning_rate if you like"
        if misses_norms and len(used) == 1:
            remedy = f"{owner}(secure=True) and its mod for clients, or {remedy}"
        raise ValueError(
            f"{owner}: under secure aggregation every result is the clients' mean, and {used[0]} "
            f"needs the single updates. Use {remedy}."
        )


class _NormAsked(Exception):
    """A rule asked for what only single updates tell."""


class _MeanAlone(PseudoGradientStats):
    @property
    def mean_sq_norm(self) -> NoReturn:
        raise _NormAsked

    mean_norm = mean_sq_norm


def needs_norms(step_size: StepSize) -> bool:
    """Whether a step size asks for the norms of single updates."""
    if isinstance(innermost(step_size), LineSearch):  # which would evaluate a model that is none
        return False
    nothing = {"": np.zeros(1)}
    alone = _MeanAlone(2, 2.0, nothing, sq_norm=math.nan, norm=math.nan, loss=0.0)
    try:
        step_size(alone, nothing, {ITERATE: nothing})
    except _NormAsked:
        return True
    return False
