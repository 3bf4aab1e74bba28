"""Losses of many clients at once, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedexp.clients.groups.chain import Chain, Tensors
from fedexp.clients.losses import Loss
from fedexp.clients.objective import adjusted
from fedexp.clients.settings import ClientSettings

Losses = Callable[[Tensors, Tensor, Tensor], Tensor]
"""``(parameters [clients, ...], inputs [clients, batch, ...], targets) -> losses [clients]``."""


def losses_of(module: nn.Module, loss: Loss) -> Losses:
    """The losses of ``module`` under ``loss``, a mean over the batch.

    A chain runs as batched matrix products; any other module runs under ``torch.func.vmap``,
    which spends several times as long on a small layer.
    """
    chain = Chain.of(module, loss)
    if chain:
        return chain.losses
    return vmap(lambda params, x, y: loss(functional_call(module, params, (x,)), y).reshape(()))


def gradients(
    losses_at: Losses, params: Tensors, inputs: Tensor, targets: Tensor
) -> tuple[Tensors, Tensor]:
    """Each client's gradient and loss.

    No client's loss depends on another's parameters: the gradient of their sum is each one's own.

    Raises:
        RuntimeError: a parameter is not used. Alone it stays as it is, even under weight decay.
    """
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        losses = losses_at(leaves, inputs, targets)
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)), losses.detach()


@dataclass(frozen=True, eq=False)
class StackedObjective:
    """``Objective`` of many clients at once.

    Attributes:
        losses_at: each client's loss.
        settings: what is added to the gradients, see ``adjusted``.
        start: ``w₀``, the same for all, without a client dimension.
        correction: ``c``, ``[clients, ...]``.
    """

    losses_at: Losses
    settings: ClientSettings
    start: Tensors
    correction: Tensors

    def __call__(self, params: Tensors, inputs: Tensor, targets: Tensor) -> tuple[Tensors, Tensor]:
        """What each client's optimizer gets, and its loss."""
        grads, losses = gradients(self.losses_at, params, inputs, targets)
        if self.correction or not self.settings.plain:
            each = vmap(partial(adjusted, settings=self.settings), in_dims=(0, 0, None, 0))
            grads = each(grads, params, self.start, self.correction)
        return grads, losses
