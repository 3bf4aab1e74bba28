"""The local optimizers by name: what the command line, the clients and the documents read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedexp.clients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.clients.delta_sgd import DeltaSGD
from fedexp.clients.descent import Descent
from fedexp.clients.functional_optimizers import (
    Functional,
    FunctionalDeltaSGD,
    FunctionalScheduledSGD,
    FunctionalSGD,
    FunctionalTower,
)
from fedexp.clients.hypergradient import Hypergradient
from fedexp.clients.scheduled_sgd import ScheduledSGD
from fedexp.clients.training import LocalTraining, Optimizer
from fedexp.clients.update_rules import SGD, Rule

OptimizerFn = Callable[[Iterable[nn.Parameter], LocalTraining], Optimizer]


@dataclass(frozen=True)
class LocalOptimizer:
    """A local optimizer, for one client and for many at once.

    Attributes:
        line: what it does, in a line.
        make: ``(parameters, settings) -> torch optimizer``.
        functional: ``settings ->`` the same steps as pure functions; None if there are none.
        tunes: whether it moves the learning rate, so that this is worth keeping.
        borrows: whether it leaves the memory that parameters start in as it is.
    """

    line: str
    make: OptimizerFn
    functional: Functional | None = None
    tunes: bool = True
    borrows: bool = False

    def __call__(self, params: Iterable[nn.Parameter], settings: LocalTraining) -> Optimizer:
        """The optimizer of one client in one round."""
        return self.make(params, settings)


def _hyper(line: str, rule: type[Rule], **fixed: Any) -> LocalOptimizer:
    def tower(settings: LocalTraining) -> Rule:
        return tower_of(rule, settings, **fixed)

    return LocalOptimizer(
        f"{line}, its learning rate tuned by hypergradients",
        lambda params, settings: Hypergradient(params, tower(settings)),
        lambda settings: FunctionalTower(tower(settings)),
    )


def tower_of(rule: type[Rule], settings: LocalTraining, **fixed: Any) -> Rule:
    """The tower of a client: ``hyper_height`` levels of SGD at ``hyper_lr`` over ``rule``.

    A learning rate moves by ``log η ← log η - κ cos(g, ∂w/∂η)`` (Baydin et al. 2018,
    arXiv:1703.04782, multiplicative): a factor of at most ``e^κ`` a step, whatever the scale of
    the loss and however wrong the first rate.
    """
    shape: dict[str, Any] = {"lr_form": "log", "normalised": True}
    hyper: Rule | None = None
    for _ in range(settings.hyper_height):
        hyper = SGD(settings.hyper_lr, hyper=hyper, **shape)
    decay: dict[str, Any] = {"weight_decay": settings.weight_decay}
    return rule(hyper=hyper, **{"lr": settings.lr, **decay, **shape, **fixed})


def _undecayed(name: str, settings: LocalTraining) -> float:
    if settings.weight_decay:
        raise ValueError(
            f"LocalTraining(weight_decay={settings.weight_decay}): {name} has none. Use 0.0."
        )
    return settings.lr


sgd = LocalOptimizer(
    "plain SGD, one fixed learning rate",
    lambda params, s: Descent(params, s.lr, s.weight_decay),
    FunctionalSGD,
    tunes=False,
    borrows=True,
)
"""Plain SGD: ``w ← w - η_l (g + weight_decay · w)``."""

LOCAL_OPTIMIZERS: dict[str, LocalOptimizer] = {
    "sgd": sgd,
    "hypersgd": _hyper("SGD", SGD),
    "hyperadam": _hyper("Adam", Adam),
    "hyperadamw": _hyper("AdamW", Adam, decoupled=True),
    "hyperrmsprop": _hyper("RMSprop", RMSprop),
    "hyperadagrad": _hyper("Adagrad", Adagrad),
    "delta-sgd": LocalOptimizer(
        "SGD, its step from the smoothness met on the way (Kim et al. 2024)",
        lambda params, s: DeltaSGD(params, _undecayed("delta-sgd", s)),
        lambda s: FunctionalDeltaSGD(),
    ),
    "fedhyper": LocalOptimizer(
        "SGD, its step from the agreement of successive gradients (Wang, Wang & Li 2024)",
        lambda params, s: ScheduledSGD(params, _undecayed("fedhyper", s)),
        lambda s: FunctionalScheduledSGD(),
    ),
}
"""``--local-optimizer`` to what it means."""


def named(name: str) -> LocalOptimizer:
    """The local optimizer of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in LOCAL_OPTIMIZERS:
        raise ValueError(
            f"Config(local-optimizer={name!r}): unknown. Known: {', '.join(LOCAL_OPTIMIZERS)}."
        )
    return LOCAL_OPTIMIZERS[name]


def learning_rate(optimizer: Optimizer, settings: LocalTraining) -> float:
    """``η_l`` now, the mean over parameter groups."""
    rates = [float(group.get("lr", settings.lr)) for group in optimizer.param_groups]
    return sum(rates) / len(rates)


def markdown() -> str:
    """The table as Markdown."""
    rows = [f"| `{key}` | {entry.line} |\n" for key, entry in LOCAL_OPTIMIZERS.items()]
    return "| `--local-optimizer` | what |\n|---|---|\n" + "".join(rows)
