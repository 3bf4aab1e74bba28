"""Strategies as a run needs them: of the table, of a module, or objects of the caller's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from logging import ERROR
from typing import Any

from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Strategy

from fedexp.agreement import (
    check_asked,
    check_min_replies,
    check_privacy,
    check_private_layers,
    check_told,
)
from fedexp.choices import Choice, client_config, optimizer_key
from fedexp.clients.named import named_optimizer
from fedexp.config import Config
from fedexp.extras import imported
from fedexp.logs import level
from fedexp.simulation.profiles import LEAST, ClientProfiles
from fedexp.strategies import STRATEGIES, FedOpt, ServerOptimizer, average_named
from fedexp.strategies.per_client import per_client
from fedexp.strategy_settings import arguments_of, from_config, given_to, in_one_line

_STEP_SIZE, _DIRECTION = 3, 2  # positional arguments of the two kinds of rule


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
    _check_all_come(config, strategy)
    check_asked(config, strategy, num_nodes)
    check_private_layers(config, strategy)
    own = named_optimizer(optimizer_key(config, key))
    if getattr(strategy, "control_variates", False) and not own.is_plain:
        raise ValueError(
            f"Config(strategy={key!r}): control variates need one learning rate at all clients, "
            f"fixed throughout, and plain steps; {optimizer_key(config, key)} takes others. "
            "Use +sgd."
        )
    check_told(config, key, strategy, optimizer_key(config, key))
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
        options = from_config(config, FedOpt, {}) | _common(config, key, num_nodes)
        with level(ERROR):  # as in _of_table
            return FedOpt(optimizer=_as_optimizer(given), **options)
    strategy: Strategy = deepcopy(given)
    check_privacy(config, strategy)
    check_min_replies(config, strategy)
    _check_all_come(config, strategy)
    check_told(config, key, strategy, optimizer_key(config, key))
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


def _of_table(config: Config, key: str, num_nodes: int) -> Strategy:
    spec = Choice.of(key).strategy
    entry = STRATEGIES[spec.name]
    settings = given_to(spec, entry.strategy)
    options = {**entry.options, **from_config(config, entry.strategy, settings)}
    with in_one_line(spec), level(ERROR):  # Flower warns when no client evaluates, the default here
        return entry.strategy(**{**_common(config, key, num_nodes), **options, **settings})


def _of_module(config: Config, key: str, num_nodes: int) -> Strategy:
    spec = Choice.of(key).strategy
    made = imported(f"Config(strategy={key!r})", spec.name)
    if isinstance(made, type) and issubclass(made, FlowerFedAvg):
        settings = given_to(spec, made)
        common = _common(config, key, num_nodes)
        common |= {name: getattr(config, name) for name in ("fraction_train", "fraction_evaluate")}
        own = arguments_of(made)
        options = from_config(config, made, settings) if issubclass(made, FedOpt) else {}
        options = {**{k: v for k, v in common.items() if k in own}, **options, **settings}
        with in_one_line(spec), level(ERROR):
            strategy: Strategy = made(**options)
            return strategy
    with in_one_line(spec):
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


def _check_all_come(config: Config, strategy: Strategy) -> None:
    """Raise for a rule that needs all clients, if some are away in some rounds."""
    if (
        come_and_go(config)
        and isinstance(strategy, FedOpt)
        and strategy.optimizer.needs_all_clients
    ):
        raise ValueError(
            f"Config(client-profiles={config.client_profiles!r}): {type(strategy).__name__} needs "
            "all clients in every round, and with availability some are away. Leave availability "
            "out, or give it sampled=True."
        )


def come_and_go(config: Config) -> bool:
    """Whether some clients are not there in some rounds."""
    return ClientProfiles.of(config.client_profiles).availability is not None


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
