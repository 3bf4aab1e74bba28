"""Losses of many clients at once, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedexp.clients.chain import Chain, Tensors
from fedexp.clients.losses import Loss

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
    return vmap(lambda params, x, y: loss(functional_call(module, params, (x,)), y))
