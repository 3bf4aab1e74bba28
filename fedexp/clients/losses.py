"""Losses: of one client's batch, and of the batches of many clients at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from fedexp.clients.known import is_hooked, is_torchs

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(outputs, targets) -> scalar``, a mean over the batch."""

_LEFT_OUT = -100  # a target that PyTorch ignores, also in the number it divides by


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for classes (integers of any kind), mean squared error for values.

    A last dimension of one that only outputs or only targets have is dropped.

    Raises:
        ValueError: outputs that are no tensor, or of another shape: nothing is broadcast.

    Example:
        >>> import torch
        >>> from fedexp.clients import default_loss
        >>> float(default_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])))
        2.0
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"default_loss(outputs={type(outputs).__name__}): must be a tensor. Return one from "
            "forward, or give client_app a loss for what it returns."
        )
    if targets.is_floating_point():
        return functional.mse_loss(*_alike(outputs, targets))
    classes = classes_for(outputs, targets)
    if classes is None:
        raise ValueError(
            f"default_loss(outputs={list(outputs.shape)}, targets={list(targets.shape)}): outputs "
            "must be [batch, num_classes], a score for every class of each target."
        )
    return functional.cross_entropy(outputs, classes)


def classes_for(outputs: object, targets: Tensor) -> Tensor | None:
    """``targets`` as the int64 classes that ``outputs`` score; None if they are not."""
    if targets.is_floating_point() or not isinstance(outputs, Tensor) or outputs.dim() < 2:
        return None
    wanted = outputs.shape[:1] + outputs.shape[2:]
    if targets.shape == (*wanted, 1):
        targets = targets.squeeze(-1)
    return targets.long() if targets.shape == wanted else None


def _alike(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if targets.shape == (*outputs.shape, 1):
        targets = targets.squeeze(-1)
    elif outputs.shape == (*targets.shape, 1):
        outputs = outputs.squeeze(-1)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"default_loss(outputs={list(outputs.shape)}, targets={list(targets.shape)}): must "
            "have one shape. Return one number per target, or give client_app a loss of your own."
        )
    return outputs, targets


def is_known(loss: Loss) -> bool:
    """Whether ``loss`` is the default or PyTorch's own: it reads outputs and targets alone."""
    if isinstance(loss, nn.Module):
        return is_torchs(loss) and not is_hooked(loss)
    return loss is default_loss or getattr(loss, "__module__", "") == "torch.nn.functional"


def each_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each client, ``[clients]``; both tensors are ``[clients, batch, ...]``."""
    if len(outputs) == 1:
        return loss(outputs[0], targets[0]).reshape(1)
    if not _is_cross_entropy(loss, outputs, targets):
        return vmap(loss)(outputs, targets).reshape(len(outputs))
    each = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape).sum(1) / (targets != _LEFT_OUT).sum(1)


def each_slope(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each client, ``[clients]``, and its gradient in ``outputs``.

    Of cross-entropy over ``n`` targets it is ``(softmax(z) - onehot(y)) / n``, which takes
    half of autograd's time where tensors are small.
    """
    if not _is_cross_entropy(loss, outputs, targets):
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses = each_loss(loss, leaf.clone(), targets)  # which it may write to
            (slope,) = torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)
        return losses.detach(), slope
    counted = targets != _LEFT_OUT
    shares = (counted.to(outputs.dtype) / counted.sum(1, keepdim=True)).unsqueeze(2)
    classes = targets.where(counted, 0).unsqueeze(2)
    logs = functional.log_softmax(outputs, 2)
    losses = -(logs.gather(2, classes) * shares).sum((1, 2))
    slope = logs.exp_().mul_(shares).scatter_add_(2, classes, -shares)
    return losses, slope


def _is_cross_entropy(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    classes = targets.dtype == torch.int64 and (outputs.dim(), targets.dim()) == (3, 2)
    return loss is default_loss and classes
