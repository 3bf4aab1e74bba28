"""The local optimizers by name: what the command line, the clients and the documents read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any, cast

import torch

from fedexp import keys
from fedexp.clients.arguments import (
    did_you_mean,
    kebab,
    matched,
    of_kinds,
    one_line,
    parameters_of,
    takes_any,
)
from fedexp.clients.between_rounds import Kept
from fedexp.clients.extra_optimizers import EXTRA_OPTIMIZERS
from fedexp.clients.factories import TORCHS, Factory, kind_of, torchs_own
from fedexp.clients.local_optimizers import LOCAL_OPTIMIZERS, LocalOptimizer, OptimizerFn
from fedexp.clients.private_training import PrivateSGD
from fedexp.clients.settings import KEYS, ClientSettings, fault_of
from fedexp.extras import imported
from fedexp.specs import Spec

_NAMES_ITS_OWNER = re.compile(r"[\w.-]+\(")
_KEY_OF = {name: key for key, name in KEYS.items()}


@lru_cache(maxsize=256)
def named_optimizer(text: str) -> LocalOptimizer:
    """The local optimizer that ``name`` or ``name(key=value, ...)`` means.

    Args:
        text: a key of ``LOCAL_OPTIMIZERS`` or ``EXTRA_OPTIMIZERS``; an optimizer of
            ``torch.optim`` by its own or its lower-case name; or ``module:function``, called like
            one of those: ``function(params, lr=..., **settings)``. Settings are its own arguments,
            or those of the clients that it reads: ``learning-rate`` (or ``lr``),
            ``weight-decay``, ...

    Raises:
        ValueError: an unknown name or setting, or a value that cannot be.
        ModuleNotFoundError: another package has the optimizer, and is not installed.
    """
    owner, spec = f"Config(local-optimizer={text!r})", Spec.of(text)
    settings = _renamed(owner, spec.settings)
    if spec.name in LOCAL_OPTIMIZERS:
        entry = LOCAL_OPTIMIZERS[spec.name]
        if not settings:
            return entry
        known = [*(key.replace("-", "_") for key in _reads(spec.name)), *entry.own]
        if spec.name not in TORCHS or {key.lower() for key in settings} <= set(known):
            return _with(entry, owner, matched(owner, settings, known))
    if spec.name in EXTRA_OPTIMIZERS:
        return _of_extra(spec.name, owner, settings)
    if ":" in spec.name:
        return _adapted(imported(owner, spec.name), owner, settings)
    if function := torchs_own(spec.name):
        return _adapted(function, owner, settings)
    names = dict.fromkeys([*LOCAL_OPTIMIZERS, *EXTRA_OPTIMIZERS, *TORCHS])
    raise ValueError(
        f"{owner}: unknown.{did_you_mean(spec.name.lower(), names)} Known: {', '.join(names)}, and "
        "`module:function` of your own."
    )


def as_optimizer(choice: Any) -> OptimizerFn | None:
    """What makes a client's optimizer, from any way to name it.

    Args:
        choice: text, as for ``named_optimizer``; an optimizer class, or a ``functools.partial`` of
            one, that takes ``(params, lr=..., ...)``; a function ``params -> optimizer``, which
            sets its own learning rate, or ``(params, settings) -> optimizer``; a ``PrivateSGD``
            or ``PrivateLineSearch``; or None, which
            stands for what the setting ``local-optimizer`` names, and stays None.

    Raises:
        ValueError: none of these.

    Example:
        >>> from fedexp.clients import as_optimizer
        >>> as_optimizer("adamw(weight-decay=0.01)").line
        'torch.optim.AdamW'
    """
    if choice is None or isinstance(choice, LocalOptimizer):
        return choice
    if isinstance(choice, PrivateSGD):
        return named_optimizer(str(Spec(choice.name, asdict(choice))))
    if isinstance(choice, str):
        return named_optimizer(choice)
    owner = f"client_app(optimizer={getattr(choice, '__name__', type(choice).__name__)})"
    if isinstance(choice, torch.optim.Optimizer) or not callable(choice):
        raise ValueError(
            f"{owner}: must be text, a class or a function. Clients make their optimizer anew "
            "every round: give torch.optim.AdamW, not AdamW(...)."
        )
    kind = kind_of(choice)
    if kind == "settings":
        return cast(OptimizerFn, choice)
    if kind == "torch" and isinstance(choice, partial) and not choice.args:
        return _adapted(choice.func, owner, _renamed(owner, choice.keywords))
    return _adapted(choice, owner, {})


def told(text: str) -> dict[str, int | float | str]:
    """``local-optimizer=text`` for a message: what its brackets say of other settings apart."""
    optimizer, spec = named_optimizer(text), Spec.of(text)
    if not optimizer.given:
        return {"local-optimizer": text}
    own = {k: v for k, v in spec.settings.items() if _key(k) not in optimizer.given}
    return {"local-optimizer": str(Spec(spec.name, own)), **optimizer.given}


def _key(name: str) -> str:
    """The key of a setting of the clients, as Flower's records have it."""
    return keys.LEARNING_RATE if name.lower() == "lr" else kebab(name.lower())


