"""The local optimizers that are written here, alone and in groups, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from inspect import signature
from typing import Any, cast

import torch
from torch import nn

from fedexp.clients.between_rounds import Kept
from fedexp.clients.delta_sgd import DeltaSGD, FunctionalDeltaSGD
from fedexp.clients.fedhyper_sgd import FedHyperSGD, FunctionalFedHyperSGD
from fedexp.clients.loop import Optimizer
from fedexp.clients.muon_adamw import MuonAdamW
from fedexp.clients.optimizers import (
    Functional,
    FunctionalOptimizer,
    FunctionalSGD,
    FunctionalTower,
    PlainSGD,
)
from fedexp.clients.polyak_sgd import FunctionalPolyakSGD, PolyakSGD
from fedexp.clients.private_training import PrivateLineSearch, PrivateSGD, private_settings
from fedexp.clients.settings import KEYS, ClientSettings
from fedexp.clients.step_tuning import StepTuning
from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.optimizer import HypergradientOptimizer
from fedexp.hypergradients.rules import Rule, SGDRule

OptimizerFn = Callable[[Iterable[nn.Parameter], ClientSettings], Optimizer]


@dataclass(frozen=True)
class LocalOptimizer:
    """A local optimizer, for one client and for many at once.

    Attributes:
        line: what it does, in a line.
        make: ``(parameters, settings) -> torch optimizer``.
        functional: ``settings ->`` the same steps as pure functions; None if there are none.
        adapts_lr: whether it changes the learning rate.
        keeps: what a client may keep of it for its next round, see ``between_rounds``.
        needs_loss: whether its steps look at the loss, so that nothing may change its gradient.
        shares_memory: whether it writes nothing to the memory that the parameters start in, so
            that clients may share it.
        own: settings that it alone has, with their defaults; keywords of ``make``, ``functional``
            and ``tuning``.
        known: the settings of the clients, by attribute, that ``make`` reads, where finding out
            would take one of PyTorch's optimizers: the first in a process takes 1.4 s to make.
        given: settings of the clients, by their kebab-case keys, that came with the choice. They
            take the place of others; but a learning rate in a message goes first.
        tuning: makes what tunes the learning rate before the local steps of some rounds; None if
            nothing does.
        private: makes what takes the local steps under differential privacy, in place of the plain
            loop and of the optimizer that ``make`` makes; None if they are not private.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fedexp.clients import LOCAL_OPTIMIZERS, ClientSettings
        >>> w = nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = LOCAL_OPTIMIZERS["sgd"]([w], ClientSettings(lr=0.1))
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer.step()
        >>> w.data
        tensor([0.8000])
    """

    line: str
    make: Callable[..., Optimizer]
    functional: Functional | None = None
    adapts_lr: bool = True
    keeps: Kept = "rate"
    needs_loss: bool = False
    shares_memory: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    given: Mapping[str, int | float] = field(default_factory=dict)
    tuning: Callable[[], StepTuning] | None = None
    private: Callable[[], PrivateSGD] | None = None

    def __call__(self, params: Iterable[nn.Parameter], settings: ClientSettings) -> Optimizer:
        """The optimizer of one client in one round."""
        if self.tuning:
            self.tuning().check(settings)
        if self.private:
            self.private().check(settings)
        return self.make(params, settings)

    @property
    def is_plain(self) -> bool:
        """Whether every step is along the gradient, at one learning rate."""
        return self.functional == FunctionalSGD.of

    def reads(self) -> dict[str, str]:
        """The settings of the clients that making it reads: kebab-case key to attribute."""
        noted = _Noted()
        settings = cast(ClientSettings, noted)
        if self.functional:  # which takes no optimizer of PyTorch's
            self.functional(settings)
        elif not self.known:
            self.try_out(settings)
        read = noted.names.union(self.known)
        return {key: name for key, name in KEYS.items() if name in read}

    def try_out(self, settings: ClientSettings) -> None:
        """Make one for a parameter of no use: raises what is wrong with the settings."""
        self.make([nn.Parameter(torch.zeros(1, 1))], settings)


class _Noted:
    """Settings of a client that note which of them are read."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(ClientSettings(), name)


def _hyper(line: str, rule: type[Rule], **fixed: Any) -> LocalOptimizer:
    def tower(settings: ClientSettings, own: Mapping[str, Any]) -> Rule:
        return tower_of(rule, settings, **fixed, **own)

    elsewhere = {"lr", "weight_decay", *fixed, *(x.name for x in fields(Rule))}
    return LocalOptimizer(
        f"{line}, its learning rate tuned by hypergradients",
        lambda params, settings, **own: HypergradientOptimizer(params, tower(settings, own)),
        lambda settings, **own: FunctionalTower(tower(settings, own)),
        own={x.name: x.default for x in fields(rule) if x.name not in elsewhere},
    )


def tower_of(rule: type[Rule], settings: ClientSettings, **fixed: Any) -> Rule:
    """The tower of a client: ``hyper_height`` levels of SGD at ``hyper_lr`` over ``rule``.

    A learning rate moves by ``log η ← log η - κ cos(g, ∂w/∂η)`` (Baydin et al. 2018,
    arXiv:1703.04782, multiplicative): a factor of at most ``e^κ`` a step, whatever the scale of
    the loss and however wrong the first rate.
    """
    shape: dict[str, Any] = {"lr_form": "log", "normalised": True}
    hyper: Rule | None = None
    for _ in range(settings.hyper_height):
        hyper = SGDRule(settings.hyper_lr, hyper=hyper, **shape)
    decay: dict[str, Any] = {"weight_decay": settings.weight_decay}
    return rule(hyper=hyper, **{"lr": settings.lr, **decay, **shape, **fixed})


