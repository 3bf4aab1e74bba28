"""Losses: of one client's batch, and of the batches of many clients at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import vmap
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(outputs, targets) -> scalar``, a mean over the batch."""

_LEFT_OUT = -100  # a target that PyTorch ignores, also in the number it divides by


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for classes (int64), mean squared error for values."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs, targets)
    return functional.cross_entropy(outputs, targets)


def each_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each client, ``[clients]``, where all tensors are ``[clients, batch, ...]``."""
    classes = not targets.is_floating_point() and outputs.dim() == 3
    if len(outputs) == 1:
        return loss(outputs[0], targets[0])[None]
    if loss is not default_loss or not classes:
        return vmap(loss)(outputs, targets)
    each = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape).sum(1) / (targets != _LEFT_OUT).sum(1)
