"""Optimizers that descend on their own hyperparameters; they need PyTorch and nothing of fedexp."""

from fedexp.hypergradients.adaptive_rules import (
    Adagrad,
    AdagradRule,
    Adam,
    AdamRule,
    RMSprop,
    RMSpropRule,
)
from fedexp.hypergradients.optimizer import Hypergradient, HypergradientOptimizer
from fedexp.hypergradients.presets import (
    HyperAdagrad,
    HyperAdam,
    HyperAdamW,
    HyperRMSprop,
    HyperSGD,
)
from fedexp.hypergradients.rules import SGD, Rule, SGDRule
from fedexp.hypergradients.tower import Tower

__all__ = [
    "SGD",
    "Adagrad",
    "AdagradRule",
    "Adam",
    "AdamRule",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "Hypergradient",
    "HypergradientOptimizer",
    "RMSprop",
    "RMSpropRule",
    "Rule",
    "SGDRule",
    "Tower",
]
