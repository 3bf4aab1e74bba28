"""Gradient descent on the step size.

Wang, Yuan, Wu & Ge 2021 (arXiv:2006.16495): ``η_{k+1} = max(0, η_k - μ_k F'(η_k))`` with
``μ_k = μ/√k``. Theorem 4: with the log objective on a quadratic this finds the unique minimiser.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedexp.learned_steps.models import (
    Batch,
    LossOnBatch,
    MetaLoss,
    Weights,
    first_of,
    model_meta_gradient,
)
from fedexp.learned_steps.objectives import MetaGradient, Objective, StepSize, checked_step_size

Tasks: TypeAlias = Callable[[Tensor], Sequence[MetaGradient]]
"""The meta-gradients of one or more tasks at a step size."""


@dataclass(frozen=True)
class MetaDescent:
    """How a step size is tuned.

    ``linear``: ``η ← max(0, η - μ/√k · F'(η))``, as in the paper.
    ``log``: ``log η ← log η - μ/√k · G / max |G|`` with ``G = η F'(η) = dF/d log η``.
    Ours: of one step size only the sign of the gradient counts, so that a step size that is a
    hundred times too small, where ``G`` is a hundred times too small as well, grows as fast as any.

    Where the trajectories of all tasks were truncated there is no gradient, and ``η ← β η``. The
    paper's algorithm would stand still.

    Attributes:
        objective: ``F``: ``log`` or ``naive``.
        num_meta_steps: How often ``η`` moves.
        rate: ``μ``, the first meta step size; in units of ``log η`` on the log scale.
        scale: ``linear`` or ``log``.
        back_off: ``β``, between 0 and 1.

    Raises:
        ValueError: One of them is out of its range.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import MetaDescent
        >>> MetaDescent(scale="linear", rate=0.01).after(torch.tensor(0.1), torch.tensor(2.0), k=4)
        tensor(0.0900)
    """

    objective: Objective = "log"
    num_meta_steps: int = 20
    rate: float = 0.5
    scale: Literal["linear", "log"] = "log"
    back_off: float = 0.5

    def __post_init__(self) -> None:
        rules = {
            "objective": (self.objective in ("log", "naive"), "must be log or naive"),
            "scale": (self.scale in ("linear", "log"), "must be linear or log"),
            "num_meta_steps": (
                isinstance(self.num_meta_steps, int) and self.num_meta_steps >= 1,
                "must be a whole number of at least 1",
            ),
            "rate": (0 < self.rate < math.inf, "must be above 0 and finite"),
            "back_off": (0 < self.back_off < 1, "must be between 0 and 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"MetaDescent({name}={getattr(self, name)!r}): {rule}.")

    def after(self, eta: Tensor, gradient: Tensor, k: int) -> Tensor:
        """``η`` after meta-step ``k`` = 1, 2, ... along ``gradient``."""
        rate = self.rate / math.sqrt(k)
        if self.scale == "linear":
            # A gradient may be infinite: that of the naive objective overflows.
            return (eta - (rate * gradient).nan_to_num()).clamp(min=0)
        by_log = (eta * gradient).nan_to_num()
        largest = by_log.abs().max()
        return eta * (-rate * by_log / largest).exp() if largest > 0 else eta


@dataclass(frozen=True)
class LearnedStepSize:
    """A step size and how it was found.

    Attributes:
        step_size: ``η`` after the last meta-step, ``[]`` or ``[t]``.
        path: ``η`` before each meta-step.
        values: ``F(η)`` at each of them; infinite where all trajectories were truncated.
        num_truncated: In how many meta-steps all of them were.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import LearnedStepSize
        >>> LearnedStepSize(torch.tensor(0.5), [torch.tensor(1.0)], [2.0], 0).best()
        tensor(1.)
    """

    step_size: Tensor
    path: list[Tensor]
    values: list[float]
    num_truncated: int

    def best(self) -> Tensor:
        """The step size on the path at which ``F`` was least; the last where none was finite."""
        if min(self.values) == math.inf:
            return self.step_size
        return self.path[min(range(len(self.path)), key=self.values.__getitem__)]


def descend(tasks: Tasks, first: Tensor, settings: MetaDescent) -> LearnedStepSize:
    """Tune a step size on the mean objective of tasks.

    Args:
        tasks: The meta-gradients of all tasks at a step size.
        first: ``η_0``, ``[]`` or ``[t]``.
        settings: How.

    Raises:
        ValueError: A step size is 0 on the log scale, on which it would stay so, or there are no
            tasks.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import MetaDescent, Quadratic, descend, meta_gradient
        >>> bowl = Quadratic(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(2))
        >>> settings = MetaDescent(num_meta_steps=100)
        >>> found = descend(lambda eta: [meta_gradient(bowl, eta, 80)], torch.tensor(0.1), settings)
        >>> round(float(found.best()), 2)  # Near 2 / (1 + 3), the best for many steps.
        0.5
    """
    if settings.scale == "log" and not bool((first > 0).all()):
        raise ValueError("step_size=0: it never moves on the log scale. Begin above 0.")
    eta, path, values, num_truncated = first, [], [], 0
    for k in range(1, settings.num_meta_steps + 1):
        found = tasks(eta)
        if not found:
            raise ValueError("descend: tasks gave no meta-gradient. Give at least one task.")
        path.append(eta)
        values.append(sum(x.value(settings.objective) for x in found) / len(found))
        if all(x.truncated for x in found):
            num_truncated += 1
            eta = eta * settings.back_off
            continue
        gradients = torch.stack([x.gradient(settings.objective) for x in found])
        eta = settings.after(eta, gradients.mean(0), k)
    return LearnedStepSize(eta, path, values, num_truncated)


def learned_step_size(
    loss: LossOnBatch,
    meta_loss: MetaLoss,
    weights: Weights,
    batches: Sequence[Batch],
    step_size: StepSize,
    settings: MetaDescent,
    *,
    max_norm: float = math.inf,
    symmetric: bool = False,
) -> LearnedStepSize:
    """Tune the size of the local steps of a model, from its weights, on given batches.

    This is what a client calls: ``loss_of(model, criterion)`` is the loss, and the loss at the end
    is ``mean_loss(loss, batches)`` (train-by-train) or that of other batches (train-by-validation).

    Args:
        loss: The loss of the steps, of the parameters and a batch.
        meta_loss: The loss at the end, of the parameters.
        weights: ``w_0`` by name; they are not modified.
        batches: One for each of the ``t`` steps.
        step_size: ``η`` to begin with, one number or ``[t]``.
        settings: The meta-descent.
        max_norm: The norm of the weights from which on a trajectory is truncated.
        symmetric: As of `model_meta_gradient`.

    Raises:
        ValueError: As `model_meta_gradient`.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import MetaDescent, learned_step_size
        >>> loss = lambda w, x: (w["a"] - x) ** 2 + 1
        >>> found = learned_step_size(
        ...     loss,
        ...     lambda w: loss(w, 0.0),
        ...     {"a": torch.tensor(1.0)},
        ...     batches=[0.0],
        ...     step_size=5e-3,  # A hundred times too small: 0.5 goes to the minimum at once.
        ...     settings=MetaDescent(num_meta_steps=40),
        ... )
        >>> round(float(found.best()), 2)
        0.5
    """

    def task(eta: Tensor) -> list[MetaGradient]:
        found = model_meta_gradient(
            loss, meta_loss, weights, batches, eta, max_norm=max_norm, symmetric=symmetric
        )
        return [found]

    like = first_of(weights)
    return descend(task, checked_step_size(step_size, len(batches), like), settings)
