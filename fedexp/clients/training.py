"""The local loop: a fixed number of minibatch steps on a client's own examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedexp.clients.descent import Descent
from fedexp.clients.groups.chain import Chain
from fedexp.clients.known import is_hooked
from fedexp.clients.losses import Loss, classes_for, is_known
from fedexp.clients.module import layout_of
from fedexp.clients.objective import Objective, loss_at

Score = Callable[[Any, Tensor], Mapping[str, float]]
"""``(outputs, targets) -> values`` by name, see ``Metrics``."""


class Optimizer(Protocol):
    """What the loop needs of a local optimizer: any of `torch.optim`'s will do."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Move the parameters along their gradients."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of a dataset that belong to one client; the dataset is shared, not copied.

    Attributes:
        inputs: ``[num_rows, ...]``, of the whole dataset.
        targets: ``[num_rows, ...]``: classes as integers, or values as floats.
        rows: indices of the client's rows; all of them if None.

    Raises:
        ValueError: inputs and targets that are no tensors of one length.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor)):
            kinds = f"{type(self.inputs).__name__}, {type(self.targets).__name__}"
            raise ValueError(f"Examples({kinds}): must be tensors. Use torch.as_tensor.")
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"Examples(targets=[{len(self.targets)}]): must be as many as inputs, "
                f"{len(self.inputs)}."
            )

    def __len__(self) -> int:
        return len(self.targets if self.rows is None else self.rows)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets at ``positions`` among the client's own rows."""
        return self.rows_at(self.at(positions))

    def rows_at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets at ``rows`` of the whole dataset, a vector."""
        return self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def at(self, positions: Tensor) -> Tensor:
        """Rows of the dataset at ``positions`` among the client's own."""
        return positions if self.rows is None else self.rows[positions]


