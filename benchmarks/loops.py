"""Federated averaging by hand, in one process or two: the practical limit of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.workloads import EXAMPLES, LR, SEED, Workload

NUM_PROCESSES = 2


class Loop:
    """Clients one after the other, and the weighted sum of their models."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.module = workload.model()
        self.names = [name for name, _ in self.module.named_parameters()]
        self.params = list(self.module.parameters())
        self.inputs, self.targets = workload.data()

    @torch.no_grad()
    def sums(self, start: list[Tensor], clients: Sequence[int], t: int, out: list[Tensor]) -> None:
        """Write ``Σ nᵢ wᵢ`` over ``clients`` of round ``t`` to ``out``."""
        torch._foreach_zero_(out)
        for client in clients:
            torch._foreach_copy_(self.params, start)
            rows = self.workload.rows(client)
            self._steps(rows[torch.from_numpy(self.workload.batches(client, t))])
            torch._foreach_add_(out, self.params, alpha=EXAMPLES)

    @torch.enable_grad()
    def _steps(self, batches: Tensor) -> None:
        for rows in batches:
            grads = torch.autograd.grad(self._loss(rows), self.params)
            with torch.no_grad():
                torch._foreach_add_(self.params, grads, alpha=-LR)

    def _loss(self, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.module(self.inputs[rows]), self.targets[rows])


class UsualLoop(Loop):
    """The steps as ClientApps write them: an optimizer per client, ``backward``, ``step``."""

    @torch.enable_grad()
    def _steps(self, batches: Tensor) -> None:
        optimizer = torch.optim.SGD(self.params, lr=LR)
        for rows in batches:
            optimizer.zero_grad()
            loss = self._loss(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()


class Sequential:
    """One process."""

    def __init__(self, workload: Workload, loop: type[Loop] = Loop) -> None:
        self.workload, self.loop = workload, loop(workload)
        self.model = [p.detach().clone() for p in self.loop.params]
        self.total = [torch.zeros_like(p) for p in self.model]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def round(self, t: int) -> list[int]:
        """Take round ``t``; the clients that trained."""
        clients = _draw(self.workload, t)
        self.loop.sums(self.model, clients, t, self.total)
        self._average(len(clients))
        return clients

    def arrays(self) -> list[Any]:
        """The model, in the order of its parameters."""
        return [w.numpy().copy() for w in self.model]

    def _average(self, num_clients: int) -> None:
        torch._foreach_copy_(self.model, self.total)
        torch._foreach_div_(self.model, EXAMPLES * num_clients)


class Bare(Sequential):
    """Two persistent processes; the model and the sums are in memory they share."""

    def __init__(self, workload: Workload, loop: type[Loop] = Loop) -> None:
        super().__init__(workload, loop)
        context = torch.multiprocessing.get_context("fork")
        self.outs = [
            [torch.zeros_like(w).share_memory_() for w in self.model] for _ in range(NUM_PROCESSES)
        ]
        for w in self.model:
            w.share_memory_()
        self.pipes, self.processes = [], []
        for out in self.outs:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(self.loop, self.model, out, theirs), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()

    def round(self, t: int) -> list[int]:
        """Take round ``t``; the clients that trained."""
        clients = _draw(self.workload, t)
        for i, pipe in enumerate(self.pipes):
            pipe.send((clients[i::NUM_PROCESSES], t))
        for pipe in self.pipes:
            pipe.recv()
        torch._foreach_copy_(self.total, self.outs[0])
        for out in self.outs[1:]:
            torch._foreach_add_(self.total, out)
        self._average(len(clients))
        return clients


def _work(loop: Loop, model: list[Tensor], out: list[Tensor], pipe: Any) -> None:
    while task := pipe.recv():
        loop.sums(model, *task, out)
        pipe.send(True)


def _draw(workload: Workload, t: int) -> list[int]:
    rng = np.random.default_rng([SEED, t])
    return [int(i) for i in rng.choice(workload.num_clients, workload.cohort, replace=False)]
