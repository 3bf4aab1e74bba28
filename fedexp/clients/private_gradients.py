"""Losses and gradients of single examples, which privacy clips one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedexp.clients.arguments import one_line
from fedexp.clients.losses import Loss
from fedexp.privacy.mechanisms import clipped

Floats = NDArray[np.float64]
_MOST = 1 << 24  # numbers in the gradients of the examples that are looked at together


class PerExample:
    """A model and a loss, example by example; every example is a batch of one.

    So no layer can mix examples, and the loss of an example is that of its own outputs alone.

    Args:
        module: in whose parameters the weights stand.
        loss: ``(outputs, targets) -> scalar``.

    Raises:
        ValueError: a layer mixes examples, counts over them, or draws random numbers.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        for layer in module.modules():
            if _mixes(layer):
                raise ValueError(
                    f"private training (layer={type(layer).__name__}): it mixes examples, or draws "
                    "random numbers. Use a model without it, e.g. with GroupNorm."
                )
        self.params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.size = sum(p.numel() for p in self.params.values())

        def loss_of(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(module, params, (x.unsqueeze(0),))
            return loss(outputs, y.unsqueeze(0)).squeeze()

        self._losses = vmap(loss_of, in_dims=(None, 0, 0))
        self._grads = vmap(grad(loss_of), in_dims=(None, 0, 0))

    def losses(self, inputs: Tensor, targets: Tensor, step: Floats | None = None) -> Floats:
        """The loss of every example, ``[num_examples]``, at the weights less ``step``."""
        if not len(targets):
            return np.zeros(0)
        with torch.no_grad(), _named():
            params: dict[str, Tensor] = {**self.params} if step is None else self._moved(step)
            return np.asarray(self._losses(params, inputs, targets).double().cpu().numpy())

    def sum_of_clipped(self, inputs: Tensor, targets: Tensor, max_norm: float) -> Floats:
        """The sum of the examples' gradients, each clipped to ``max_norm``: ``[size]``."""
        total = np.zeros(self.size)
        rows = max(1, _MOST // max(1, self.size))
        params = {name: p.detach() for name, p in self.params.items()}
        for low, high in pairwise([*range(0, len(targets), rows), len(targets)]):
            with _named():
                found = self._grads(params, inputs[low:high], targets[low:high])
            flat = torch.cat([found[name].flatten(1) for name in params], dim=1)
            total += clipped(flat.double().cpu().numpy(), max_norm).sum(axis=0)
        return total

    def move(self, step: Floats) -> None:
        """Write the weights less ``step``."""
        for name, new in self._moved(step).items():
            self.params[name].data = new

    def _moved(self, step: Floats) -> dict[str, Tensor]:
        first, moved = 0, {}
        for name, p in self.params.items():
            part = step[first : first + p.numel()].reshape(p.shape)
            moved[name] = p.detach() - torch.from_numpy(part).to(p)
            first += p.numel()
        return moved


class _named:
    """Says in one line what PyTorch cannot do with one example at a time."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise ValueError(
                f"private training: gradients of single examples fail: {one_line(error)}. "
                "Use another model."
            ) from error


def _mixes(layer: nn.Module) -> bool:
    norms = nn.modules.batchnorm._NormBase
    counts = isinstance(layer, norms) and (
        isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.track_running_stats
    )
    return counts or isinstance(layer, nn.modules.dropout._DropoutNd)
