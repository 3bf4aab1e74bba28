"""The clients' learning rate over the rounds, as a scheduler of ``torch.optim`` gives it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from inspect import Parameter
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from fedexp import keys
from fedexp.clients.arguments import (
    did_you_mean,
    example_of,
    kebab,
    matched,
    of_kinds,
    one_line,
    parameters_of,
    takes_any,
)
from fedexp.extras import imported
from fedexp.specs import Spec

_NEED_FUNCTIONS = {"ChainedScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR"}
SCHEDULERS: dict[str, type[lr_scheduler.LRScheduler]] = {
    "cosine": lr_scheduler.CosineAnnealingLR,
    "warmrestarts": lr_scheduler.CosineAnnealingWarmRestarts,
} | {
    name.lower().removesuffix("lr"): x
    for name, x in sorted(vars(lr_scheduler).items())
    if isinstance(x, type) and issubclass(x, lr_scheduler.LRScheduler)
    if name.lstrip("_") != "LRScheduler" and name not in _NEED_FUNCTIONS
}
"""The schedulers of ``torch.optim`` that text can name, lower-case, without ``lr`` and hyphens."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The learning rate of every round: that of a scheduler which steps between the rounds.

    Round 1 trains at the scheduler's first rate, round ``t`` at what ``t - 1`` of its steps make
    of it. The same round always has the same rate.

    Attributes:
        make: ``optimizer -> scheduler``.
        learning_rate: of the optimizer before the scheduler gets it.
        owner: what named the scheduler, for messages.

    Example:
        >>> from functools import partial
        >>> from torch.optim import lr_scheduler
        >>> from fedexp.clients import Schedule
        >>> halved = Schedule(partial(lr_scheduler.ExponentialLR, gamma=0.5), 0.4, "halved")
        >>> [halved(t) for t in (1, 2, 3)]
        [0.4, 0.2, 0.1]
    """

    make: Callable[[torch.optim.Optimizer], Any]
    learning_rate: float
    owner: str
    _rates: list[float] = field(default_factory=list, repr=False)

    def __call__(self, server_round: int) -> float:
        """``η_l`` of a round, from 1.

        Raises:
            ValueError: the scheduler fails, or gives no finite number from 0 up.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is trained here is as it should be
            while len(self._rates) < server_round:
                self._rates.append(self._next())
        return self._rates[server_round - 1]

    def settings(self, server_round: int) -> dict[str, float]:
        """What the clients are told in a round: the ``train_config`` of ``rounds``."""
        return {keys.LEARNING_RATE: self(server_round)}

    def _next(self) -> float:
        what = f"in round {len(self._rates) + 1}"
        try:
            optimizer, scheduler = self._stepped
            if self._rates:
                optimizer.step()
                scheduler.step()
            rate = float(optimizer.param_groups[0]["lr"])
        except Exception as error:  # of any kind: it may be the user's code
            line = f"{what}: {one_line(error)}. Choose other settings."
            raise ValueError(f"{self.owner}: fails {line}") from error
        if not 0 <= rate < math.inf:
            raise ValueError(f"{self.owner}: gives {rate} {what}, must be at least 0 and finite.")
        return rate

    @cached_property
    def _stepped(self) -> tuple[torch.optim.Optimizer, Any]:
        # With momentum, which some schedulers cycle too; nobody reads it.
        start = [nn.Parameter(torch.zeros(()))]
        optimizer = torch.optim.SGD(start, lr=self.learning_rate, momentum=0.9)
        scheduler = self.make(optimizer)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau waits for a loss that no round has when it begins")
        return optimizer, scheduler


