"""Losses of many clients at once, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedexp.clients.groups.chain import Chain, Tensors
from fedexp.clients.losses import Loss
from fedexp.clients.training import LocalTraining

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
        settings: ``μ``, and the norm that gradients are cut to.
        start: ``w₀``, the same for all, without a client dimension.
        correction: ``c``, ``[clients, ...]``.
    """

    losses_at: Losses
    settings: LocalTraining
    start: Tensors
    correction: Tensors

    def __call__(self, params: Tensors, inputs: Tensor, targets: Tensor) -> tuple[Tensors, Tensor]:
        """What each client's optimizer gets, and its loss."""
        grads, losses = gradients(self.losses_at, params, inputs, targets)
        for name, term in self.correction.items():
            grads[name] = grads[name] + term
        if mu := self.settings.proximal_mu:
            grads = {k: g + mu * (params[k] - self.start[k]) for k, g in grads.items()}
        if self.settings.max_grad_norm:
            grads = _clipped(grads, self.settings.max_grad_norm)
        return grads, losses


def _clipped(grads: Tensors, max_norm: float) -> Tensors:
    norms = (
        torch.stack([g.square().reshape(len(g), -1).sum(1) for g in grads.values()]).sum(0).sqrt()
    )
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    return {
        name: g * factors.view(-1, *[1] * (g.dim() - 1)).to(g.dtype) for name, g in grads.items()
    }