def _renamed(owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``learning_rate`` in place of ``lr``."""
    if {"lr", "learning_rate"} <= settings.keys():
        raise ValueError(f"{owner}: lr and learning-rate are one setting. Leave one out.")
    return {"learning_rate" if key == "lr" else key: value for key, value in settings.items()}


def _with(
    entry: LocalOptimizer,
    owner: str,
    settings: Mapping[str, Any],
    examples: Mapping[str, Any] | None = None,
) -> LocalOptimizer:
    """``entry`` with these settings, those of the clients apart from its own.

    ``examples`` say of which kind its own are, if its defaults do not.
    """
    own = {key: value for key, value in settings.items() if key in entry.own}
    given = {kebab(key): value for key, value in settings.items() if key not in own}
    for key, value in given.items():
        if why := "must be a number" if isinstance(value, str) else fault_of(key, value):
            raise ValueError(f"{owner}: {key}={value!r} {why}.")
    if not (entry.tuning or entry.private):  # which say more of what they want
        own = of_kinds(owner, own, entry.own if examples is None else examples, entry.own)
    make = partial(entry.make, **own) if own else entry.make
    functional = partial(entry.functional, **own) if own and entry.functional else entry.functional
    tuning = partial(entry.tuning, **own) if own and entry.tuning else entry.tuning
    private = partial(entry.private, **own) if own and entry.private else entry.private
    chosen = replace(
        entry, make=make, functional=functional, given=given, tuning=tuning, private=private
    )
    if own:
        _check(owner, chosen)
    return chosen


def _check(owner: str, optimizer: LocalOptimizer) -> None:
    try:
        optimizer.try_out(ClientSettings())
    except Exception as error:  # such as the comparison of a text with a number
        if isinstance(error, ValueError) and _NAMES_ITS_OWNER.match(str(error)):
            raise
        raise ValueError(f"{owner}: {one_line(error)}. Choose other settings.") from error


def _adapted(function: Any, owner: str, settings: Mapping[str, Any]) -> LocalOptimizer:
    """What ``function`` makes, at these settings."""
    if isinstance(function, LocalOptimizer):
        return _with(function, owner, matched(owner, settings, function.own))
    factory = Factory(function, owner)
    shared = [_KEY_OF[name].replace("-", "_") for name in factory.shared]
    any_name = settings if takes_any(parameters_of(function)) else {}
    own = {name: None for name in any_name if name not in shared} | factory.own
    adapts = getattr(function, "adapts_lr", False)
    keeps: Kept = "rate" if adapts else "state"
    entry = LocalOptimizer(factory.name, factory, adapts_lr=adapts, keeps=keeps, own=own)
    return _with(entry, owner, matched(owner, settings, [*shared, *own]), factory.examples)


def _of_extra(name: str, owner: str, settings: Mapping[str, Any]) -> LocalOptimizer:
    """An optimizer of another package, at these settings and those that it comes with."""
    extra = EXTRA_OPTIMIZERS[name]
    own: dict[str, Any] = {key.replace("-", "_"): x for key, x in extra.given.items()}
    lower = {key.lower() for key in settings}
    own = {key: value for key, value in own.items() if key not in lower}
    entry = _adapted(extra.load(), owner, {**own, **settings})
    extra.check(owner, settings)
    return replace(entry, line=extra.line, keeps=extra.keeps)


@lru_cache
def _reads(name: str) -> tuple[str, ...]:
    return tuple(LOCAL_OPTIMIZERS[name].reads())


def optimizers() -> list[tuple[str, str, dict[str, Any]]]:
    """Every named local optimizer: its name, what it does, and its settings with their defaults.

    The default of a setting that is the run's own, such as ``learning-rate``, is None.
    """
    ours = [(name, x.line, _listed(_reads(name), x.own)) for name, x in LOCAL_OPTIMIZERS.items()]
    theirs = [Factory(x, name) for name, x in TORCHS.items()]
    return (
        ours
        + _listed_extras()
        + [
            (
                x.name if x.owner in LOCAL_OPTIMIZERS else x.owner,
                x.name,
                _listed(map(_KEY_OF.__getitem__, x.shared), x.own),
            )
            for x in theirs
        ]
    )


def _listed_extras() -> list[tuple[str, str, dict[str, Any]]]:
    """Those of other packages; of one that is not installed no settings are known."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name, extra in EXTRA_OPTIMIZERS.items():
        if not extra.is_installed:
            found.append((name, f"{extra.line}; needs fedexp[{extra.extra}]", {}))
            continue
        factory = Factory(extra.load(), name)
        shared = {_KEY_OF[attribute]: None for attribute in factory.shared}
        found.append((name, extra.line, {**shared, **extra.given} | _listed((), factory.own)))
    return found


def _listed(shared: Iterable[str], own: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(shared) | {kebab(name): default for name, default in own.items()}


def optimizer_markdown() -> str:
    """The table as Markdown."""
    lines = {key: x.line for key, x in (LOCAL_OPTIMIZERS | EXTRA_OPTIMIZERS).items()}
    rows = [f"| `{key}` | {line} |\n" for key, line in lines.items()]
    return "| `--local-optimizer` | what |\n|---|---|\n" + "".join(rows)
