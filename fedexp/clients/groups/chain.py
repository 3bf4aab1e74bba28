"""Models that are a chain of linear and elementwise layers, of one client or of many at once.

For a linear layer ``z = x Wᵀ + b`` and ``δ = ∂L/∂z`` the gradients are ``∂L/∂W = δᵀ x`` and
``∂L/∂b = Σ δ`` over the batch. So a step of plain SGD is one product added to the weights,

    ``W ← (1 - η λ) W - η δᵀ x``,   ``b ← (1 - η λ) b - η Σ δ``,

and the gradient, as large as the model, is never in memory. Every tensor has a client dimension in
front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedexp.clients.known import is_hooked, is_torchs
from fedexp.clients.losses import Loss, each_loss, each_slope

Tensors = dict[str, Tensor]
Products = list[tuple[str, Tensor, Tensor]]

_BLOCK = 3 << 17  # bytes of a weight that stay in a core's cache between two uses
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
_KNOWN = _ELEMENTWISE | {nn.Linear, nn.Flatten}


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of layers and the loss of what comes out of it.

    Attributes:
        layers: prefix of the parameters' names, and layer, in order.
        loss: of a client's outputs and targets.
    """

    layers: Sequence[tuple[str, nn.Module]]
    loss: Loss

    @classmethod
    def of(cls, module: nn.Module, loss: Loss) -> Chain | None:
        """``module`` as a chain; None if it is not known to be one.

        The parameters then enter the loss through the chain's outputs alone: the caller knows
        that (``losses.is_known``), or has compared.
        """
        layers = None if is_hooked(module) else _layers(module)
        if not layers or not any(isinstance(layer, nn.Linear) for _, layer in layers):
            return None
        own = {f"{at}{name}": p for at, layer in layers for name, p in layer.named_parameters()}
        # Else a weight has two names, or the containers hold something of their own.
        whole = own.keys() == dict(module.named_parameters()).keys() and not list(module.buffers())
        usual = all(type(p) is nn.Parameter and p.requires_grad for p in own.values())
        return cls(layers, loss) if whole and usual else None

    def losses(self, params: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each client's loss, ``[clients]``, at its own parameters."""
        outputs = inputs
        for name, layer in self.layers:
            if isinstance(layer, nn.Linear):
                outputs = _own(params, name, outputs)
            else:
                outputs = _between(layer, outputs)
        return each_loss(self.loss, outputs, targets)

    @torch.no_grad()
    def descend(
        self,
        start: Tensors,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        rates: Sequence[float],
        decay: float = 0.0,
    ) -> tuple[Tensors, Tensor]:
        """A step of plain SGD on each batch.

        Args:
            start: ``W`` and ``b``, the same for all clients, without a client dimension. They
                are left as they are.
            batches: inputs and targets of every step, each ``[clients, batch, ...]``.
            rates: ``η`` of each step.
            decay: ``λ``, the weight decay.

        Returns:
            The clients' parameters, ``[clients, ...]``, and the sums of their losses before each
            step, ``[clients]``, float64.
        """
        steps = iter(batches)
        losses, products = self.backward(start, *next(steps))
        total, params = losses.double(), {}
        lr, keep = rates[0], 1 - rates[0] * decay
        # All clients begin at one W, which stays as it is: the first step gives each its own.
        for name, rows, delta in products:
            params[f"{name}weight"] = _moved(start[f"{name}weight"], delta, rows, lr=lr, keep=keep)
            if (bias := start.get(f"{name}bias")) is not None:
                params[f"{name}bias"] = torch.add(bias * keep, delta.sum(1), alpha=-lr)
        for lr, batch in zip(rates[1:], steps, strict=True):
            keep = 1 - lr * decay
            losses, products = self._backward(partial(_own, params), *batch)
            total += losses
            for name, rows, delta in products:
                # In place, since no graph holds W: only its outputs were given to autograd.
                params[f"{name}weight"].baddbmm_(delta.mT, rows, beta=keep, alpha=-lr)
                if (bias := params.get(f"{name}bias")) is not None:
                    bias.mul_(keep).sub_(delta.sum(1), alpha=lr)
        return params, total

    def backward(self, start: Tensors, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Products]:
        """Each client's loss at parameters that all share; and its gradient, in factors.

        The latter are, for every linear layer, the prefix of its parameters' names, ``x`` and
        ``δ``, both ``[clients, rows, ...]``.
        """
        return self._backward(partial(_shared, start), inputs, targets)

    def _backward(
        self, linear: Callable[[str, Tensor], Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Products]:
        outputs = inputs
        taps: Products = []
        with torch.enable_grad():
            for name, layer in self.layers:
                if not isinstance(layer, nn.Linear):
                    outputs = _between(layer, outputs)
                    continue
                rows, outputs = outputs.detach(), linear(name, outputs)
                if not taps:  # no parameter asks for its gradient: autograd begins here
                    outputs.requires_grad_()
                taps.append((name, _flat(rows), outputs))
        # ∂L/∂outputs has a closed form for known losses. From there autograd goes back through the
        # layers, and stops at each z: that is δ. It makes no gradient of a weight.
        losses, slope = each_slope(self.loss, outputs.detach(), targets)
        zs = [z for _, _, z in taps]
        deltas = [slope] if outputs is zs[0] else torch.autograd.grad(outputs, zs, slope)
        found = zip(taps, deltas, strict=True)
        return losses, [(name, rows, _flat(delta)) for (name, rows, _), delta in found]


def _layers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """Prefix and layer of each step of ``module``, if these are all it does."""
    if not is_torchs(module):
        return None
    # A subclass may do anything, so only the very classes count.
    if type(module) is nn.Sequential:
        # Not named_children(), which leaves out a layer that comes a second time.
        children = module._modules.items()
        parts = [_layers(m, f"{prefix}{name}.") for name, m in children if m is not None]
        return None if None in parts else [step for part in parts for step in part or ()]
    return [(prefix, module)] if type(module) in _KNOWN else None


def _shared(params: Tensors, name: str, x: Tensor) -> Tensor:
    """``x Wᵀ + b`` with one ``W`` and ``b`` for all clients."""
    return functional.linear(x, params[f"{name}weight"], params.get(f"{name}bias"))


def _own(params: Tensors, name: str, x: Tensor) -> Tensor:
    """``x Wᵀ + b`` with each client's own ``W`` and ``b``."""
    weight, bias = params[f"{name}weight"], params.get(f"{name}bias")
    if bias is None:
        out = torch.bmm(_flat(x), weight.mT)
    else:
        out = torch.baddbmm(bias.unsqueeze(1), _flat(x), weight.mT)
    return out.reshape(*x.shape[:-1], weight.shape[1])


def _between(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Flatten):
        start, end = (d + (d >= 0) for d in (layer.start_dim, layer.end_dim))
        return x.flatten(start, end)
    # What a linear layer gave out is still needed as it was.
    return layer(x.clone() if getattr(layer, "inplace", False) else x)  # type: ignore[no-any-return]


def _flat(x: Tensor) -> Tensor:
    """``[clients, rows, width]``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _moved(weight: Tensor, delta: Tensor, rows: Tensor, *, lr: float, keep: float) -> Tensor:
    """``keep · W - η δᵀ x`` of every client, each block of ``W`` copied and moved on at once."""
    new = weight.new_empty(len(rows), *weight.shape)
    on_cpu = weight.device.type == "cpu"
    size = max(1, _BLOCK // weight[0].nbytes) if on_cpu else len(weight)
    for lo in range(0, len(weight), size):
        some = slice(lo, lo + size)
        torch.baddbmm(
            weight[some].expand(len(rows), -1, -1),
            delta[..., some].mT,
            rows,
            beta=keep,
            alpha=-lr,
            out=new[:, some],
        )
    return new
