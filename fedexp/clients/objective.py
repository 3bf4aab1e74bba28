"""What a client descends on: the loss of a minibatch, and what is added to its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedexp.clients.losses import Loss


def loss_at(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What ``model`` makes of ``inputs``, and the loss of that."""
    outputs = model(inputs)
    if isinstance(outputs, Tensor):
        outputs = outputs.contiguous()  # images may lie channels last, and the loss call ``view``
    return outputs, loss(outputs, targets)


class Objective:
    """Puts ``g + c + μ (w - w₀)``, clipped, where the optimizer of a model looks for gradients.

    Args:
        model: at its first parameters ``w₀``; later at others, ``w``.
        loss: ``g`` is its gradient.
        correction: ``c`` by name of parameter.
        proximal_mu: ``μ``.
        max_grad_norm: gradients are scaled down to this norm; 0 for no clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        correction: Mapping[str, Tensor] = MappingProxyType({}),
        proximal_mu: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> None:
        self.model, self.loss, self.correction = model, loss, correction
        self.proximal_mu, self.max_grad_norm = proximal_mu, max_grad_norm
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._start = {n: p.detach().clone() for n, p in self.params.items() if proximal_mu}

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a minibatch, whose gradients are then in place."""
        for p in self.params.values():
            p.grad = None
        _, loss = loss_at(self.model, self.loss, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, term in self.correction.items():
            _add(self.params[name], term)
        for name, w in self._start.items():
            p = self.params[name]
            _add(p, self.proximal_mu * (p.detach() - w))
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.params.values(), self.max_grad_norm)
        return loss.detach()

    def closure(self, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
        """The same for optimizers that look at one minibatch at several parameters.

        All calls get the random numbers of the first, and only that one writes to buffers.
        """
        buffers, numbers, calls = list(self.model.buffers()), torch.get_rng_state(), count()
        before = [x.clone() for x in buffers]

        def evaluate() -> Tensor:
            if not next(calls):
                return self(inputs, targets)
            after = [x.clone() for x in buffers]
            _write(buffers, before)
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(numbers)
                loss = self(inputs, targets)
            _write(buffers, after)
            return loss

        return evaluate


def _add(param: nn.Parameter, term: Tensor) -> None:
    param.grad = term.clone() if param.grad is None else param.grad.add_(term)


def _write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for x, value in zip(tensors, values, strict=True):
        x.data.copy_(value)