def schedule(choice: Any, num_rounds: int, learning_rate: float) -> Schedule:
    """The learning rate of rounds 1, 2, ..., all of which up to ``num_rounds`` are tried out.

    Args:
        choice: ``cosine``, ``step(step-size=10, gamma=0.1)`` or another scheduler of
            ``torch.optim.lr_scheduler`` by its own name, ``module:function`` from optimizer to
            scheduler; or in Python a class, a ``functools.partial`` of one, or such a function.
        num_rounds: what ``T_max``, ``total_iters`` and ``total_steps`` are, unless given.
        learning_rate: what a scheduler begins with, and the ``max_lr`` of those that have one.

    Raises:
        ValueError: an unknown name or setting, one that is missing, or a rate that cannot be.

    Example:
        >>> from fedexp.clients import schedule
        >>> schedule("step(step-size=2, gamma=0.1)", num_rounds=4, learning_rate=1.0).settings(3)
        {'learning-rate': 0.1}
    """
    if isinstance(choice, str):
        owner, spec = f"Config(scheduler={choice!r})", Spec.of(choice)
        function, settings = _named(owner, spec.name), spec.settings
    else:
        function, settings = choice, {}
        if isinstance(choice, partial) and not choice.args:
            function, settings = choice.func, choice.keywords
        name = getattr(function, "__name__", type(function).__name__)
        owner = f"scheduler={name}"
    if function is lr_scheduler.ReduceLROnPlateau:
        raise ValueError(
            f"{owner}: waits for a loss that no round has when it begins. Use cosine, or "
            "step(step-size=10)."
        )
    if not callable(function):
        raise ValueError(f"{owner}: must be text, a class or a function of an optimizer.")
    settings = _complete(owner, function, settings, num_rounds, learning_rate)
    found = Schedule(partial(function, **settings), learning_rate, owner)
    found(num_rounds)
    return found


@lru_cache(maxsize=256)
def step_rates(choice: str, num_steps: int, learning_rate: float) -> tuple[float, ...]:
    """The learning rate of every local step of a round, by a scheduler that steps after each.

    Args:
        choice: as for ``schedule``, in text.
        num_steps: what is the number of rounds there.
        learning_rate: of the round.

    Raises:
        ValueError: as of ``schedule``.

    Example:
        >>> from fedexp.clients.schedules import step_rates
        >>> step_rates("exponential(gamma=0.5)", 3, 0.4)
        (0.4, 0.2, 0.1)
    """
    try:
        found = schedule(choice, num_steps, learning_rate)
    except ValueError as error:
        line = str(error).replace("Config(scheduler=", "Config(local-scheduler=", 1)
        raise ValueError(line.replace("in round", "in step")) from error
    return tuple(found(step) for step in range(1, num_steps + 1))


def _named(owner: str, name: str) -> Callable[..., Any]:
    if ":" in name:
        return imported(owner, name)  # type: ignore[no-any-return]
    short = name.removeprefix("torch.optim.lr_scheduler.").replace("-", "").replace("_", "").lower()
    short = short.removesuffix("lr")
    if short in SCHEDULERS:
        return SCHEDULERS[short]
    raise ValueError(
        f"{owner}: unknown.{did_you_mean(short, SCHEDULERS)} Known: {', '.join(SCHEDULERS)}, and "
        "`module:function` of your own."
    )


def _complete(
    owner: str,
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    num_rounds: int,
    learning_rate: float,
) -> dict[str, Any]:
    """``settings`` under the names of the arguments, and what a class wants besides."""
    parameters = parameters_of(function)
    varying = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
    known = {p.name: p for p in [*parameters.values()][1:] if p.kind not in varying}
    known.pop("last_epoch", None)  # the rounds are counted here
    any_name = [x for x in settings if x not in known] if takes_any(parameters) else []
    found = matched(owner, settings, [*known, *any_name])
    examples = {name: example_of(p) for name, p in known.items()}
    defaults = {name: p.default for name, p in known.items()}
    found = of_kinds(owner, found, examples, defaults)
    if isinstance(function, type):
        lengths = () if "epochs" in found else ("T_max", "total_iters", "total_steps")
        wanted = {**dict.fromkeys(lengths, num_rounds), "max_lr": learning_rate}
        found = {name: x for name, x in wanted.items() if name in known} | found
    missing = [name for name, p in known.items() if p.default is p.empty and name not in found]
    if missing:
        values = ", ".join(f"{kebab(name)}=..." for name in missing)
        short = [name for name, scheduler in SCHEDULERS.items() if scheduler is function]
        name = short[0] if short else getattr(function, "__name__", "function")
        raise ValueError(
            f"{owner}: needs {', '.join(map(kebab, missing))}. Set it, as in {name}({values})."
        )
    return found
