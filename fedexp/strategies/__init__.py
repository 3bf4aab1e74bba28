"""Flower strategies and the server rules they are made of."""

from fedexp.strategies.evaluation import MeanOfLastTwo
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.presets import STRATEGIES, FedAvg, FedExP
from fedexp.strategies.rules import (
    Capped,
    Constant,
    Extrapolation,
    Identity,
    ServerOptimizer,
)

__all__ = [
    "STRATEGIES",
    "Capped",
    "Constant",
    "Extrapolation",
    "FedAvg",
    "FedExP",
    "FedOpt",
    "Identity",
    "MeanOfLastTwo",
    "ServerOptimizer",
]