@dataclass(frozen=True)
class LocalTraining:
    """What a client does with the model it gets.

    Attributes:
        num_steps: ``τ``, minibatch steps; not epochs.
        batch_size: examples a step.
        lr: ``η_l`` of this round.
        weight_decay: factor of the parameters added to their gradient.
        max_grad_norm: gradients are scaled down to this norm; 0 for no clipping.
        proximal_mu: ``μ`` of FedProx, which adds ``μ/2 ‖w - w₀‖²`` to the loss, ``w₀`` being the
            parameters received. Li et al. 2020, arXiv:1812.06127.
        optimizer: the local optimizer, as ``named`` takes it.
        hyper_lr: ``κ``, with which the learning rate is tuned, for the optimizers that have one.
        hyper_height: levels of the tower above the weights; the topmost rate is ``κ`` throughout.
    """

    num_steps: int = 20
    batch_size: int = 32
    lr: float = 0.01
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    proximal_mu: float = 0.0
    optimizer: str = "sgd"
    hyper_lr: float = 0.1
    hyper_height: int = 1

    @property
    def plain(self) -> bool:
        """Whether the optimizer gets the gradients as they are."""
        return not (self.proximal_mu or self.max_grad_norm)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From kebab-case keys; ``learning-rate`` decays by ``learning-rate-decay`` every round.

        ``η_l(t) = learning-rate · learning-rate-decay^t`` in round ``t = 1, 2, …``: the first
        round is decayed already, as in the FedExP authors' code. A key that is no setting is the
        app's own.

        Raises:
            ValueError: a key is so near to a setting that it must be a slip.
        """
        _check_keys(frozenset(config))
        decay = config.get("learning-rate-decay", 1.0) ** config.get("server-round", 0)
        given = {
            name: type(getattr(cls, name))(config[key])
            for key, name in KEYS.items()
            if key in config
        }
        return cls(**{**given, "lr": given.get("lr", cls.lr) * decay})

    def batches(self, num_examples: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Positions of every step's batch, ``[num_steps, batch_size]``.

        The examples are shuffled, gone through, shuffled again and so on; a batch may run from
        one pass into the next, so every batch is full even for a client smaller than a batch.

        Raises:
            ValueError: there are no examples.
        """
        if not num_examples:
            raise ValueError("the client has no training examples. Give it some, or no partition.")
        wanted = self.num_steps * self.batch_size
        passes = -(-wanted // num_examples)
        order = [rng.permutation(num_examples) for _ in range(passes)]
        return np.concatenate(order)[:wanted].reshape(self.num_steps, self.batch_size)


KEYS = {
    "local-steps": "num_steps",
    "batch-size": "batch_size",
    "learning-rate": "lr",
    "weight-decay": "weight_decay",
    "max-grad-norm": "max_grad_norm",
    "proximal-mu": "proximal_mu",
    "local-optimizer": "optimizer",
    "hyper-learning-rate": "hyper_lr",
    "hyper-height": "hyper_height",
}
"""Setting to attribute of ``LocalTraining``."""

_OTHER_KEYS = ("learning-rate-decay", "server-round", "seed", "hyper-between-rounds", "final-loss")


@lru_cache(maxsize=64)
def _check_keys(keys: frozenset[str]) -> None:
    known = (*KEYS, *_OTHER_KEYS)
    for key in sorted(keys.difference(known)):
        if near := get_close_matches(key, known, 1, cutoff=0.9):
            raise ValueError(
                f"LocalTraining({key}): no such setting. Did you mean {near[0]!r}? "
                "A key of your own needs a name less like it."
            )


def train(
    model: nn.Module,
    examples: Examples,
    settings: LocalTraining,
    optimizer: Optimizer,
    loss_fn: Loss,
    rng: np.random.Generator,
    correction: Mapping[str, Tensor] = MappingProxyType({}),
) -> float:
    """Take the local steps; the mean of the minibatch losses, each before its step.

    The gradient ``g`` of a minibatch becomes ``g + correction + μ (w - w₀)``, is clipped, and goes
    to the optimizer; see ``LocalTraining`` for ``μ`` and ``ControlVariates`` for ``correction``.
    """
    model.train()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    params = list(named.values())
    batches = batches_of(model, examples, settings, rng)
    descent = plain_descent(optimizer, settings, correction)
    known = descent and descent.covers(model) and is_known(loss_fn)
    if descent and known and (chain := Chain.of(model, loss_fn)):
        first = {name: p.data for name, p in named.items()}
        alone = ((x[None], y[None]) for x, y in batches)
        after, total = chain.descend(first, alone, lr=descent.lr, decay=descent.decay)
        for name, p in named.items():
            p.data = after[name][0]
        return float(total) / settings.num_steps
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    objective = Objective(model, loss_fn, correction, settings.proximal_mu, settings.max_grad_norm)
    if is_hooked(model):
        descent = None  # some hooks run only where gradients are stored in the parameters
    closes = getattr(optimizer, "same_batch", False) or _needs_closure(type(optimizer))
    for batch in batches:
        if descent:
            _, loss = loss_at(model, loss_fn, *batch)
            descent.step(torch.autograd.grad(loss, params, allow_unused=True))
        elif closes:
            loss = optimizer.step(objective.closure(*batch))  # type: ignore[call-arg]
        else:
            loss = objective(*batch)
            optimizer.step()
        total += loss.detach().squeeze()
    return float(total) / settings.num_steps


@lru_cache(maxsize=64)
def _needs_closure(optimizer: type[Optimizer]) -> bool:
    """Whether a step evaluates the loss itself, as that of L-BFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def plain_descent(
    optimizer: Optimizer, settings: LocalTraining, correction: Mapping[str, Tensor]
) -> Descent | None:
    """``optimizer``, if it is plain SGD and gets the gradients as they are."""
    plain = settings.plain and not correction
    return optimizer if isinstance(optimizer, Descent) and plain else None


def batches_of(
    model: nn.Module, examples: Examples, settings: LocalTraining, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of every step, where and how the model wants them."""
    device, layout = next(model.parameters()).device, layout_of(model)
    for rows in examples.at(torch.from_numpy(settings.batches(len(examples), rng))):
        inputs, targets = (x.to(device) for x in examples.rows_at(rows))
        yield layout(inputs), targets


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
