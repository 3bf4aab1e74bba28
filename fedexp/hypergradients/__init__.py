"""Optimizers that descend on their own hyperparameters; they need PyTorch and nothing of fedexp."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = _later(
        __name__,
        "torch",
        SGD="fedexp.hypergradients.rules",
        Adagrad="fedexp.hypergradients.adaptive_rules",
        AdagradRule="fedexp.hypergradients.adaptive_rules",
        Adam="fedexp.hypergradients.adaptive_rules",
        AdamRule="fedexp.hypergradients.adaptive_rules",
        HyperAdagrad="fedexp.hypergradients.presets",
        HyperAdam="fedexp.hypergradients.presets",
        HyperAdamW="fedexp.hypergradients.presets",
        HyperRMSprop="fedexp.hypergradients.presets",
        HyperSGD="fedexp.hypergradients.presets",
        Hypergradient="fedexp.hypergradients.optimizer",
        HypergradientOptimizer="fedexp.hypergradients.optimizer",
        RMSprop="fedexp.hypergradients.adaptive_rules",
        RMSpropRule="fedexp.hypergradients.adaptive_rules",
        Rule="fedexp.hypergradients.rules",
        SGDRule="fedexp.hypergradients.rules",
        Tower="fedexp.hypergradients.tower",
    )

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
