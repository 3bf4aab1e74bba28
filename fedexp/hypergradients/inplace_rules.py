"""SGD, RMSprop and Adagrad in place; see `fedexp.hypergradients.inplace`."""

from math import inf

import torch

from fedexp.hypergradients.adaptive_rules import AdagradRule, RMSpropRule
from fedexp.hypergradients.batches import DESCENT, Derivative, ParamBatch
from fedexp.hypergradients.inplace_adam import add_adam_step
from fedexp.hypergradients.joined import Tensors
from fedexp.hypergradients.rules import SGDRule, Values


def sgd_inplace(rule: SGDRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `SGDRule`."""
    lr, mu, decay = (values[name] for name in rule.names)
    params, tuned = batch.params, rule.tuned_names
    with_momentum = "momentum" in batch.states[0]["slots"]
    weights: dict[str, dict[str, float]] = {}
    if "weight_decay" in tuned:
        batch.copy("param", params)
        ahead = 1 + mu if rule.nesterov and with_momentum else 1.0
        weights["param"] = {"weight_decay": -lr * ahead}
    if not with_momentum:
        direction = batch.decayed_grads(decay)
        if rule.hyper:  # A copy: the next backward pass may write into the gradients.
            direction = batch.copy("direction", direction)
        torch._foreach_add_(params, direction, alpha=-lr)
        return Derivative({**DESCENT.weights, **weights}, {})
    grads, buffer = batch.decayed_grads(decay), batch.slots("momentum")
    if "momentum" in tuned:
        batch.copy("old", buffer)
        weights["old"] = {"momentum": -lr * (mu if rule.nesterov else 1.0)}
    torch._foreach_mul_(buffer, mu)
    torch._foreach_add_(buffer, grads)
    if not rule.nesterov:  # The direction is in the slots, and need not be kept.
        torch._foreach_add_(params, buffer, alpha=-lr)
        return Derivative({"momentum": {"lr": -1.0}, **weights}, {})
    direction = batch.copy("direction", grads)
    torch._foreach_add_(direction, buffer, alpha=mu)
    torch._foreach_add_(params, direction, alpha=-lr)
    if "momentum" in tuned:
        weights["momentum"] = {"momentum": -lr}
    return Derivative({**DESCENT.weights, **weights}, {})


def rmsprop_inplace(rule: RMSpropRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `RMSpropRule`.

    With ``α`` tuned, it is Adam's step with ``m = g`` and no corrections, which is ``t = ∞``.
    ``∂√v/∂α = (v_old - g²) / 2√v``, where ``v_old - g² = (v - g²) / α``, as with Adam.
    """
    lr, alpha, decay = (values[name] for name in rule.names)
    if "alpha" in rule.tuned_names:
        if not batch.root:  # The first step of this kind.
            batch.join_slots("v")
        batch.keep("grad", batch.own_grads())
        grads = batch.decayed_grads(decay)
        # Since m is g, a mean of both is too; with β₁ = 0 there is no other correction.
        add_adam_step(
            batch.params, grads, (inf, grads, batch.slots("v")), (lr, 0.0, alpha, rule.eps)
        )
        weights = {"grad": {"lr": -1.0}, "curve": {"alpha": lr / (2 * alpha)}}
        return Derivative(weights, {"eps": rule.eps, "kappa": 1.0})
    grads, v = batch.decayed_grads(decay), batch.slots("v")
    torch._foreach_mul_(v, alpha)
    torch._foreach_addcmul_(v, grads, grads, 1 - alpha)
    return _step_by_root(batch, grads, lr, rule.eps)


def adagrad_inplace(rule: AdagradRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `AdagradRule`."""
    grads = batch.decayed_grads(values["weight_decay"])
    torch._foreach_addcmul_(batch.slots("v"), grads, grads)
    return _step_by_root(batch, grads, values["lr"], rule.eps)


def _step_by_root(batch: ParamBatch, grads: Tensors, lr: float, eps: float) -> Derivative:
    """``w ← w - η g / (√v + ε)``, where the direction is kept."""
    root = batch.write("direction", "sqrt", batch.slots("v"))  # Overwritten below.
    torch._foreach_add_(root, eps)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-lr)
    return DESCENT
