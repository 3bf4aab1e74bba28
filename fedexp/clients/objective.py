"""What a client descends on: the loss of a minibatch, and what is added to its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedexp.clients.losses import Loss
from fedexp.clients.settings import ClientSettings

Tensors = Mapping[str, Tensor]


def loss_at(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What ``model`` makes of ``inputs``, and the loss of that."""
    outputs = model(inputs)
    if isinstance(outputs, Tensor):
        outputs = outputs.contiguous()  # images may lie channels last, and the loss call ``view``
    return outputs, loss(outputs, targets)


def adjusted(
    grads: Tensors,
    params: Tensors,
    start: Tensors,
    correction: Tensors,
    settings: ClientSettings,
) -> dict[str, Tensor]:
    """``g + c + μ (w - w₀)`` of one client, scaled down to the norm ``max_grad_norm``.

    Groups call it under ``torch.func.vmap``, so no branch looks at a tensor's values. Nothing is
    written in place: two parameters may have one gradient tensor.

    Args:
        grads: ``g`` by name of parameter; a name that is missing stands for zero.
        params: ``w``.
        start: ``w₀``, read if ``μ`` is not 0.
        correction: ``c``, for some of the parameters.
        settings: ``μ`` and the norm.
    """
    found = dict(grads)
    for name, term in correction.items():
        found[name] = found[name] + term if name in found else term.clone()
    if mu := settings.proximal_mu:
        for name, w in params.items():
            term = mu * (w - start[name])
            found[name] = found[name] + term if name in found else term
    if settings.max_grad_norm and found:
        norms = torch.stack([torch.linalg.vector_norm(g) for g in found.values()])
        # The 1e-6 is that of torch.nn.utils.clip_grad_norm_, whose bits these are.
        factor = settings.max_grad_norm / (torch.linalg.vector_norm(norms) + 1e-6)
        found = {name: g * factor.clamp(max=1.0) for name, g in found.items()}
    return found


class Objective:
    """Puts the gradient that a client steps along where the optimizer of a model looks for it.

    Args:
        model: at its first parameters ``w₀``; later at others, ``w``.
        loss: a mean over the batch; its gradient is ``g`` of ``adjusted``.
        settings: see ``adjusted``.
        correction: ``c`` by name of parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: ClientSettings,
        correction: Tensors = MappingProxyType({}),
    ) -> None:
        self.model, self.loss = model, loss
        self.settings, self.correction = settings, correction
        self._plain = settings.plain and not correction
        self._params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        start = self._params if settings.proximal_mu else {}
        self._start = {name: p.detach().clone() for name, p in start.items()}

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a minibatch, whose gradients are then in place."""
        for p in self._params.values():
            p.grad = None
        _, loss = loss_at(self.model, self.loss, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if not self._plain:
            grads = {name: p.grad for name, p in self._params.items() if p.grad is not None}
            here = {name: p.detach() for name, p in self._params.items()}
            new = adjusted(grads, here, self._start, self.correction, self.settings)
            for name, g in new.items():
                self._params[name].grad = g
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


def _write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for x, value in zip(tensors, values, strict=True):
        x.data.copy_(value)
