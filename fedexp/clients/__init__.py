"""Clients: the local loop, and the ClientApp around it."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.clients.client import Client, Trainer, client_app
    from fedexp.clients.data import Examples
    from fedexp.clients.delta_sgd import DeltaSGD
    from fedexp.clients.fedhyper_sgd import FedHyperSGD, ScheduledSGD
    from fedexp.clients.local_optimizers import LOCAL_OPTIMIZERS, LocalOptimizer, plain_sgd, sgd
    from fedexp.clients.loop import evaluate, train
    from fedexp.clients.losses import default_loss
    from fedexp.clients.metrics import Metrics
    from fedexp.clients.module import load_arrays, module_arrays
    from fedexp.clients.named import as_optimizer
    from fedexp.clients.private_training import PrivateLineSearch, PrivateSGD
    from fedexp.clients.schedules import Schedule, schedule
    from fedexp.clients.settings import ClientSettings, LocalTraining
    from fedexp.hypergradients import (
        SGD,
        Adagrad,
        AdagradRule,
        Adam,
        AdamRule,
        HyperAdagrad,
        HyperAdam,
        HyperAdamW,
        Hypergradient,
        HypergradientOptimizer,
        HyperRMSprop,
        HyperSGD,
        RMSprop,
        RMSpropRule,
        Rule,
        SGDRule,
        Tower,
    )
else:  # so that the settings can be read without PyTorch
    __getattr__, __dir__ = _later(
        __name__,
        "torch",
        LOCAL_OPTIMIZERS="fedexp.clients.local_optimizers",
        SGD="fedexp.hypergradients",
        SGDRule="fedexp.hypergradients",
        Adagrad="fedexp.hypergradients",
        AdagradRule="fedexp.hypergradients",
        Adam="fedexp.hypergradients",
        AdamRule="fedexp.hypergradients",
        Client="fedexp.clients.client",
        ClientSettings="fedexp.clients.settings",
        DeltaSGD="fedexp.clients.delta_sgd",
        Examples="fedexp.clients.data",
        FedHyperSGD="fedexp.clients.fedhyper_sgd",
        HyperAdagrad="fedexp.hypergradients",
        HyperAdam="fedexp.hypergradients",
        HyperAdamW="fedexp.hypergradients",
        HyperRMSprop="fedexp.hypergradients",
        HyperSGD="fedexp.hypergradients",
        Hypergradient="fedexp.hypergradients",
        HypergradientOptimizer="fedexp.hypergradients",
        LocalOptimizer="fedexp.clients.local_optimizers",
        LocalTraining="fedexp.clients.settings",
        Metrics="fedexp.clients.metrics",
        PrivateLineSearch="fedexp.clients.private_training",
        PrivateSGD="fedexp.clients.private_training",
        RMSprop="fedexp.hypergradients",
        RMSpropRule="fedexp.hypergradients",
        Rule="fedexp.hypergradients",
        Schedule="fedexp.clients.schedules",
        ScheduledSGD="fedexp.clients.fedhyper_sgd",
        Tower="fedexp.hypergradients",
        Trainer="fedexp.clients.client",
        as_optimizer="fedexp.clients.named",
        client_app="fedexp.clients.client",
        default_loss="fedexp.clients.losses",
        evaluate="fedexp.clients.loop",
        load_arrays="fedexp.clients.module",
        module_arrays="fedexp.clients.module",
        plain_sgd="fedexp.clients.local_optimizers",
        schedule="fedexp.clients.schedules",
        sgd="fedexp.clients.local_optimizers",
        train="fedexp.clients.loop",
    )

__all__ = [
    "LOCAL_OPTIMIZERS",
    "SGD",
    "Adagrad",
    "AdagradRule",
    "Adam",
    "AdamRule",
    "Client",
    "ClientSettings",
    "DeltaSGD",
    "Examples",
    "FedHyperSGD",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "Hypergradient",
    "HypergradientOptimizer",
    "LocalOptimizer",
    "LocalTraining",
    "Metrics",
    "PrivateLineSearch",
    "PrivateSGD",
    "RMSprop",
    "RMSpropRule",
    "Rule",
    "SGDRule",
    "Schedule",
    "ScheduledSGD",
    "Tower",
    "Trainer",
    "as_optimizer",
    "client_app",
    "default_loss",
    "evaluate",
    "load_arrays",
    "module_arrays",
    "plain_sgd",
    "schedule",
    "sgd",
    "train",
]
