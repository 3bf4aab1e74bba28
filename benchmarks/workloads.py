"""What is trained: four models on made-up data, the same in every system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LR = 0.01
SEED = 0
ROWS = 2000  # of the dataset that all clients draw their examples from
EXAMPLES = 50  # a client


@dataclass(frozen=True)
class Workload:
    """One column of the table.

    Attributes:
        layers: makes the model.
        shape: of an input.
        num_clients: registered.
        cohort: clients that train in a round.
        steps: of plain SGD, each client and round.
        batch: examples a step.
    """

    title: str
    layers: Callable[[], nn.Module]
    shape: tuple[int, ...]
    num_clients: int
    cohort: int
    steps: int
    batch: int

    def model(self) -> nn.Module:
        """With its seeded initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.layers()

    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs and classes of all rows; made once per process."""
        return _data(self.shape)

    def rows(self, client: int) -> Tensor:
        """The rows of a client's examples."""
        return _rows(client)

    def batches(self, client: int, server_round: int) -> NDArray[np.int64]:
        """Positions among the client's rows, ``[steps, batch]``: those of fedexp's own trainer."""
        rng = np.random.default_rng([SEED, server_round, client])
        rng.integers(2**63)  # the trainer's seed for dropout
        passes = -(-self.steps * self.batch // EXAMPLES)
        order = np.concatenate([rng.permutation(EXAMPLES) for _ in range(passes)])
        return order[: self.steps * self.batch].reshape(self.steps, self.batch)


@cache
def _data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(SEED)
    inputs = torch.randn(ROWS, *shape, generator=rng)
    return inputs, torch.randint(10, (ROWS,), generator=rng)


@lru_cache(maxsize=2048)  # not a million of them
def _rows(client: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([SEED, client]).integers(ROWS, size=EXAMPLES))


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(60, 10))


def _wide() -> nn.Module:
    hidden = nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(1024, 10))


WORKLOADS = {
    "W1": Workload("small CNN", _cnn, (1, 28, 28), 100, 20, 5, 20),
    "W2": Workload("MLP 784-100-10", _mlp, (784,), 1000, 100, 5, 10),
    "W3": Workload("logistic 60-10", _linear, (60,), 1000, 100, 10, 10),
    "W4": Workload("MLP 3072-1024-1024-10", _wide, (3072,), 100, 20, 1, 8),
}
