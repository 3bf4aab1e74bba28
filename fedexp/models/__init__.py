"""Models by name, and a module for a dataset from any of them or from a user's own."""

from fedexp.models.building import build, of_shape, suited
from fedexp.models.networks import (
    MODELS,
    CharLSTM,
    ResidualBlock,
    char_lstm,
    cnn,
    emnist_cnn,
    linear,
    mlp,
    resnet18,
)

__all__ = [
    "MODELS",
    "CharLSTM",
    "ResidualBlock",
    "build",
    "char_lstm",
    "cnn",
    "emnist_cnn",
    "linear",
    "mlp",
    "of_shape",
    "resnet18",
    "suited",
]
