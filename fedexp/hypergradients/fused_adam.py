"""`Adam` and AdamW in place on lists of tensors, as in `fedexp.hypergradients.fused`.

With ``R = √v + ε√(1-β₂ᵗ)`` and ``c = √(1-β₂ᵗ) / (1-β₁ᵗ)`` the step is ``-ηc · m/R``, one pass over
memory shorter than the textbook's. Where only the learning rate is tuned, torch's fused kernel
makes ``m``, ``v`` and the direction in one pass: it steps from zero at a learning rate of one.
Where the betas are too, what is kept under their names are their vectors, without factors.
"""

from math import sqrt

import torch
from torch import Tensor

from fedexp.hypergradients.adaptive_rules import Adam
from fedexp.hypergradients.batches import EXACT, Batch, Weights
from fedexp.hypergradients.fused import (
    Values,
    copied,
    decayed,
    difference,
    over_root,
    product,
    quotient,
    tuned,
)

FUSED = frozenset({"cpu", "cuda"})
"""Where the kernel is known to exist."""
TINY = {dtype: torch.finfo(dtype).tiny for dtype in EXACT}
ASCENT: Weights = {"direction": {"lr": 1.0}}


def adam(rule: Adam, batch: Batch, grads: list[Tensor], values: Values) -> Weights:
    """`Adam` and AdamW in place."""
    decay = 0.0 if rule.decoupled else values["weight_decay"]
    if decay and batch.joined:  # They are a copy already.
        torch._foreach_add_(batch.parts(grads), batch.params, alpha=decay)
    else:
        grads = decayed(grads, batch.params, decay)
    if tuned(rule) == ("lr",) and _fusible(batch, grads):
        return _fused(rule, batch, grads, values)
    places = batch.joined and "direction" in batch.kept
    if places and _usual(rule) and values["beta1"] > 0.01:
        return _joined(rule, batch, grads[0], values)
    return _listed(rule, batch, grads, values)


def _fusible(batch: Batch, grads: list[Tensor]) -> bool:
    known = batch.alike and batch.params[0].device.type in FUSED
    return known and all([g.is_contiguous() for g in grads])  # The kernel reads them as vectors.


def _fused(rule: Adam, batch: Batch, grads: list[Tensor], values: Values) -> Weights:
    params, slots, kept = batch.params, batch.slots, batch.kept
    if "direction" in kept:
        torch._foreach_zero_(kept["direction"])
    else:
        kept["direction"] = [torch.zeros_like(p) for p in params]
    descent = kept["direction"]
    count = torch.full((), batch.age, dtype=torch.float32, device=params[0].device)
    torch._fused_adam_(
        descent,
        grads,
        slots["m"],
        slots["v"],
        [],
        [count] * len(grads),
        lr=1.0,
        beta1=values["beta1"],
        beta2=values["beta2"],
        weight_decay=0.0,
        eps=rule.eps,
        amsgrad=False,
        maximize=False,
    )
    if rule.decoupled and values["weight_decay"]:
        torch._foreach_add_(descent, params, alpha=-values["weight_decay"])
    torch._foreach_add_(params, descent, alpha=values["lr"])
    return ASCENT


def _usual(rule: Adam) -> bool:
    return sorted(rule.tuned) == ["beta1", "beta2", "lr"] and not rule.decoupled


def _joined(rule: Adam, batch: Batch, g: Tensor, values: Values) -> Weights:
    """As `_listed`, with ``g/R`` for ``(g - m_old)/R``, which is ``(g/R - m/R) / β₁``.

    That saves a pass, and loses digits where ``β₁`` is small.
    """
    lr, b1, b2, t = values["lr"], values["beta1"], values["beta2"], batch.age
    [m], [v] = batch.slots["m"], batch.slots["v"]
    [direction], [scaled], [curve] = (batch.kept[k] for k in ("direction", "beta1", "beta2"))
    c1, c2 = 1 - b1**t, 1 - b2**t
    c = sqrt(c2) / c1
    m.lerp_(g, 1 - b1)
    torch.mul(g, g, out=curve)
    v.mul_(b2).add_(curve, alpha=1 - b2)
    root = v.sqrt()
    curve.add_(v, alpha=-(1 + t * b2**t / c2)).div_(root.clamp_min_(TINY[g.dtype]))
    torch.div(g, root.add_(rule.eps * sqrt(c2)), out=scaled)
    torch.div(m, root, out=direction)
    curve.mul_(direction).div_(root)
    torch._foreach_add_(batch.params, batch.shaped("direction"), alpha=-lr * c)
    return {
        "direction": {"lr": -c, "beta1": -lr * c * (1 / b1 + t * b1 ** (t - 1) / c1)},
        "beta1": {"beta1": lr * c / b1},
        "beta2": {"beta2": -lr * c / (2 * b2)},
    }


def _listed(rule: Adam, batch: Batch, grads: list[Tensor], values: Values) -> Weights:
    lr, b1, b2, decay = (values[k] for k in rule.names)
    params, m, v, kept, t = batch.params, batch.slots["m"], batch.slots["v"], batch.kept, batch.age
    c1, c2 = 1 - b1**t, 1 - b2**t
    c = sqrt(c2) / c1
    if tune_b1 := "beta1" in tuned(rule):
        gap = difference(kept, "beta1", grads, m)
        torch._foreach_add_(m, gap, alpha=1 - b1)
    else:
        torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    if tune_b2 := "beta2" in tuned(rule):
        curve = product(kept, "beta2", grads, grads)
        torch._foreach_add_(v, curve, alpha=1 - b2)
    else:
        torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    root = list(torch._foreach_sqrt(v))
    if tune_b2:  # ∂√v̂/∂β₂ = (v_old - g²) / … + v / …, and v_old = (v - (1-β₂)g²) / β₂.
        torch._foreach_add_(curve, v, alpha=-(1 + t * b2**t / c2))
        over_root(curve, root)
    torch._foreach_add_(root, rule.eps * sqrt(c2))
    if tune_b1:
        torch._foreach_div_(gap, root)
    direction = quotient(kept, "direction", m, root)
    if tune_b2:
        torch._foreach_mul_(curve, direction)
        torch._foreach_div_(curve, root)
    weights: dict[str, dict[str, float]] = {"direction": {"lr": -c}}
    if rule.decoupled and decay:
        if tune_b1:
            copied(kept, "bare", direction)
            weights["bare"] = {}
        torch._foreach_add_(batch.shaped("direction"), params, alpha=decay / c)
    if tune_b1:
        weights["beta1"] = {"beta1": lr * c}
        weights["bare" if "bare" in weights else "direction"]["beta1"] = (
            -lr * c * t * b1 ** (t - 1) / c1
        )
    if tune_b2:
        weights["beta2"] = {"beta2": -lr * c / (2 * b2)}
    torch._foreach_add_(params, batch.shaped("direction"), alpha=-lr * c)
    return weights
