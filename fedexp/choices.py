"""What ``--strategy`` names: strategies with settings, each with a local optimizer if it has one.

``fedavg, fedadam(eta=0.03), fedexp+hypersgd, my.module:Rule(a=1)+adamw(weight-decay=0.01)``
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from logging import ERROR
from typing import Any

import torch
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedexp import keys
from fedexp.agreement import (
    check_asked,
    check_min_replies,
    check_privacy,
    check_private_layers,
    check_private_steps,
)
from fedexp.clients.local_optimizers import LocalOptimizer
from fedexp.clients.named import as_optimizer, named_optimizer, told
from fedexp.clients.schedules import Schedule, schedule
from fedexp.config import Config
from fedexp.extras import imported, need
from fedexp.logs import level
from fedexp.readers import strategy_arguments
from fedexp.simulation.profiles import LEAST, ClientProfiles
from fedexp.specs import Spec, split_list
from fedexp.strategies import STRATEGIES, FedOpt, ServerOptimizer, average_named
from fedexp.strategies.per_client import per_client
from fedexp.strategies.private import CentralPrivacy, Private
from fedexp.strategies.private_clients import LocalPrivacy
from fedexp.strategies.robustness import Clip, FixedClip, QuantileClip
from fedexp.strategies.waiting import Waiting

_STEP_SIZE, _DIRECTION = 3, 2  # positional arguments of the two kinds of rule


@dataclass(frozen=True)
class Choice:
    """An entry of ``--strategy``.

    Attributes:
        strategy: name and settings.
        optimizer: the local optimizer behind the ``+``; empty if the entry has none.
    """

    strategy: Spec
    optimizer: str = ""

    @classmethod
    def of(cls, text: str) -> Choice:
        """Read an entry.

        Raises:
            ValueError: it is none.
        """
        strategy, *own = split_list(text, "+") or [""]
        if len(own) > 1:
            raise ValueError(f"{text!r}: names two local optimizers. Leave one out.")
        return cls(Spec.of(strategy), str(Spec.of(own[0])) if own else "")

    def __str__(self) -> str:
        return f"{self.strategy}+{self.optimizer}" if self.optimizer else str(self.strategy)


def strategy_keys(config: Config) -> list[str]:
    """What a run compares: strategies, some with a local optimizer of their own behind a ``+``.

    Raises:
        ValueError: one of them is unknown, or named twice.
    """
    owner = f"Config(strategy={config.strategy!r})"
    try:
        wanted = list(map(Choice.of, split_list(config.strategy)))
    except ValueError as error:
        raise ValueError(f"Config(strategy): {error}") from None
    if wanted == [Choice(Spec("all"))]:
        # A rule that needs all clients would end the run of the others where only some train.
        some = config.fraction_train < 1
        wanted = [
            Choice(Spec(name)) for name, row in STRATEGIES.items() if not (row.all_clients and some)
        ]
    if not wanted:
        raise ValueError(f"{owner}: names none. Known: all, {', '.join(STRATEGIES)}.")
    texts = [str(choice) for choice in wanted]
    if len(set(texts)) < len(texts):
        raise ValueError(f"{owner}: names one twice. Leave one out.")
    for name in (choice.strategy.name for choice in wanted):
        if name not in STRATEGIES and ":" not in name:
            if name == "all":
                raise ValueError(f"{owner}: all stands for every strategy. Leave the rest out.")
            close = get_close_matches(name.lower(), STRATEGIES, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{owner}: unknown {name!r}.{hint} Known: all, {', '.join(STRATEGIES)}, "
                "or module:NAME of your own."
            )
    for text in texts:
        named_optimizer(optimizer_key(config, text))
    return texts


def strategy_names(config: Config) -> list[str]:
    """The strategies of ``strategy_keys`` without settings and local optimizers."""
    return [Choice.of(key).strategy.name for key in strategy_keys(config)]


def optimizer_key(config: Config, key: str) -> str:
    """The local optimizer of an entry of ``strategy_keys``."""
    return Choice.of(key).optimizer or config.local_optimizer


def client_config(config: Config, key: str) -> dict[str, int | float | bool | str]:
    """The settings that the clients of one entry get with their messages.

    Raises:
        ValueError: the local optimizer cannot take them.
    """
    _check_timed(config)
    name = optimizer_key(config, key)
    optimizer = named_optimizer(name)
    settings: dict[str, int | float | bool | str] = {
        "hyper-learning-rate": config.hyper_learning_rate,
        "hyper-height": config.hyper_height,
        keys.BETWEEN_ROUNDS: _between_rounds(config, name, optimizer),
        **told(name),
    }
    local = Config.of(config.values() | settings).clients
    local.check_optimizer(optimizer)
    local.rates()  # what is wrong with a scheduler of local steps shows now
    schedule_of(config, key)
    if optimizer.tuning and config.learning_rate_decay != 1:
        raise ValueError(
            f"Config(learning-rate-decay={config.learning_rate_decay}): {name} sets the learning "
            "rate of every round. Use 1.0."
        )
    optimizer([nn.Parameter(torch.zeros(1, 1))], local)  # what is wrong with it shows now
    return settings


def _check_timed(config: Config) -> None:
    """Raise ``ValueError`` for local epochs, whose simulated time is not known, where it counts."""
    if config.local_epochs and (config.client_profiles or (config.faults and config.deadline)):
        raise ValueError(
            f"Config(local-epochs={config.local_epochs}): simulated time is that of local-steps. "
            "Use those, or leave client-profiles and deadline out."
        )


def _between_rounds(config: Config, name: str, optimizer: LocalOptimizer) -> str:
    """What the clients' optimizer starts a round from."""
    policy = config.hyper_between_rounds
    if policy == "average" and optimizer.keeps == "state":
        raise ValueError(
            f"Config(hyper-between-rounds='average'): {name} keeps more than a learning rate, and "
            "the server averages learning rates alone. Use carry or fresh."
        )
    return "fresh" if optimizer.keeps == "nothing" else policy


