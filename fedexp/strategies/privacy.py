"""What a server step may be under noise that someone else adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fedexp.arrays import Arrays, same
from fedexp.strategies.optimizer import ServerOptimizer

_Model = TypeVar("_Model")


def check_untouched(
    optimizer: ServerOptimizer,
    released: _Model | None,
    given: _Model,
    arrays_of: Callable[[_Model], Arrays],
    *,
    robust: bool = False,
) -> None:
    """Raise unless the model that comes back is the one that the server step returned.

    Flower's differential-privacy wrappers hand the strategy clipped updates and add noise to
    what it returns, as much as a plain mean of them needs. A longer step, or one that remembers
    earlier rounds, needs more. A strategy does not know that it is wrapped; but it sees the noise
    in the model that it is asked to send out next, before any node does.

    Args:
        optimizer: the server step; a mean with a step of at most 1 may be noised.
        released: what the strategy returned last, None before round 1.
        given: what it is asked to send out.
        arrays_of: decodes either.
        robust: updates are bounded by what other clients sent, which needs more noise as well.

    Raises:
        ValueError: they differ.
    """
    if released is None or released is given or (optimizer.averages and not robust):
        return
    if not same(arrays_of(released), arrays_of(given)):
        raise ValueError(
            f"ServerOptimizer(direction={optimizer.direction}, step_size={optimizer.step_size}): "
            "the model was changed after the server step, as Flower's differential-privacy "
            "wrappers do. Their noise fits a plain mean; after this step it is too small for the "
            "privacy they state. Wrap FedAvg with a server_learning_rate of at most 1 and without "
            "robust."
        )
