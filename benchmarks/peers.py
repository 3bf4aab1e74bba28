"""Other federated-learning libraries on the same rounds, each with its own engine.

Both take one client after the other, as both do by default, with all cores for a step. Batches are
cut as in every other system, not by the library's data loader: the engines are compared. FedLab
would bring a newer torch without the versions of constraints.txt.

pip install -c constraints.txt fedjax fedlab
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.loops import _draw
from benchmarks.workloads import LR, Workload


class FedJAX:
    """FedJAX's ``for_each_client``, compiled as it is by default, and its sum of models.

    Its ``tree_mean`` needs jax < 0.6, which is slower.
    """

    def __init__(self, workload: Workload) -> None:
        import fedjax
        import jax

        self.workload = workload
        self.inputs, self.targets = (x.numpy() for x in workload.data())
        module = workload.model()
        self.model = [jax.numpy.array(p.detach().numpy()) for p in module.parameters()]
        self.total, self.finish = fedjax.tree_util.tree_sum, jax.block_until_ready
        step = _sgd(_logits(module))
        with fedjax.for_each_client_backend("jit"):
            self.train = fedjax.for_each_client(lambda model, _: model, step)

    def round(self, t: int) -> list[int]:
        """Take round ``t``; the clients that trained."""
        clients = _draw(self.workload, t)
        outputs = self.train(self.model, ((i, self._batches(i, t), ()) for i in clients))
        total = self.total(model for _, model in outputs)
        self.model = self.finish([w / len(clients) for w in total])
        return clients

    def arrays(self) -> list[Any]:
        """The model, in the order of its parameters."""
        return [np.asarray(w) for w in self.model]

    def _batches(self, client: int, t: int) -> Iterator[dict[str, Any]]:
        rows = self.workload.rows(client).numpy()
        for positions in self.workload.batches(client, t):
            batch = rows[positions]
            yield {"x": self.inputs[batch], "y": self.targets[batch]}


def _sgd(logits: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    import jax

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        log_p = jax.nn.log_softmax(logits(model, batch["x"]))
        return -jax.numpy.take_along_axis(log_p, batch["y"][:, None], axis=1).mean()

    def step(model: Any, batch: dict[str, Any]) -> Any:
        return [w - LR * g for w, g in zip(model, jax.grad(loss)(model, batch), strict=True)]

    return step


def _logits(module: nn.Module) -> Callable[[Any, Any], Any]:
    """The layers of ``module`` in JAX, on weights of torch's order and shapes."""
    import jax

    def conv(x: Any, weight: Any, bias: Any) -> Any:  # [batch, channel, height, width]
        return jax.lax.conv(x, weight, (1, 1), "VALID") + bias[:, None, None]

    def pool(x: Any) -> Any:
        size = 1, 1, 2, 2
        return jax.lax.reduce_window(x, -jax.numpy.inf, jax.lax.max, size, size, "VALID")

    layers: dict[type[nn.Module], Callable[..., Any]] = {
        nn.Conv2d: conv,
        nn.MaxPool2d: pool,
        nn.ReLU: jax.nn.relu,
        nn.Flatten: lambda x: x.reshape(len(x), -1),
        nn.Linear: lambda x, weight, bias: x @ weight.T + bias,
    }

    def logits(model: Any, x: Any) -> Any:
        left = iter(model)
        for layer in module.children():
            x = layers[type(layer)](x, *(next(left) for _ in layer.parameters()))
        return x

    return logits


class FedLab:
    """FedLab's standalone simulation: its FedAvg handler, serial trainer, and this as a dataset."""

    def __init__(self, workload: Workload) -> None:
        algorithm = _fedlab()
        torch.set_num_threads(os.cpu_count() or 1)
        fraction = workload.cohort / workload.num_clients
        self.workload = workload
        self.handler = algorithm.FedAvgServerHandler(workload.model(), sys.maxsize, fraction)
        self.handler.num_clients = workload.num_clients
        self.trainer = algorithm.FedAvgSerialClientTrainer(workload.model(), workload.num_clients)
        self.trainer.setup_optim(1, workload.batch, LR)
        self.trainer.setup_dataset(self)
        self.t = 0

    def round(self, t: int) -> list[int]:
        """Take round ``t`` as ``StandalonePipeline.main`` does; the clients that trained."""
        self.t, clients = t, _draw(self.workload, t)
        self.trainer.local_process(self.handler.downlink_package, clients)
        for pack in self.trainer.uplink_package:
            self.handler.load(pack)
        return clients

    def arrays(self) -> list[Any]:
        """The model, in the order of its parameters."""
        return [p.detach().numpy().copy() for p in self.handler.model.parameters()]

    def get_dataloader(self, client: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a client's round; what FedLab asks of a dataset."""
        inputs, targets = self.workload.data()
        rows = self.workload.rows(client)
        for positions in torch.from_numpy(self.workload.batches(client, self.t)):
            batch = rows[positions]
            yield inputs[batch], targets[batch]


def _fedlab() -> Any:
    # FedLab imports torchvision for datasets that are not used here, and torchvision's usual
    # wheel does not import beside a torch for CPUs.
    sys.modules["torchvision"] = MagicMock()
    try:
        from fedlab.contrib import algorithm
    finally:
        del sys.modules["torchvision"]
    return algorithm