def schedule_of(
    config: Config, key: str, scheduler: Any = None, optimizer: Any = None
) -> Schedule | None:
    """The learning rate of the clients of one entry over the rounds; None where it is constant.

    Args:
        config: of the run.
        key: an entry of ``strategy_keys``.
        scheduler: in place of that of ``config``, see ``schedule``.
        optimizer: in place of that of the entry, see ``as_optimizer``.

    Raises:
        ValueError: no such scheduler, or settings that do not go with one.
    """
    choice = config.scheduler if scheduler is None else scheduler
    if not choice:
        return None
    owner = f"Config(scheduler={choice!r})" if isinstance(choice, str) else "scheduler"
    name = getattr(optimizer, "__name__", optimizer_key(config, key))
    made = as_optimizer(optimizer) or named_optimizer(name)
    if config.learning_rate_decay != 1:
        raise ValueError(
            f"{owner}: learning-rate-decay={config.learning_rate_decay} is a schedule too. "
            "Leave one of the two out."
        )
    if getattr(made, "tuning", None):
        raise ValueError(
            f"{owner}: {name} sets the learning rate of every round. Use no scheduler."
        )
    if config.learning_rate_exponent:
        raise ValueError(
            f"{owner}: learning-rate-exponent={config.learning_rate_exponent} is a schedule too. "
            "Leave one of the two out."
        )
    if getattr(made, "adapts_lr", False) and config.hyper_between_rounds != "fresh":
        raise ValueError(
            f"{owner}: with hyper-between-rounds={config.hyper_between_rounds!r}, {name} starts "
            "from rates of its own. Use fresh, or no scheduler."
        )
    if isinstance(made, LocalOptimizer) and keys.LEARNING_RATE not in made.reads():
        raise ValueError(
            f"{owner}: {name} takes no learning rate. Give it an argument lr, or use no scheduler."
        )
    first = getattr(made, "given", {}).get(keys.LEARNING_RATE, config.learning_rate)
    return schedule(choice, config.num_server_rounds, float(first))


def strategy_of(config: Config, key: str, num_nodes: int) -> Strategy:
    """The strategy ``key``: its settings, else the config fields of the same name, else its own.

    Raises:
        ValueError: a setting that it does not have or cannot take, or clients whose optimizer does
            not go with it.
    """
    average_named(config.average)  # what is wrong with it shows now
    spec = Choice.of(key).strategy
    make = _of_table if spec.name in STRATEGIES else _of_module
    strategy = make(config, key, num_nodes)
    check_privacy(config, strategy)
    check_min_replies(config, strategy)
    check_asked(config, strategy, num_nodes)
    check_private_layers(config, strategy)
    own = named_optimizer(optimizer_key(config, key))
    if getattr(strategy, "control_variates", False) and not own.is_plain:
        raise ValueError(
            f"Config(strategy={key!r}): control variates need one learning rate at all clients, "
            f"fixed throughout, and plain steps; {optimizer_key(config, key)} takes others. "
            "Use +sgd."
        )
    check_private_steps(config, key, strategy, optimizer_key(config, key))
    return strategy


