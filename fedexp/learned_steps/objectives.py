"""What a step size is judged by, and the derivative of that.

Gradient descent makes ``t`` steps of size ``η`` (or ``η_0, ..., η_{t-1}``) from ``w_0`` to ``w_t``.
Wang, Yuan, Wu & Ge 2021 (arXiv:2006.16495) tune ``η`` on the loss ``f`` at the end, either

- ``naive``: ``F(η) = f(w_t)``. Theorem 3: on quadratics ``F'`` vanishes exponentially in ``t`` for
  small ``η`` and explodes for large ``η``; or
- ``log``: ``F(η) = (1/t) log f(w_t)``. Theorem 4: on quadratics ``F'`` is bounded for all ``t``.

Both follow from ``log f(w_t)`` and its derivative, which stay moderate where ``f`` overflows. So
these two are what every function of this package computes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Objective: TypeAlias = Literal["naive", "log"]
StepSize: TypeAlias = float | Sequence[float] | Tensor
"""One number, or a vector ``[t]`` with one for each local step."""


@dataclass(frozen=True)
class MetaGradient:
    """``log f(w_t)`` and its derivative by the step size: both objectives and their gradients.

    Attributes:
        log_loss: ``log f(w_t)``; ``-inf`` where the loss is 0.
        log_slope: ``d log f(w_t) / dη``, a number ``[]`` or one for each step ``[t]``. It is
            0 where the loss is 0, and where the trajectory was truncated.
        num_steps: ``t``.
        truncated: Whether the trajectory left the region that it was allowed to be in, or ended at
            a loss that is not finite. Then no gradient is known: the step size is too large.

    Example:
        >>> import math
        >>> import torch
        >>> from fedexp.learned_steps import MetaGradient
        >>> found = MetaGradient(math.log(0.5), torch.tensor(-4.0), num_steps=2)
        >>> found.value("log"), found.gradient("log")
        (-0.34657359027997264, tensor(-2.))
        >>> found.value("naive"), found.gradient("naive")
        (0.5, tensor(-2.))
    """

    log_loss: float
    log_slope: Tensor
    num_steps: int
    truncated: bool = False

    def value(self, objective: Objective) -> float:
        """``F(η)``; the naive one is infinite where ``f`` overflows."""
        if objective == "log":
            return self.log_loss / self.num_steps
        return _exp(self.log_loss)

    def gradient(self, objective: Objective) -> Tensor:
        """``F'(η)``, of the shape of ``log_slope``; the naive one may overflow or vanish."""
        if objective == "log":
            return self.log_slope / self.num_steps
        # f' = f · (log f)'. The logarithms are added first: f alone may overflow where f' does not.
        size = self.log_slope.abs().double().log() + self.log_loss
        return (self.log_slope.sign() * size.exp()).to(self.log_slope)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def truncation(step_size: Tensor, num_steps: int) -> MetaGradient:
    """What is known of a trajectory that was truncated: nothing, and so its gradient is 0.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps.objectives import truncation
        >>> truncation(torch.tensor(9.0), num_steps=3).truncated
        True
    """
    return MetaGradient(math.inf, torch.zeros_like(step_size), num_steps, truncated=True)


def checked_step_size(step_size: StepSize, num_steps: int, like: Tensor) -> Tensor:
    """The step size as a tensor ``[]`` or ``[t]`` of the type of ``like``.

    Raises:
        ValueError: There are no steps, or a step size is negative or not finite, or there is
            neither one step size nor one for each step.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps.objectives import checked_step_size
        >>> checked_step_size(0.5, 3, torch.zeros(1))
        tensor(0.5000)
    """
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: at least one local step is needed.")
    eta = torch.as_tensor(step_size, dtype=like.dtype, device=like.device).detach()
    if eta.shape not in {(), (num_steps,)}:
        raise ValueError(
            f"step_size has shape {tuple(eta.shape)}: give one number, or {num_steps} of them."
        )
    if not bool((eta.isfinite() & (eta >= 0)).all()):
        raise ValueError(f"step_size={_shown(eta)}: must be finite and at least 0.")
    return eta


def _shown(eta: Tensor) -> float:
    """The first step size that is wrong: a vector may be long."""
    flat = eta.flatten()
    return float(flat[~(flat.isfinite() & (flat >= 0))][0])
