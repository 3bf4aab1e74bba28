"""The meta-gradient through the local steps of any PyTorch model.

The model is a function of a dictionary of parameters, as in `torch.func`; the steps are
``w_{k+1} = w_k - η_k ∇f_k(w_k)``, where ``f_k`` is the loss on the batch of step ``k``. One
`torch.func.jvp` of the gradient gives the gradient and a Hessian-vector product together. No graph
is kept from one step to the next.

The tangent, and the adjoint, obey linear equations, and so they are rescaled at every step as in
`fedexp.learned_steps.linear`. The weights cannot be rescaled: the step of a model is not linear in
them. A trajectory that leaves the ball of radius ``max_norm`` is truncated as in the paper, and
its meta-gradient is 0: the step size backs off instead (`fedexp.learned_steps.descent`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jvp

from fedexp.learned_steps.objectives import (
    MetaGradient,
    StepSize,
    checked_step_size,
    truncation,
)

Weights: TypeAlias = dict[str, Tensor]
Batch: TypeAlias = Any
LossOnBatch: TypeAlias = Callable[[Weights, Batch], Tensor]
MetaLoss: TypeAlias = Callable[[Weights], Tensor]
_Product: TypeAlias = Callable[[LossOnBatch, Batch, Weights, Weights], tuple[Weights, Weights]]


def loss_of(model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor]) -> LossOnBatch:
    """The loss of a module as a function of its parameters and a batch ``(x, y)``.

    Buffers are those of the module. A layer that updates them in ``forward``, as batch norm does in
    training mode, has to be in evaluation mode.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fedexp.learned_steps import loss_of
        >>> model = nn.Linear(2, 1, bias=False)
        >>> loss = loss_of(model, nn.functional.mse_loss)
        >>> loss({"weight": torch.ones(1, 2)}, (torch.ones(3, 2), torch.zeros(3, 1)))
        tensor(4.)
    """

    def loss(weights: Weights, batch: Batch) -> Tensor:
        x, y = batch
        return criterion(functional_call(model, weights, (x,)), y)

    return loss


def mean_loss(loss: LossOnBatch, batches: Sequence[Batch]) -> MetaLoss:
    """``w ↦`` the mean of the loss over batches, for the end of the trajectory.

    Train-by-train takes the batches of the steps; train-by-validation takes others.

    Raises:
        ValueError: There are no batches.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import mean_loss
        >>> mean_loss(lambda w, x: (w["a"] - x) ** 2, [0.0, 2.0])({"a": torch.tensor(0.0)})
        tensor(2.)
    """
    if not len(batches):
        raise ValueError("mean_loss(batches=[]): at least one batch is needed.")
    return lambda weights: torch.stack([loss(weights, batch) for batch in batches]).mean()


def model_meta_gradient(
    loss: LossOnBatch,
    meta_loss: MetaLoss,
    weights: Weights,
    batches: Sequence[Batch],
    step_size: StepSize,
    *,
    max_norm: float = math.inf,
    symmetric: bool = False,
) -> MetaGradient:
    """The meta-gradient of ``meta_loss(w_t)`` by the size of the steps on ``loss``.

    One step size: the tangent ``v = dw/dη`` goes forward beside the weights,
    ``v⁺ = v - η H_k v - ∇f_k(w_k)``, and the memory does not depend on ``t``. (Derived.)

    One for each step: the adjoint ``a_k = a_{k+1} - η_k H_k a_{k+1}`` goes backward and
    ``dF/dη_k = -⟨a_{k+1}, ∇f_k(w_k)⟩``. Every ``√t``-th of the weights is kept and those between
    are computed again: about ``2√t`` times the weights, and one more gradient a step. (Derived.)

    Args:
        loss: ``f_k(w)``, of the parameters and a batch.
        meta_loss: The loss at the end, of the parameters; above 0.
        weights: ``w_0`` by name; they are not modified.
        batches: One for each step: ``t`` is their number.
        step_size: ``η``, one number or ``[t]``.
        max_norm: The norm of all weights from which on a trajectory is truncated.
        symmetric: Whether what PyTorch returns as the gradient of ``f_k`` is one. It is not where
            ``detach``, a straight-through estimate or ``padding_idx`` has a part in it. Then the
            products are computed by reverse mode twice, on small models several times as fast.

    Raises:
        ValueError: There are no batches or no weights, ``max_norm`` is not above 0, a step size is
            negative or not finite, or the loss at the end is negative.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import model_meta_gradient
        >>> loss = lambda w, x: (w["a"] - x) ** 2
        >>> start = {"a": torch.tensor(1.0)}
        >>> model_meta_gradient(loss, lambda w: loss(w, 0.0), start, [0.0, 0.0], 0.25).log_slope
        tensor(-16.)
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm}: must be above 0.")
    like = first_of(weights)
    start = {k: v.detach() for k, v in weights.items()}
    eta = checked_step_size(step_size, len(batches), like)
    through = _backward if eta.dim() else _forward
    product = _by_reverse_mode if symmetric else _by_forward_mode
    found = through(_Steps(loss, product, max_norm), meta_loss, start, batches, eta)
    return found or truncation(eta, len(batches))


def first_of(weights: Weights) -> Tensor:
    """One of the weights, whose type and device are those of all.

    Raises:
        ValueError: there are none.
    """
    if not weights:
        raise ValueError("weights={}: there is nothing to move.")
    return next(iter(weights.values()))


@dataclass(frozen=True)
class _Steps:
    """The loss of the steps, how its derivatives are computed, and how far they may go."""

    loss: LossOnBatch
    product: _Product
    max_norm: float

    def gradient(self, batch: Batch, w: Weights) -> Weights:
        found: Weights = grad(self.loss)(w, batch)
        return found

    def gradient_and_product(self, batch: Batch, w: Weights, v: Weights) -> tuple[Weights, Weights]:
        """``∇f(w)`` and ``H v``."""
        return self.product(self.loss, batch, w, v)

    def are_inside(self, w: Weights) -> bool:
        return _norm(w) < self.max_norm