def prepared(given: Any, config: Config, key: str, num_nodes: int) -> Strategy:
    """A fresh copy of a strategy or rule of the caller's, as a run of ``config`` needs it.

    A ``ServerOptimizer``, a step size or a direction alone becomes a strategy that has the config
    fields of ``FedOpt``'s arguments. A strategy keeps all that it was made with; ``seed``, where it
    has none, is the run's, and a ``FedOpt`` sends the run's settings to its clients.

    Raises:
        ValueError: it is none of these, or waits for more clients than there are.
    """
    if isinstance(given, type):
        name = given.__name__
        raise ValueError(f"strategy={name}: is a class. Give one made of it: {name}().")
    if not isinstance(given, Strategy):
        options = _options(config, FedOpt, {}) | _common(config, key, num_nodes)
        with level(ERROR):  # as in _of_table
            return FedOpt(optimizer=_as_optimizer(given), **options)
    strategy: Strategy = deepcopy(given)
    check_privacy(config, strategy)
    check_min_replies(config, strategy)
    check_private_steps(config, key, strategy, optimizer_key(config, key))
    check_private_layers(config, strategy)
    if isinstance(strategy, FedOpt):
        strategy.seed = config.seed if strategy.seed is None else strategy.seed
        strategy.client_config = {**client_config(config, key), **strategy.client_config}
    for name in ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes"):
        waits_for, away = getattr(strategy, name, 0), come_and_go(config)
        if away and waits_for > LEAST and not _is_off(strategy, name):
            raise ValueError(
                f"{type(strategy).__name__}({name}={waits_for}): with availability a round may "
                f"have {LEAST} clients alone, it would wait for ever. Use {name}={LEAST}."
            )
        if getattr(strategy, name, 0) > num_nodes and not _is_off(strategy, name):
            raise ValueError(
                f"{type(strategy).__name__}({name}={getattr(strategy, name)}): there are "
                f"{num_nodes} clients, it would wait for ever. Use {name}={num_nodes}."
            )
    return strategy


def clip_of(config: Config, bound: Any = None, quantile: Any = None) -> Clip | None:
    """The bound on updates that ``clip`` and ``clip-quantile`` name."""
    bound = config.clip if bound is None else bound
    quantile = config.clip_quantile if quantile is None else quantile
    if quantile:
        return QuantileClip(quantile=quantile, **({"initial": bound} if bound else {}))
    return FixedClip(bound) if bound else None


_PRIVACY: dict[str, type[Private]] = {"central": CentralPrivacy, "local": LocalPrivacy}


def privacy_of(text: str) -> Private | None:
    """What ``--privacy`` names; None for no text.

    Raises:
        ValueError: no such privacy, or a setting that it does not have or cannot take.
        ModuleNotFoundError: nothing can do the accounting.
    """
    if not text:
        return None
    owner = f"Config(privacy={text!r})"
    try:
        spec = Spec.of(text)
        if spec.name not in _PRIVACY:
            raise ValueError(f"unknown {spec.name!r}. Known: {', '.join(_PRIVACY)}.")
        kind = _PRIVACY[spec.name]
        known = inspect.signature(kind).parameters
        for name, value in spec.settings.items():
            if name not in known:
                shown = ", ".join(x.replace("_", "-") for x in known)
                raise ValueError(f"no {name.replace('_', '-')!r}. Known: {shown}.")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name.replace('_', '-')}={value!r}: must be a number.")
        private = kind(**spec.settings)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    need("dp_accounting", "dp")
    return private


def waiting_of(config: Config) -> Waiting | None:
    """How a round waits for devices; None where nothing says so, as in a simulation."""
    named = ("sample", "enough", "deadline")
    given = {name: value for name in named if (value := getattr(config, name))}
    return Waiting(**given) if given or config.min_nodes else None


def _of_table(config: Config, key: str, num_nodes: int) -> Strategy:
    spec = Choice.of(key).strategy
    entry = STRATEGIES[spec.name]
    settings = _known(spec, entry.strategy)
    options = {**entry.options, **_options(config, entry.strategy, settings)}
    with _said(spec), level(ERROR):  # Flower warns when no client evaluates, the default here
        return entry.strategy(**{**_common(config, key, num_nodes), **options, **settings})


