"""Losses of many clients at once, each with parameters of its own.

A chain of linear and elementwise layers runs on tensors with a client dimension in front, as
batched matrix products; any other module runs under ``torch.func.vmap``, which spends several
times as long on a small layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fedexp.clients.training import Loss, default_loss

Tensors = dict[str, Tensor]

Losses = Callable[[Tensors, Tensor, Tensor], Tensor]
"""``(parameters [clients, ...], inputs [clients, batch, ...], targets) -> losses [clients]``."""

_ELEMENTWISE = {
    nn.ELU,
    nn.GELU,
    nn.Identity,
    nn.LeakyReLU,
    nn.ReLU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
}


def losses_of(module: nn.Module, loss: Loss) -> Losses:
    """The losses of ``module`` under ``loss``, a mean over the batch."""
    layers = _chain(module)
    if layers is None:
        return vmap(lambda params, x, y: loss(functional_call(module, params, (x,)), y))

    def losses(params: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = inputs
        for name, layer in layers:
            outputs = _through(layer, name, params, outputs)
        return _losses(loss, outputs, targets)

    return losses


def _chain(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """Name and layer of each step of ``module``, if these are all it does."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    # A subclass may do anything, so only the very classes count.
    if type(module) is nn.Sequential:
        parts = [_chain(m, f"{prefix}{name}.") for name, m in module.named_children()]
        return None if None in parts else [step for part in parts for step in part or ()]
    known = type(module) in _ELEMENTWISE | {nn.Linear, nn.Flatten}
    return [(prefix, module)] if known else None


def _through(layer: nn.Module, name: str, params: Tensors, x: Tensor) -> Tensor:
    """The outputs of one layer, ``[clients, batch, ...]`` in and out."""
    if isinstance(layer, nn.Flatten):
        start, end = (d + (d >= 0) for d in (layer.start_dim, layer.end_dim))
        return x.flatten(start, end)
    if not isinstance(layer, nn.Linear):
        return layer(x)  # type: ignore[no-any-return]
    weight = params[f"{name}weight"].transpose(1, 2)  # (clients, in, out)
    rows = x.reshape(len(x), -1, layer.in_features)
    if layer.bias is None:
        out = torch.bmm(rows, weight)
    else:
        out = torch.baddbmm(params[f"{name}bias"].unsqueeze(1), rows, weight)
    return out.reshape(*x.shape[:-1], layer.out_features)


def _losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    classes = not targets.is_floating_point() and outputs.dim() == 3
    if loss is not default_loss or not classes:
        return vmap(loss)(outputs, targets)
    each = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    # -100 is a target that PyTorch leaves out, also of the number it divides by.
    return each.view(targets.shape).sum(1) / (targets != -100).sum(1)
