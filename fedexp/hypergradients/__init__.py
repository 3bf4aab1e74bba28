"""Optimizers that descend on their own hyperparameters; they need PyTorch and nothing of fedexp."""

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.presets import (
    HyperAdagrad,
    HyperAdam,
    HyperAdamW,
    HyperRMSprop,
    HyperSGD,
)
from fedexp.hypergradients.rules import SGD, Rule
from fedexp.hypergradients.tower import Tower

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "Hypergradient",
    "RMSprop",
    "Rule",
    "Tower",
]