def _of_module(config: Config, key: str, num_nodes: int) -> Strategy:
    spec = Choice.of(key).strategy
    made = imported(f"Config(strategy={key!r})", spec.name)
    if isinstance(made, type) and issubclass(made, FlowerFedAvg):
        settings = _known(spec, made)
        common = _common(config, key, num_nodes)
        common |= {name: getattr(config, name) for name in ("fraction_train", "fraction_evaluate")}
        own = _arguments(made)
        options = _options(config, made, settings) if issubclass(made, FedOpt) else {}
        options = {**{k: v for k, v in common.items() if k in own}, **options, **settings}
        with _said(spec), level(ERROR):
            strategy: Strategy = made(**options)
            return strategy
    with _said(spec):
        is_rule = callable(made) and not isinstance(made, type) and _num_positional(made)
        if callable(made) and not (is_rule and not spec.settings):
            made = made(**spec.settings)
    return prepared(made, config, key, num_nodes)


def _common(config: Config, key: str, num_nodes: int) -> dict[str, Any]:
    return {
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": config.min_nodes or (1 if come_and_go(config) else num_nodes),
        "evaluate_metrics_aggr_fn": per_client,
        "client_config": client_config(config, key),
    }


def come_and_go(config: Config) -> bool:
    """Whether some clients are not there in some rounds."""
    return ClientProfiles.of(config.client_profiles).availability is not None


_OWN_IF_0 = {
    *("max_step_size", "server_learning_rate", "smoothing"),
    *("relaxation", "drop_beyond", "min_replies"),
}


def _options(config: Config, cls: type[FedOpt], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments from the config fields; takes clip and privacy out of ``settings``."""
    options: dict[str, Any] = {
        name: value
        for name, field in strategy_arguments(cls).items()
        if (value := getattr(config, field)) or field not in _OWN_IF_0
    }
    clip = settings.pop("clip", None), settings.pop("clip_quantile", None)
    options |= {"clip": clip_of(config, *clip), "waiting": waiting_of(config)}
    private = privacy_of(str(settings.pop("extensions", None) or config.privacy))
    options.pop("extensions", None)
    return options | ({"extensions": [private]} if private else {})


def _known(spec: Spec, cls: type) -> dict[str, Any]:
    """The settings of ``spec`` as arguments of ``cls``.

    Raises:
        ValueError: an argument that it does not have, or a value of another kind.
    """
    arguments = _arguments(cls)
    alias = {field: name for name, field in strategy_arguments(cls).items()}
    settings = {alias.get(name, name): value for name, value in spec.settings.items()}
    for name, value in settings.items():
        if name not in arguments:
            shown = sorted(x.replace("_", "-") for x in arguments)
            close = get_close_matches(name.replace("_", "-"), shown, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(shown)}."
            raise ValueError(f"{spec}: {spec.name} has no {name.replace('_', '-')!r}. {hint}")
        default = arguments[name]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{spec}: {name}={value!r} must be true or false.")
        if number and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{spec}: {name}={value!r} must be a number. Use {default}, say.")
    return settings


def _arguments(cls: type) -> dict[str, Any]:
    """Arguments of a strategy along its base classes, and their defaults."""
    found: dict[str, Any] = {"clip_quantile": 0.0} if issubclass(cls, FedOpt) else {}
    for base in cls.__mro__:
        for name, parameter in inspect.signature(base).parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, parameter.default)
    return found


class _said:
    """What goes wrong in a rule's constructor, in one line that names the rule."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError) and str(self.spec.name) in STRATEGIES:
            raise ValueError(
                f"{self.spec}: {error}" if self.spec.settings else str(error)
            ) from None
        if isinstance(error, Exception | SystemExit):
            line = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.spec}: {type(error).__name__}: {line}.") from error


def _as_optimizer(rule: Any) -> ServerOptimizer:
    """A server step from a rule.

    Raises:
        ValueError: it is no rule.
    """
    if isinstance(rule, ServerOptimizer):
        return rule
    count = _num_positional(rule) if callable(rule) and not isinstance(rule, type) else 0
    if count == _STEP_SIZE:
        return ServerOptimizer(step_size=rule)
    if count == _DIRECTION:
        return ServerOptimizer(direction=rule)
    raise ValueError(
        f"strategy={type(rule).__name__}: must be a Flower strategy, a ServerOptimizer, a step "
        "size (statistics, direction, state) -> (eta, state) or a direction (gradient, state) -> "
        "(direction, state)."
    )


def _num_positional(function: Callable[..., Any]) -> int:
    """How many arguments a call needs."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional)


def _is_off(strategy: Any, name: str) -> bool:
    """Whether nobody is ever asked for what ``name`` is the least number of."""
    fraction = {"min_train_nodes": "fraction_train", "min_evaluate_nodes": "fraction_evaluate"}
    return name in fraction and getattr(strategy, fraction[name], 1.0) == 0.0
