"""Whether a strategy does what the configuration of a run asks for."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import Strategy

from fedexp import keys
from fedexp.clients.named import named_optimizer
from fedexp.clients.private_training import PrivateSGD
from fedexp.clients.settings import ClientSettings
from fedexp.config import Config
from fedexp.strategies import FedOpt
from fedexp.strategies.dynamic_regularization import DynamicRegularization
from fedexp.strategies.extensions import Extensions
from fedexp.strategies.private_clients import LocalPrivacy
from fedexp.strategies.private_layers import PrivateLayers
from fedexp.strategies.sampling import cohort_size


def check_privacy(config: Config, strategy: Strategy) -> None:
    """Raise unless a strategy has the privacy that the configuration asks for."""
    if config.privacy and not (isinstance(strategy, FedOpt) and strategy.extensions.is_private):
        raise ValueError(
            f"Config(privacy={config.privacy!r}): {type(strategy).__name__} would ignore it. Use a "
            "named strategy, or extensions=[CentralPrivacy(...)] of one of fedexp.strategies."
        )
    extensions = strategy.extensions if isinstance(strategy, FedOpt) else Extensions()
    if config.hyper_between_rounds == "average" and extensions.is_private:
        raise ValueError(
            "Config(hyper-between-rounds='average'): under privacy clients tell nobody their "
            "rates. Use fresh or carry."
        )
    if config.fraction_evaluate and extensions.find(LocalPrivacy):
        raise ValueError(
            f"Config(fraction-evaluate={config.fraction_evaluate}): clients would tell the server "
            "their exact losses, which local privacy hides. Use 0."
        )


def check_min_replies(config: Config, strategy: Strategy) -> None:
    """Raise unless a strategy undoes rounds of few replies if the configuration says so."""
    if config.min_replies and not isinstance(strategy, FedOpt):
        raise ValueError(
            f"Config(min-replies={config.min_replies}): {type(strategy).__name__} would ignore it. "
            "Use one of fedexp.strategies."
        )


def check_asked(config: Config, strategy: Strategy, num_nodes: int) -> None:
    """Raise if every round would fail, as fewer clients are asked than have to reply."""
    if not isinstance(strategy, FedOpt) or config.min_nodes:
        return  # of devices, more may join
    share = strategy.waiting.share(num_nodes, strategy.fraction_train, strategy.min_train_nodes)
    asked = cohort_size(num_nodes, *share)
    if strategy.min_replies > asked and strategy.fraction_train:
        raise ValueError(
            f"Config(min-replies={strategy.min_replies}): a round asks {asked} of {num_nodes} "
            "clients, so that every round would fail. Use fewer, or a larger fraction-train."
        )


def check_private_layers(config: Config, strategy: Strategy) -> None:
    """Raise unless a strategy keeps the private layers that the configuration names back."""
    if config.private_layers and not (
        isinstance(strategy, FedOpt) and strategy.extensions.find(PrivateLayers)
    ):
        raise ValueError(
            f"Config(private-layers={config.private_layers!r}): {type(strategy).__name__} would "
            "send them. Use a named strategy, or FedAvg(private_layers=...) of fedexp.strategies."
        )


def check_told(config: Config, key: str, strategy: Strategy, optimizer: str) -> None:
    """Raise for what a strategy tells its clients if their optimizer cannot follow it."""
    made = named_optimizer(optimizer)
    told = _told_by(strategy)
    if made.private:
        _check_private_steps(config, key, strategy, made.private(), told)
    elif made.tuning and keys.DYNAMIC_ALPHA in told:
        raise ValueError(
            f"Config(strategy={key!r}): control variates need one learning rate at all clients, "
            f"fixed throughout; {optimizer} tunes it. Use +sgd."
        )
    elif told and getattr(made, "needs_loss", False):
        try:
            ClientSettings.of({**config.values(), **told}).check_optimizer(made)
        except ValueError as error:
            raise ValueError(f"Config(strategy={key!r}): {error}") from None


def _told_by(strategy: Strategy) -> dict[str, Any]:
    """The settings that the strategy sends to its clients in every round."""
    told = dict(getattr(strategy, "client_config", None) or {})
    if isinstance(strategy, FedOpt) and (own := strategy.extensions.find(DynamicRegularization)):
        told |= {keys.DYNAMIC_ALPHA: own.alpha, "proximal-mu": own.alpha}
    return told


def _check_private_steps(
    config: Config, key: str, strategy: Strategy, steps: PrivateSGD, told: dict[str, Any]
) -> None:
    owner = f"Config(strategy={key!r})"
    steps.warn_of_seed()
    if isinstance(strategy, FedOpt) and strategy.extensions.find(PrivateLayers):
        raise ValueError(
            f"{owner}: private layers do not go with {steps.name}. Leave them out, or +sgd."
        )
    if not told:
        return
    if told.get(keys.FINAL_LOSS):
        raise ValueError(
            f"{owner}: it needs the clients' loss after training, which {steps.name} does not "
            "tell. Use another strategy, or +sgd."
        )
    try:
        steps.check(ClientSettings.of({**config.values(), **told}))
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
