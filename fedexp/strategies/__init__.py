"""Flower strategies and the server rules they are made of."""

from fedexp.strategies.adaptive_presets import (
    FedExP,
    FedExPM,
    FedExProx,
    FedHyper,
    FedProxExP,
    NesterovExP,
    ScaffoldExP,
)
from fedexp.strategies.algorithm_presets import FedDyn, FedNova
from fedexp.strategies.anderson import Anderson
from fedexp.strategies.averages import MeanOfLast, MovingAverage, PolynomialAverage, average_named
from fedexp.strategies.barzilai_borwein import BarzilaiBorwein
from fedexp.strategies.directions import Adagrad, Adam, Identity, Momentum, Yogi
from fedexp.strategies.distance_over_gradients import (
    DistanceOverGradients,
    DistanceOverWeightedGradients,
)
from fedexp.strategies.evaluation import BothIterates, MeanOfIterates, MeanOfLastTwo
from fedexp.strategies.extensions import Adapted, Extension, Received, RoundInProgress, Sent
from fedexp.strategies.extrapolation import Extrapolation, RunningExtrapolation
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.line_search import LineSearch
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.optimization_presets import (
    FedAnderson,
    FedBB,
    FedDoG,
    FedDoWG,
    FedScheduleFree,
)
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.presets import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Scaffold,
)
from fedexp.strategies.private import CentralPrivacy
from fedexp.strategies.private_clients import LocalPrivacy
from fedexp.strategies.proximal import GradientDiversity, StochasticPolyak, proximal_step
from fedexp.strategies.robustness import FixedClip, QuantileClip
from fedexp.strategies.running_ratio import RunningRatio
from fedexp.strategies.schedule_free import ScheduleFree
from fedexp.strategies.step_sizes import Capped, Constant, HypergradientStep, Relaxed
from fedexp.strategies.table import STRATEGIES
from fedexp.strategies.trust_region import TrustRegion
from fedexp.strategies.waiting import Waiting

# Names of earlier versions; each is the same object.
Diversity, Hypergradient, Polyak = GradientDiversity, HypergradientStep, StochasticPolyak

__all__ = [
    "STRATEGIES",
    "Adagrad",
    "Adam",
    "Adapted",
    "Anderson",
    "BarzilaiBorwein",
    "BothIterates",
    "Capped",
    "CentralPrivacy",
    "Constant",
    "DistanceOverGradients",
    "DistanceOverWeightedGradients",
    "Diversity",
    "Extension",
    "Extrapolation",
    "FedAdagrad",
    "FedAdam",
    "FedAnderson",
    "FedAvg",
    "FedAvgM",
    "FedBB",
    "FedDoG",
    "FedDoWG",
    "FedDyn",
    "FedExP",
    "FedExPM",
    "FedExProx",
    "FedHyper",
    "FedNova",
    "FedOpt",
    "FedProx",
    "FedProxExP",
    "FedScheduleFree",
    "FedYogi",
    "FixedClip",
    "GradientDiversity",
    "Hypergradient",
    "HypergradientStep",
    "Identity",
    "LineSearch",
    "LocalPrivacy",
    "MeanOfIterates",
    "MeanOfLast",
    "MeanOfLastTwo",
    "MedianBounds",
    "Momentum",
    "MovingAverage",
    "NesterovExP",
    "Polyak",
    "PolynomialAverage",
    "QuantileClip",
    "Received",
    "Relaxed",
    "RoundInProgress",
    "RunningExtrapolation",
    "RunningRatio",
    "Scaffold",
    "ScaffoldExP",
    "ScheduleFree",
    "Sent",
    "ServerOptimizer",
    "StochasticPolyak",
    "TrustRegion",
    "Waiting",
    "Yogi",
    "average_named",
    "proximal_step",
]
