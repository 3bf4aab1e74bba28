"""The local optimizers by name: what the command line, the clients and the documents read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import nn

from fedexp.clients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.clients.arguments import kebab, matched, one_line, parameters_of, takes_any
from fedexp.clients.delta_sgd import DeltaSGD
from fedexp.clients.descent import Descent
from fedexp.clients.factories import TORCHS, Factory, kind_of, torchs_own
from fedexp.clients.functional_optimizers import (
    Functional,
    FunctionalDeltaSGD,
    FunctionalScheduledSGD,
    FunctionalSGD,
    FunctionalTower,
)
from fedexp.clients.hypergradient import Hypergradient
from fedexp.clients.scheduled_sgd import ScheduledSGD
from fedexp.clients.training import KEYS, LocalTraining, Optimizer
from fedexp.clients.update_rules import SGD, Rule
from fedexp.extras import imported
from fedexp.specs import Spec

_KEY_OF = {name: key for key, name in KEYS.items()}
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
        own: settings that it alone has, with their defaults; keywords of ``make`` and
            ``functional``.
        given: settings of the clients, by their kebab-case keys, that came with the choice. They
            take the place of those of the run config; a message overrides them.
    """

    line: str
    make: Callable[..., Optimizer]
    functional: Functional | None = None
    tunes: bool = True
    borrows: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, int | float] = field(default_factory=dict)

    def __call__(self, params: Iterable[nn.Parameter], settings: LocalTraining) -> Optimizer:
        """The optimizer of one client in one round."""
        return self.make(params, settings)

    @property
    def is_plain(self) -> bool:
        """Whether every step is along the gradient, at one learning rate."""
        return self.functional is FunctionalSGD

    def reads(self) -> dict[str, str]:
        """The settings of the clients that making it reads: kebab-case key to attribute."""
        noted = _Noted()
        self([nn.Parameter(torch.zeros(1, 1))], cast(LocalTraining, noted))
        return {key: name for key, name in KEYS.items() if name in noted.names}


class _Noted:
    """Settings of a client that note which of them are read."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(LocalTraining(), name)


def _hyper(line: str, rule: type[Rule], **fixed: Any) -> LocalOptimizer:
    def tower(settings: LocalTraining, own: Mapping[str, Any]) -> Rule:
        return tower_of(rule, settings, **fixed, **own)

    elsewhere = {"lr", "weight_decay", *fixed, *(x.name for x in fields(Rule))}
    return LocalOptimizer(
        f"{line}, its learning rate tuned by hypergradients",
        lambda params, settings, **own: Hypergradient(params, tower(settings, own)),
        lambda settings, **own: FunctionalTower(tower(settings, own)),
        own={x.name: x.default for x in fields(rule) if x.name not in elsewhere},
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
        lambda params, s, **own: DeltaSGD(params, _undecayed("delta-sgd", s), **own),
        lambda s, **own: FunctionalDeltaSGD(**own),
        own={"gamma": 2.0, "delta": 0.02},
    ),
    "fedhyper": LocalOptimizer(
        "SGD, its step from the agreement of successive gradients (Wang, Wang & Li 2024)",
        lambda params, s, **own: ScheduledSGD(params, _undecayed("fedhyper", s), **own),
        lambda s, **own: FunctionalScheduledSGD(**own),
        own={"max_growth": 1.1, "bound": 10.0},
    ),
}
"""``--local-optimizer`` to what it means, beside the optimizers of ``torch.optim``."""


@lru_cache(maxsize=256)
def named(text: str) -> LocalOptimizer:
    """The local optimizer that ``name`` or ``name(key=value, ...)`` means.

    Args:
        text: a key of ``LOCAL_OPTIMIZERS``; an optimizer of ``torch.optim`` by its own or its
            lower-case name; or ``module:function``, called like one of those:
            ``function(params, lr=..., **settings)``. Settings are its own arguments, or those of
            the clients that it reads: ``learning-rate`` (or ``lr``), ``weight-decay``, ...

    Raises:
        ValueError: an unknown name or setting, or a value that cannot be.
    """
    owner, spec = f"Config(local-optimizer={text!r})", Spec.of(text)
    settings = _renamed(owner, spec.settings)
    if spec.name in LOCAL_OPTIMIZERS:
        entry = LOCAL_OPTIMIZERS[spec.name]
        reads = [key.replace("-", "_") for key in _reads(spec.name)]
        if not settings:
            return entry
        known = [*reads, *entry.own]
        if spec.name not in TORCHS or {key.lower() for key in settings} <= set(known):
            return _with(entry, owner, matched(owner, settings, known))
    if ":" in spec.name:
        return _adapted(imported(owner, spec.name), owner, settings)
    if function := torchs_own(spec.name):
        return _adapted(function, owner, settings)
    names = dict.fromkeys([*LOCAL_OPTIMIZERS, *TORCHS])
    near = get_close_matches(spec.name.lower(), names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{owner}: unknown.{hint} Known: {', '.join(names)}, and `module:function` of your own."
    )


def as_optimizer(choice: Any) -> OptimizerFn | None:
    """What makes a client's optimizer, from any way to name it.

    Args:
        choice: text, as for ``named``; an optimizer class, or a ``functools.partial`` of one, that
            takes ``(params, lr=..., ...)``; a function ``params -> optimizer``, which then has a
            learning rate of its own, or ``(params, settings) -> optimizer``; or None, which is
            what the setting ``local-optimizer`` names, and stays None.

    Raises:
        ValueError: none of these.
    """
    if choice is None or isinstance(choice, LocalOptimizer):
        return choice
    if isinstance(choice, str):
        return named(choice)
    owner = f"client_app(optimizer={getattr(choice, '__name__', type(choice).__name__)})"
    if isinstance(choice, torch.optim.Optimizer) or not callable(choice):
        raise ValueError(
            f"{owner}: must be text, a class or a function. Clients make their optimizer anew "
            "every round: give torch.optim.AdamW, not AdamW(...)."
        )
    if isinstance(choice, partial) and not choice.args:
        return _adapted(choice.func, owner, _renamed(owner, choice.keywords))
    if kind_of(choice) == "settings":
        return cast(OptimizerFn, choice)
    return _adapted(choice, owner, {})


def told(text: str) -> dict[str, int | float | str]:
    """``local-optimizer=text`` for a message: what its brackets say of other settings apart."""
    optimizer, spec = named(text), Spec.of(text)
    if not optimizer.given:
        return {"local-optimizer": text}
    own = {k: v for k, v in spec.settings.items() if _key(k) not in optimizer.given}
    return {"local-optimizer": str(Spec(spec.name, own)), **optimizer.given}


def _key(name: str) -> str:
    """The key of a setting of the clients, as Flower's records have it."""
    return "learning-rate" if name.lower() == "lr" else kebab(name.lower())


