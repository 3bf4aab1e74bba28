"""The named strategies for Flower's older API, ``flwr.server.strategy``.

Each holds its twin of ``fedexp.strategies`` and lets it do the arithmetic. SCAFFOLD, FedDyn
and FedNova have none: a ``NumPyClient`` has no way to receive the server's control variate beside
the model, keeps nothing, and does not report its local work.
"""

from fedexp.strategies.legacy.fedopt import FedOpt
from fedexp.strategies.legacy.presets import (
    FedAdagrad,
    FedAdam,
    FedAnderson,
    FedAvg,
    FedAvgM,
    FedBB,
    FedDoG,
    FedDoWG,
    FedExP,
    FedExPM,
    FedExProx,
    FedHyper,
    FedProx,
    FedProxExP,
    FedScheduleFree,
    FedYogi,
    NesterovExP,
)

__all__ = [
    "FedAdagrad",
    "FedAdam",
    "FedAnderson",
    "FedAvg",
    "FedAvgM",
    "FedBB",
    "FedDoG",
    "FedDoWG",
    "FedExP",
    "FedExPM",
    "FedExProx",
    "FedHyper",
    "FedOpt",
    "FedProx",
    "FedProxExP",
    "FedScheduleFree",
    "FedYogi",
    "NesterovExP",
]
