"""FedExP on the synthetic regression, against the formula in plain NumPy.

20 clients of 30 rows, d = 1000, 20 local steps of 0.1, full participation, ε = 0
(Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604; table of settings of its synthetic experiment).
"""

import numpy as np
import pytest
import torch
from builders import partition, record
from flwr.app import MetricRecord
from torch import nn

from fedexp.clients import Examples, client_app
from fedexp.datasets.synthetic import regression
from fedexp.records import from_record
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedAvg, FedExP

M, ROWS, D, TAU, LR = 20, 30, 1000, 20, 0.1
DATA = regression(num_clients=M, num_rows=ROWS, num_features=D, seed=3, dtype=torch.float64)


def slow(extrapolate, num_rounds):
    """Every client's full-batch gradient descent written out; losses after each round, and η."""
    x = DATA.train[0].numpy().reshape(M, ROWS, D)
    y = DATA.train[1].numpy().reshape(M, ROWS)
    w, losses, etas = np.zeros(D), [], []
    for _ in range(num_rounds):
        updates = []
        for i in range(M):
            local = w.copy()
            for _ in range(TAU):
                local -= LR * 2 / ROWS * x[i].T @ (x[i] @ local - y[i])
            updates.append(w - local)
        mean = sum(updates) / M
        eta = 1.0
        if extrapolate:
            eta = max(1.0, sum(u @ u for u in updates) / (2 * M * (mean @ mean)))
        w = w - eta * mean
        etas.append(eta)
        losses.append(sum(np.mean((x[i] @ w - y[i]) ** 2) for i in range(M)) / M)
    return losses, etas


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(D, dtype=torch.float64))

    def forward(self, x):
        return x @ self.w


def examples(context):
    own = torch.arange(partition(context) * ROWS, (partition(context) + 1) * ROWS)
    return (Examples(*DATA.train, own),) * 2


def loss_of(_, arrays):
    w = from_record(arrays)["w"]
    x, y = (t.numpy() for t in DATA.train)
    return MetricRecord({"loss": float(np.mean((x @ w - y) ** 2))})


@pytest.mark.parametrize(
    ("strategy", "extrapolate", "num_rounds"),
    [(FedExP(epsilon=0.0), True, 10), (FedAvg(), False, 3)],
)
def test_training_losses_are_those_of_the_formula(strategy, extrapolate, num_rounds):
    # A batch of all 30 rows: every step is a full gradient, so no draw enters.
    settings = {"local-steps": TAU, "batch-size": ROWS, "learning-rate": LR}
    grid = SerialGrid(client_app(lambda _: Linear(), examples), M, run_config=settings)
    strategy.fraction_evaluate = 0.0
    model = record({"w": np.zeros(D)})
    result = strategy.start(grid, model, num_rounds=num_rounds, evaluate_fn=loss_of)

    losses, etas = slow(extrapolate, num_rounds)
    rounds = range(1, num_rounds + 1)
    got = [result.evaluate_metrics_serverapp[t]["loss"] for t in rounds]
    steps = [result.train_metrics_clientapp[t]["server-step-size"] for t in rounds]
    np.testing.assert_allclose(got, losses, rtol=1e-6)
    np.testing.assert_allclose(steps, etas, rtol=1e-6)
    if extrapolate:
        assert max(steps) > 2  # the case is one in which the rule matters
