"""The quadratic of the paper, and small models with data, for the tests of learned step sizes."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedexp.learned_steps import Quadratic, loss_of

MODELS = {
    "logistic": lambda: nn.Linear(5, 3),
    "mlp": lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)),
}


def federated_client(name, num_batches=7, dtype=torch.float64):
    """A loss, first weights and batches; and those of a validation part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MODELS[name]().to(dtype)
        data = [
            (torch.randn(4, 5, dtype=dtype), torch.randint(3, (4,))) for _ in range(num_batches + 2)
        ]
    weights = {k: v.detach() for k, v in model.named_parameters()}
    return loss_of(model, cross_entropy), weights, data[:num_batches], data[num_batches:]


def published(dtype=torch.float64):
    """The quadratic of the paper's experiments, d = 20."""
    r = np.random.default_rng(0)
    x, w0 = r.normal(size=(20, 20)), r.normal(size=20)
    return Quadratic(torch.tensor(x.T @ x, dtype=dtype), torch.tensor(w0, dtype=dtype))


def as_model(x, y):
    """Least squares as a model: its loss on all rows, and its first weights."""

    def loss(weights, batch):
        return ((x @ weights["w"] - y) ** 2).mean() / 2

    return loss, {"w": torch.zeros(x.shape[1], dtype=x.dtype)}
