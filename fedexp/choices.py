"""What ``--strategy`` names: strategies with settings, each with a local optimizer if it has one.

``fedavg, fedadam(eta=0.03), fedexp+hypersgd, my.module:Rule(a=1)+adamw(weight-decay=0.01)``
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from fedexp import keys
from fedexp.clients.local_optimizers import LocalOptimizer
from fedexp.clients.named import as_optimizer, named_optimizer, told
from fedexp.clients.schedules import Schedule, schedule
from fedexp.config import Config, cut
from fedexp.specs import Spec, split_list
from fedexp.strategies import STRATEGIES


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
            raise ValueError(f"{cut(text)}: names two local optimizers. Leave one out.")
        if text.rstrip().endswith("+"):
            raise ValueError(f"{cut(text)}: names no local optimizer behind its +. Leave it out.")
        return cls(Spec.of(strategy), str(Spec.of(own[0])) if own else "")

    def __str__(self) -> str:
        return f"{self.strategy}+{self.optimizer}" if self.optimizer else str(self.strategy)


def strategy_keys(config: Config) -> list[str]:
    """What a run compares: strategies, some with a local optimizer of their own behind a ``+``.

    Raises:
        ValueError: one of them is unknown, or named twice.
    """
    owner = f"Config(strategy={cut(config.strategy)})"
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
                f"{owner}: unknown {cut(name)}.{hint} Known: all, {', '.join(STRATEGIES)}, "
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
    if isinstance(choice, str) and not choice:
        return None
    owner = f"Config(scheduler={cut(choice)})" if isinstance(choice, str) else "scheduler"
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
