"""The server step: a direction times a step size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedexp.arrays import Arrays, cast_like
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import SHIFT, Direction, Identity, Momentum, State
from fedexp.strategies.step_sizes import (
    ITERATE,
    MODEL,
    Capped,
    Constant,
    Relaxed,
    StepSize,
    after_step,
    check_direction,
    innermost,
)


@dataclass(frozen=True)
class ServerOptimizer:
    """A server step: ``w ← w - η d`` for trainable arrays, the clients' mean for all others.

    Attributes:
        direction: the rule that gives ``d``.
        step_size: the rule that gives ``η``.

    Raises:
        ValueError: the step size cannot be used with the direction.

    Example:
        Two clients send ``Δ₁ = (3, 1)`` and ``Δ₂ = (-1, 1)``, so ``Δ̄ = (1, 1)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Extrapolation, ServerOptimizer
        >>> update = {"w": np.array([2.0, 2.0])}
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> rule = ServerOptimizer(step_size=Extrapolation(epsilon=0.0))
        >>> params, state, eta = rule.step({"w": np.array([1.0, 0.0])}, stats, {})
        >>> eta, params["w"].tolist()
        (1.5, [-0.5, -1.5])
    """

    direction: Direction = field(default_factory=Identity)
    step_size: StepSize = field(default_factory=Constant)

    def __post_init__(self) -> None:
        for name, rule in (("direction", self.direction), ("step_size", self.step_size)):
            if not callable(rule) or isinstance(rule, type):
                what = rule.__name__ if isinstance(rule, type) else repr(rule)
                raise ValueError(
                    f"ServerOptimizer({name}={what}): must be a rule, a function or an object that "
                    "is called like one. Use Identity(), Constant(1.0) or one of your own."
                )
        check_direction(self.step_size, self.direction)
        own: Any = getattr(self.direction, "check", None)
        if own is not None:
            own(self.step_size)

    @property
    def averages(self) -> bool:
        """Whether the step is ``w ← w - η Δ̄`` with a constant ``η ≤ 1``.

        No update then counts more than in FedAvg, as differential privacy assumes.
        """
        step = self.step_size
        return self.direction == Identity() and isinstance(step, Constant) and step.value <= 1

    @property
    def is_mean(self) -> bool:
        """Whether the new model is the clients' mean, whatever the model was before."""
        still = self.direction in (Identity(), Momentum(0.0), Momentum(0.0, nesterov=True))
        return still and self.step_size == Constant(1.0)

    @property
    def needs_all_clients(self) -> bool:
        """Whether a rule compares rounds, which must then be of the same clients."""
        rules = self.direction, innermost(self.step_size)
        return any(getattr(rule, "needs_all_clients", False) for rule in rules)

    def step(
        self, params: Arrays, stats: PseudoGradientStats, state: State
    ) -> tuple[Arrays, State, float]:
        """Take one step: new parameters in the dtypes of ``params``, new state, and ``η``.

        Args:
            params: ``w``, what was broadcast. It is not changed; arrays that neither sum of
                ``stats`` holds are returned as they are.
            stats: the sums of the round, over at least one client.
            state: what the last call returned, ``{}`` in round 1.

        Raises:
            ValueError: a rule wants to remember something else than arrays and numbers.
        """
        buffers = {name: cast_like(b, params[name]) for name, b in stats.mean_buffers.items()}
        # The rules see w, of which they keep what they need. It is no part of a checkpoint, and a
        # rule need not hand it on.
        iterate = {name: params[name] for name in stats.update}
        seen: State = {ITERATE: iterate, MODEL: {**params, **buffers}}
        direction, state = self.direction(stats.mean_update, state | seen)
        seen = seen | {SHIFT: state.get(SHIFT, {})}
        eta, state = self.step_size(stats, direction, state | seen)
        kept = {owner: _arrays(owner, x) for owner, x in state.items() if owner not in seen}
        return after_step(direction, eta, seen), kept, eta


def _arrays(owner: str, entry: Any) -> Arrays:
    """What a rule remembers, where numbers become arrays; the entry itself if there are none."""
    if isinstance(entry, dict) and all([isinstance(x, np.ndarray) for x in entry.values()]):
        return entry
    found = {k: np.asarray(x) for k, x in entry.items()} if isinstance(entry, Mapping) else None
    if found is None or any(x.dtype.kind not in "biuf" for x in found.values()):
        raise ValueError(
            f"state[{owner!r}]={repr(entry)[:80]}: a server rule can remember a dict of arrays and "
            "numbers only, since a checkpoint holds nothing else."
        )
    return found


def limited(
    optimizer: ServerOptimizer, relaxation: float = 1.0, max_step_size: float | None = None
) -> ServerOptimizer:
    """``optimizer`` with its step times ``relaxation``, then at most ``max_step_size``."""
    step = optimizer.step_size
    if relaxation != 1:
        step = Relaxed(step, relaxation)
    if max_step_size is not None:
        step = Capped(step, max_step_size)
    return replace(optimizer, step_size=step)
