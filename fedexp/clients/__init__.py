"""Clients: the local loop, and the ClientApp around it."""

from fedexp.clients.client_app import Trainer, client_app
from fedexp.clients.module import load_arrays, module_arrays
from fedexp.clients.training import Examples, LocalTraining, default_loss, evaluate, sgd, train

__all__ = [
    "Examples",
    "LocalTraining",
    "Trainer",
    "client_app",
    "default_loss",
    "evaluate",
    "load_arrays",
    "module_arrays",
    "sgd",
    "train",
]