def _learned(params: Iterable[nn.Parameter], settings: ClientSettings, **own: Any) -> PlainSGD:
    StepTuning(**own)  # what is wrong with it shows when the optimizer is named
    return PlainSGD(params, settings.lr, settings.weight_decay)


class _PrivateElsewhere:
    """Stands where an optimizer is expected, and never steps: the plain loop is not private."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": [*params], "lr": lr}]

    def step(self) -> None:
        """Refuse to."""
        raise ValueError(
            "private optimizers take no steps of the plain loop, which is not private. Train by "
            "client_app, or by PrivateSGD.train."
        )


def _private(line: str, kind: type[PrivateSGD], reads_rate: bool) -> LocalOptimizer:
    def make(params: Iterable[nn.Parameter], s: ClientSettings, **own: Any) -> Optimizer:
        kind(**own)  # what is wrong with it shows when the optimizer is named
        return _PrivateElsewhere(params, s.lr if reads_rate else 0.0)

    own = private_settings(kind)
    return LocalOptimizer(line, make, adapts_lr=False, keeps="nothing", own=own, private=kind)


def _undecayed(name: str, settings: ClientSettings) -> float:
    if settings.weight_decay:
        raise ValueError(
            f"ClientSettings(weight_decay={settings.weight_decay}): {name} has none. Use 0.0."
        )
    return settings.lr


def _functional_undecayed(name: str, form: Callable[..., FunctionalOptimizer]) -> Functional:
    def of(settings: ClientSettings, **own: Any) -> FunctionalOptimizer:
        _undecayed(name, settings)
        return form(**own)

    return of


def _keywords(kind: type) -> dict[str, Any]:
    """The arguments of ``kind`` that are given by keyword alone, and their defaults."""
    found = signature(kind).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


plain_sgd = LocalOptimizer(
    "plain SGD, one fixed learning rate",
    lambda params, s: PlainSGD(params, s.lr, s.weight_decay),
    FunctionalSGD.of,
    adapts_lr=False,
    keeps="nothing",
    shares_memory=True,
)
"""Plain SGD: ``w ← w - η_l (g + weight_decay · w)``."""

sgd = plain_sgd
"""The name of ``plain_sgd`` in earlier versions."""

LOCAL_OPTIMIZERS: dict[str, LocalOptimizer] = {
    "sgd": plain_sgd,
    "hypersgd": _hyper("SGD", SGDRule),
    "hyperadam": _hyper("Adam", AdamRule),
    "hyperadamw": _hyper("AdamW", AdamRule, decoupled=True),
    "hyperrmsprop": _hyper("RMSprop", RMSpropRule),
    "hyperadagrad": _hyper("Adagrad", AdagradRule),
    "delta-sgd": LocalOptimizer(
        "SGD, its step from the smoothness met on the way (Kim et al. 2024)",
        lambda params, s, **own: DeltaSGD(params, _undecayed("delta-sgd", s), **own),
        _functional_undecayed("delta-sgd", FunctionalDeltaSGD),
        own={"gamma": 2.0, "delta": 0.02},
    ),
    "fedhyper": LocalOptimizer(
        "SGD, its step from the agreement of successive gradients (Wang, Wang & Li 2024)",
        lambda params, s, **own: FedHyperSGD(params, _undecayed("fedhyper", s), **own),
        _functional_undecayed("fedhyper", FunctionalFedHyperSGD),
        own={"max_growth": 1.1, "bound": 10.0},
    ),
    "polyak": LocalOptimizer(
        "SGD, its step as long as the loss allows, at most its rate (Loizou et al. 2021)",
        lambda params, s, **own: PolyakSGD(params, _undecayed("polyak", s), **own),
        _functional_undecayed("polyak", FunctionalPolyakSGD),
        keeps="nothing",
        needs_loss=True,
        own={"c": 0.5, "least_loss": 0.0},
    ),
    "muon": LocalOptimizer(
        "matrices get orthogonal steps, other parameters AdamW's (Jordan et al. 2024)",
        lambda params, s, **own: MuonAdamW(params, s.lr, s.weight_decay, **own),
        adapts_lr=False,
        keeps="state",
        own=_keywords(MuonAdamW),
        known=("lr", "weight_decay"),
    ),
    "learned-step": LocalOptimizer(
        "plain SGD, its learning rate tuned in some rounds on where it leads (Wang et al. 2021)",
        _learned,
        lambda s, **own: FunctionalSGD.of(s),
        adapts_lr=False,
        keeps="nothing",
        shares_memory=True,
        own={x.name: x.default for x in fields(StepTuning)},
        tuning=StepTuning,
    ),
    "dp-sgd": _private(
        "SGD, private for each example against the server (Abadi et al. 2016)", PrivateSGD, True
    ),
    "private-line-search": _private(
        "steps by a line search, private for each example against the server (Chen & Lee 2020)",
        PrivateLineSearch,
        False,
    ),
}
"""``--local-optimizer`` to what it means, beside the optimizers of ``torch.optim``."""


def mean_rate(optimizer: Optimizer, settings: ClientSettings) -> float:
    """``η_l`` now, the mean over parameter groups."""
    rates = [float(group.get("lr", settings.lr)) for group in optimizer.param_groups]
    return sum(rates) / len(rates)
