"""Clients: the local loop, and the ClientApp around it."""

from fedexp.clients.client_app import client_app
from fedexp.clients.delta_sgd import DeltaSGD
from fedexp.clients.local_optimizers import LOCAL_OPTIMIZERS, LocalOptimizer, as_optimizer, sgd
from fedexp.clients.losses import default_loss
from fedexp.clients.metrics import Metrics
from fedexp.clients.module import load_arrays, module_arrays
from fedexp.clients.scheduled_sgd import ScheduledSGD
from fedexp.clients.schedules import Schedule, schedule
from fedexp.clients.trainer import Trainer
from fedexp.clients.training import Examples, LocalTraining, evaluate, train
from fedexp.hypergradients import (
    SGD,
    Adagrad,
    Adam,
    HyperAdagrad,
    HyperAdam,
    HyperAdamW,
    Hypergradient,
    HyperRMSprop,
    HyperSGD,
    RMSprop,
    Rule,
    Tower,
)

__all__ = [
    "LOCAL_OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "DeltaSGD",
    "Examples",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "Hypergradient",
    "LocalOptimizer",
    "LocalTraining",
    "Metrics",
    "RMSprop",
    "Rule",
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
    "schedule",
    "sgd",
    "train",
]
