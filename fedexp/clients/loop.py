"""The local loop, plain: every other way to train a client is held against this one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedexp.clients.data import Examples, batches_of
from fedexp.clients.losses import Loss, classes_for
from fedexp.clients.module import layout_of
from fedexp.clients.objective import Objective, loss_at
from fedexp.clients.settings import ClientSettings

Score = Callable[[Any, Tensor], Mapping[str, float]]
"""``(outputs, targets) -> values`` by name, see ``Metrics``."""


class Optimizer(Protocol):
    """What the loop needs of a local optimizer: any of `torch.optim`'s will do."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Move the parameters along their gradients."""
        ...


def train(
    model: nn.Module,
    examples: Examples,
    settings: ClientSettings,
    optimizer: Optimizer,
    loss_fn: Loss,
    rng: np.random.Generator,
    correction: Mapping[str, Tensor] = MappingProxyType({}),
) -> float:
    """Take the local steps; the mean of the minibatch losses, each before its step.

    The gradient ``g`` of a minibatch becomes ``g + correction + μ (w - w₀)``, is clipped, and goes
    to the optimizer; see ``ClientSettings`` for ``μ`` and ``ControlVariates`` for ``correction``.

    Args:
        model: is trained in place.
        examples: of the client.
        settings: how many steps, on how many examples, and what is added to the loss.
        optimizer: of the parameters of ``model``.
        loss_fn: a mean over the batch.
        rng: draws the batches, and then what seeds their augmentations.
        correction: by name of parameter.

    Raises:
        ValueError: a schedule of the learning rate for an optimizer that has none, or an
            augmentation that cannot change these inputs.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from torch import nn
        >>> from fedexp.clients import ClientSettings, Examples, train
        >>> model, settings = nn.Linear(2, 1), ClientSettings(num_steps=50, lr=0.1)
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> sgd = torch.optim.SGD(model.parameters(), settings.lr)
        >>> loss = train(model, Examples(x, x.sum(1)), settings, sgd,
        ...     lambda outputs, y: (outputs[:, 0] - y).square().mean(), np.random.default_rng(0))
        >>> bool(((model(x)[:, 0] - 1).abs() < 0.1).all())
        True
    """
    model.train()
    objective = Objective(model, loss_fn, settings, correction)
    looks = any(getattr(optimizer, name, False) for name in ("same_batch", "needs_loss"))
    closes = looks or _needs_closure(type(optimizer))
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    set_rates = _schedule(optimizer, settings) if settings.rate_varies else None
    _told(optimizer, "train")
    for step, batch in enumerate(batches_of(model, examples, settings, rng)):
        if set_rates:
            set_rates(step)
        if closes:
            loss = optimizer.step(objective.closure(*batch))  # type: ignore[call-arg]
        else:
            loss = objective(*batch)
            optimizer.step()
        total += loss.detach().squeeze()
    _told(optimizer, "eval")
    return float(total) / settings.num_steps


def _told(optimizer: Optimizer, mode: str) -> None:
    """Have schedule-free optimizers put the point where gradients are taken, or their average.

    Both are where the model's parameters are, and the client returns the average.
    """
    if change := getattr(optimizer, mode, None):
        change()


def _schedule(optimizer: Optimizer, settings: ClientSettings) -> Callable[[int], None]:
    """Sets the learning rate of a local step: that of each group times the schedule's factor."""
    groups = optimizer.param_groups
    key, value = "learning-rate-exponent", settings.lr_exponent or 0.0
    if settings.step_scheduler:
        key, value = "local-scheduler", settings.step_scheduler  # type: ignore[assignment]
    # Rprop reads it before its first step alone.
    if any("lr" not in group for group in groups) or isinstance(optimizer, torch.optim.Rprop):
        raise ValueError(
            f"ClientSettings({key}={value!r}): {type(optimizer).__name__} takes no learning rate "
            "for every step. Leave it out."
        )
    firsts = [(group, group["lr"]) for group in groups]
    if settings.step_scheduler:  # which may have rates of its own, as that of its lowest point
        factors = [rate / settings.lr if settings.lr else 0.0 for rate in settings.rates()]
    else:
        factors = replace(settings, lr=1.0).rates()

    def set_rates(step: int) -> None:
        for group, first in firsts:
            group["lr"] = first * factors[step]

    return set_rates


@lru_cache(maxsize=64)
def _needs_closure(optimizer: type[Optimizer]) -> bool:
    """Whether a step evaluates the loss itself, as that of L-BFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


@torch.no_grad()
def evaluate(
    model: nn.Module,
    examples: Examples,
    loss_fn: Loss,
    batch_size: int = 1024,
    metrics: Score | None = None,
) -> dict[str, float]:
    """Mean ``loss`` over ``examples``, ``accuracy`` if outputs score classes, and ``metrics``.

    Args:
        model: on any device.
        examples: what to test on.
        loss_fn: a mean over a batch.
        batch_size: examples at a time.
        metrics: of all outputs and all targets, on the CPU.

    Raises:
        ValueError: there are no examples.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fedexp.clients import Examples, evaluate
        >>> scores = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> evaluate(model, Examples(scores, torch.tensor([0, 0])), nn.CrossEntropyLoss())
        {'loss': 1.126928..., 'accuracy': 0.5}
    """
    if not len(examples):
        raise ValueError("there are no examples to test on. Give some (local-test-fraction).")
    model.eval()
    loss, correct, labels = 0.0, 0, 0
    kept: list[Any] = []
    device, layout = next(model.parameters()).device, layout_of(model)
    for positions in torch.split(torch.arange(len(examples)), batch_size):
        inputs, targets = (x.to(device) for x in examples.take(positions))
        outputs, mean = loss_at(model, loss_fn, layout(inputs), targets)
        loss += float(mean) * len(positions)
        if (classes := classes_for(outputs, targets)) is not None:
            correct += int((outputs.argmax(1) == classes).sum())
            labels += classes.numel()
        if metrics:
            kept.append(outputs)
    accuracy = {"accuracy": correct / labels} if labels else {}
    own = metrics(_joined(kept), examples.take(torch.arange(len(examples)))[1]) if metrics else {}
    return {"loss": loss / len(examples)} | accuracy | dict(own)


def _joined(parts: list[Any]) -> Any:
    """Outputs of batches as those of one; a list where they cannot be put together."""
    first = parts[0]
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    try:
        return torch.cat([part.cpu() for part in parts])
    except (RuntimeError, AttributeError, TypeError):
        return parts