def _forward(
    steps: _Steps, meta_loss: MetaLoss, w: Weights, batches: Sequence[Batch], eta: Tensor
) -> MetaGradient | None:
    # The tangent is v · exp(log_scale), so that what enters it is multiplied by exp(-log_scale).
    v, log_scale, rate = {k: torch.zeros_like(x) for k, x in w.items()}, 0.0, float(eta)
    for batch in batches:
        g, hv = steps.gradient_and_product(batch, w, v)
        v = _sum(v, (-rate, hv), (-math.exp(-log_scale), g))
        w = _sum(w, (-rate, g))
        if not steps.are_inside(w):
            return None
        # Only down: a factor above 1 would make exp(-log_scale) overflow, and nothing better.
        size = max(_size(v), 1.0)
        v, log_scale = {k: x / size for k, x in v.items()}, log_scale + math.log(size)
    end = _end(meta_loss, w)
    if end is None:
        return None
    slope = _dot(end[1], v) * math.exp(min(log_scale, 700.0))
    return _checked(end[0], eta.new_tensor(slope), len(batches))


def _backward(
    steps: _Steps, meta_loss: MetaLoss, w: Weights, batches: Sequence[Batch], eta: Tensor
) -> MetaGradient | None:
    every = math.isqrt(len(batches) - 1) + 1
    rates, kept = eta.tolist(), []
    for k, batch in enumerate(batches):
        if k % every == 0:
            kept.append(w)
        w = _sum(w, (-rates[k], steps.gradient(batch, w)))
        if not steps.are_inside(w):
            return None
    end = _end(meta_loss, w)
    if end is None:
        return None
    a, log_scale, slopes = end[1], 0.0, [0.0] * len(batches)
    for first in reversed(range(0, len(batches), every)):
        block = range(first, min(first + every, len(batches)))
        path = [kept.pop()]
        for k in block[:-1]:
            path.append(_sum(path[-1], (-rates[k], steps.gradient(batches[k], path[-1]))))
        for k in reversed(block):
            g, ha = steps.gradient_and_product(batches[k], path.pop(), a)
            slopes[k] = -_dot(a, g) * math.exp(min(log_scale, 700.0))
            a = _sum(a, (-rates[k], ha))
            size = _size(a) or 1.0
            a, log_scale = {n: x / size for n, x in a.items()}, log_scale + math.log(size)
    return _checked(end[0], eta.new_tensor(slopes), len(batches))


def _by_forward_mode(
    loss: LossOnBatch, batch: Batch, w: Weights, v: Weights
) -> tuple[Weights, Weights]:
    """``∇f(w)`` and ``H v``, by forward mode over reverse mode: for whatever PyTorch returns."""
    gradient, product = jvp(lambda x: grad(loss)(x, batch), (w,), (v,))[:2]
    # Forward mode returns float64 where a parameter without dimensions meets a Python number.
    return gradient, {k: x.to(w[k].dtype) for k, x in product.items()}


def _by_reverse_mode(
    loss: LossOnBatch, batch: Batch, w: Weights, v: Weights
) -> tuple[Weights, Weights]:
    """``∇f(w)`` and ``Hᵀ v``, which is ``H v`` if ``H`` is symmetric."""
    leaves = {k: x.detach().requires_grad_() for k, x in w.items()}
    with torch.enable_grad():
        gradient = _slopes([loss(leaves, batch)], leaves, None, create_graph=True)
        # What does not depend on the weights, such as the slope of a line, has no graph.
        curved = {k: g for k, g in gradient.items() if g.requires_grad}
        if curved:
            product = _slopes([*curved.values()], leaves, [v[k] for k in curved])
        else:
            product = {k: torch.zeros_like(x) for k, x in w.items()}
    return {k: g.detach() for k, g in gradient.items()}, product


def _slopes(
    outputs: list[Tensor], leaves: Weights, along: list[Tensor] | None, create_graph: bool = False
) -> Weights:
    found = torch.autograd.grad(
        outputs, [*leaves.values()], along, create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _end(meta_loss: MetaLoss, w: Weights) -> tuple[float, Weights] | None:
    """``log f(w_t)`` and its gradient; None where ``f(w_t)`` is not finite."""
    gradient, loss = grad_and_value(meta_loss)(w)
    value = float(loss)
    if value < 0:
        raise ValueError(f"The loss at the end is {value}: its logarithm needs one above 0.")
    if not math.isfinite(value):
        return None
    if value == 0:
        return -math.inf, {k: torch.zeros_like(x) for k, x in gradient.items()}
    return math.log(value), {k: x / value for k, x in gradient.items()}


def _checked(log_loss: float, slope: Tensor, num_steps: int) -> MetaGradient | None:
    """None where the derivative is not finite: a loss overflowed on the way."""
    return MetaGradient(log_loss, slope, num_steps) if bool(slope.isfinite().all()) else None


def _sum(x: Weights, *terms: tuple[float, Weights]) -> Weights:
    """``x + Σ factor · y``."""
    return {k: v + sum(factor * y[k] for factor, y in terms) for k, v in x.items()}


def _dot(x: Weights, y: Weights) -> float:
    return sum(float((v.double() * y[k].double()).sum()) for k, v in x.items())


def _norm(w: Weights) -> float:
    return math.sqrt(_dot(w, w))


def _size(w: Weights) -> float:
    return max(float(x.abs().max()) if x.numel() else 0.0 for x in w.values())
