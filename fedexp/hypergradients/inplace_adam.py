"""Adam in place; see `fedexp.hypergradients.inplace` for what a function like this does."""

from math import sqrt

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fedexp.hypergradients.adaptive_rules import AdamRule
from fedexp.hypergradients.batches import NOTHING, Derivative, ParamBatch
from fedexp.hypergradients.joined import Tensors
from fedexp.hypergradients.rules import Values


def adam_inplace(rule: AdamRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `AdamRule`, AdamW included.

    With ``R = √v + ε√(1-β₂ᵗ)`` and ``c = √(1-β₂ᵗ) / (1-β₁ᵗ)`` the step of the textbook is
    ``-ηc · m/R``. The corrections of ``m`` and ``v`` are then one number, where the textbook's
    form takes two passes over the memory.

    Where only the learning rate is tuned, the direction is kept. The derivatives by the betas need
    ``m_old - g`` and ``v_old - g²``. When they are made, the old moments are overwritten, but
    ``m_old - g = (m - g) / β₁`` and ``v_old - g² = (v - g²) / β₂``. So ``g`` is all they keep.
    """
    lr, b1, b2, decay = (values[name] for name in rule.names)
    if rule.tuned_names == ("lr",):
        return _step_along_direction(rule, batch, values)
    if rule.tuned_names:
        batch.own_grads()  # Since these are kept, and the next backward pass writes into others.
    grads = batch.grads if rule.decoupled else batch.decayed_grads(decay)
    made = NOTHING
    if rule.tuned_names:
        if not batch.root:  # The first step of this kind.
            batch.join_slots("m", "v")
        batch.keep("grad", grads)
        made = _derivative(rule, batch.states[0]["slots"]["step"], values)
    if rule.decoupled and decay:
        if "lr" in rule.tuned_names:  # It scales the decay too.
            batch.copy("param", batch.params)
            made = Derivative({**made.weights, "param": {"lr": -decay}}, made.root)
        torch._foreach_mul_(batch.params, 1 - lr * decay)
    add_adam_step(batch.params, grads, _moments(batch), (lr, b1, b2, rule.eps))
    return made


def _moments(batch: ParamBatch) -> tuple[float, Tensors, Tensors]:
    return batch.states[0]["slots"]["step"], batch.slots("m"), batch.slots("v")


def _derivative(rule: AdamRule, t: float, values: Values) -> Derivative:
    """The weights of ``m/R``, ``g/R`` and ``(v - g²/κ) m / (√v R²)``."""
    lr, b1, b2, _ = (values[name] for name in rule.names)
    c1, c2 = 1 - b1**t, 1 - b2**t
    # ∂v̂/∂β₂ = (κv - g²) / (β₂ (1-β₂ᵗ)).
    c, kappa = sqrt(c2) / c1, 1 + t * b2**t / c2
    weights = {
        "m": {"lr": -c, "beta1": -lr * c * (1 / b1 + t * b1 ** (t - 1) / c1)},
        "grad": {"beta1": lr * c / b1},
        "curve": {"beta2": lr * c * kappa / (2 * b2)},
    }
    return Derivative(weights, {"eps": rule.eps * sqrt(c2), "kappa": kappa})


def _step_along_direction(rule: AdamRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step that keeps its direction."""
    lr, b1, b2, decay = (values[name] for name in rule.names)
    grads = batch.grads if rule.decoupled else batch.decayed_grads(decay)
    # From zero, a step with a learning rate of 1 ends at minus the direction.
    descent = batch.memory("direction")
    torch._foreach_zero_(descent)
    add_adam_step(descent, grads, _moments(batch), (1.0, b1, b2, rule.eps))
    if rule.decoupled and decay:
        torch._foreach_add_(descent, batch.params, alpha=-decay)
    torch._foreach_add_(batch.params, descent, alpha=lr)
    return Derivative({"direction": {"lr": 1.0}}, {})


def add_adam_step(
    params: Tensors,
    grads: Tensors,
    moments: tuple[float, Tensors, Tensors],
    values: tuple[float, float, float, float],
) -> None:
    """Move the moments, and add Adam's step ``-ηc · m/R`` to ``params``.

    Torch's fused kernel does this in one pass over the memory, where it can.

    Args:
        params: The tensors that move.
        grads: ``g``.
        moments: The count of steps ``t``, this one included, and ``m`` and ``v``, which move too.
        values: ``η``, ``β₁``, ``β₂`` and ``ε``.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.inplace_adam import add_adam_step
        >>> [w, m, v] = torch.zeros(3, 1)
        >>> add_adam_step([w], [torch.full((1,), 3.0)], (1, [m], [v]), (0.5, 0.5, 0.75, 0.0))
        >>> w, m, v
        (tensor([-0.5000]), tensor([1.5000]), tensor([2.2500]))
    """
    t, m, v = moments
    lr, b1, b2, eps = values
    if _fusible(params, (*grads, *m, *v)):
        count = torch.scalar_tensor(t, dtype=torch.float32, device=params[0].device)
        torch._fused_adam_(
            params,
            grads,
            m,
            v,
            [],
            [count] * len(params),
            lr=lr,
            beta1=b1,
            beta2=b2,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        # Unlike others, this operation does not tell autograd that it has written to the weights:
        # a backward pass through a graph of before the step would be wrong, and not fail.
        increment_version(params)
        return
    torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    root, scale = torch._foreach_sqrt(v), sqrt(1 - b2**t)
    torch._foreach_add_(root, eps * scale)
    torch._foreach_addcdiv_(params, m, root, -lr * scale / (1 - b1**t))


def _fusible(params: Tensors, others: Tensors) -> bool:
    """Whether torch's fused kernel takes the parameters, their gradients and moments.

    It reads each as one vector in memory. The others have the type and device of the parameters.
    """
    dtype, device = params[0].dtype, params[0].device
    return (
        dtype in (torch.float32, torch.float64)
        and device.type in ("cpu", "cuda")
        and all([x.dtype == dtype and x.device == device for x in params])
        and all(map(Tensor.is_contiguous, (*params, *others)))
    )