def _renamed(owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``learning_rate`` in place of ``lr``."""
    if {"lr", "learning_rate"} <= settings.keys():
        raise ValueError(f"{owner}: lr and learning-rate are one setting. Leave one out.")
    return {"learning_rate" if key == "lr" else key: value for key, value in settings.items()}


def _with(entry: LocalOptimizer, owner: str, settings: Mapping[str, Any]) -> LocalOptimizer:
    """``entry`` with these settings, those of the clients apart from its own."""
    own = {key: value for key, value in settings.items() if key in entry.own}
    given = {kebab(key): value for key, value in settings.items() if key not in own}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{owner}: {key}={value!r} must be a number.")
    make = partial(entry.make, **own) if own else entry.make
    functional = partial(entry.functional, **own) if own and entry.functional else entry.functional
    chosen = replace(entry, make=make, functional=functional, given=given)
    if own:
        _check(owner, chosen)
    return chosen


def _check(owner: str, optimizer: LocalOptimizer) -> None:
    try:
        optimizer.reads()
    except ValueError:
        raise
    except Exception as error:  # such as the comparison of a text with a number
        raise ValueError(f"{owner}: {one_line(error)}. Choose other settings.") from error


def _adapted(function: Any, owner: str, settings: Mapping[str, Any]) -> LocalOptimizer:
    """What ``function`` makes, at these settings."""
    if isinstance(function, LocalOptimizer):
        return _with(function, owner, matched(owner, settings, function.own))
    factory = Factory(function, owner)
    shared = [_KEY_OF[name].replace("-", "_") for name in factory.shared]
    any_name = settings if takes_any(parameters_of(function)) else {}
    own = {name: None for name in any_name if name not in shared} | factory.own
    tunes = getattr(function, "tunes", False)
    entry = LocalOptimizer(factory.name, factory, tunes=tunes, own=own)
    return _with(entry, owner, matched(owner, settings, [*shared, *own]))


@lru_cache
def _reads(name: str) -> tuple[str, ...]:
    return tuple(LOCAL_OPTIMIZERS[name].reads())


def learning_rate(optimizer: Optimizer, settings: LocalTraining) -> float:
    """``η_l`` now, the mean over parameter groups."""
    rates = [float(group.get("lr", settings.lr)) for group in optimizer.param_groups]
    return sum(rates) / len(rates)


def optimizers() -> list[tuple[str, str, dict[str, Any]]]:
    """Every named local optimizer: its name, what it does, and its settings with their defaults.

    The default of a setting that is the run's own, such as ``learning-rate``, is None.
    """
    ours = [(name, x.line, _listed(_reads(name), x.own)) for name, x in LOCAL_OPTIMIZERS.items()]
    theirs = [Factory(x, name) for name, x in TORCHS.items()]
    return ours + [
        (
            x.name if x.owner in LOCAL_OPTIMIZERS else x.owner,
            x.name,
            _listed(map(_KEY_OF.__getitem__, x.shared), x.own),
        )
        for x in theirs
    ]


def _listed(shared: Iterable[str], own: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(shared) | {kebab(name): default for name, default in own.items()}


def markdown() -> str:
    """The table as Markdown."""
    rows = [f"| `{key}` | {entry.line} |\n" for key, entry in LOCAL_OPTIMIZERS.items()]
    return "| `--local-optimizer` | what |\n|---|---|\n" + "".join(rows)
