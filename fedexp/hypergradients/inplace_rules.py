"""SGD, RMSprop and Adagrad in place; see `fedexp.hypergradients.inplace`."""

import torch

from fedexp.hypergradients.adaptive_rules import AdagradRule, RMSpropRule
from fedexp.hypergradients.batches import DESCENT, Derivative, ParamBatch
from fedexp.hypergradients.rules import SGDRule, Values
from fedexp.hypergradients.scales import LEAST


def sgd_inplace(rule: SGDRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `SGDRule`."""
    lr, mu, decay = values["lr"], values["momentum"], values["weight_decay"]
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
        return Derivative({**DESCENT.weights, **weights}, {}) if weights else DESCENT
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
    """One step of `RMSpropRule`."""
    lr, alpha, decay = (values[name] for name in rule.names)
    grads, v = batch.decayed_grads(decay), batch.slots("v")
    torch._foreach_mul_(v, alpha)
    torch._foreach_addcmul_(v, grads, grads, 1 - alpha)
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    if "alpha" in rule.tuned_names:
        # ∂√v/∂α = (v_old - g²) / 2√v. By now v_old is overwritten, but v_old - g² = (v - g²) / α.
        curve = batch.write("curve", "addcmul", v, grads, grads, value=-1.0)
        torch._foreach_clamp_min_(root, [LEAST[r.dtype] for r in root])  # 0 / 0 shall be 0.
        torch._foreach_div_(curve, root)
    torch._foreach_add_(root, rule.eps)
    if "alpha" in rule.tuned_names:
        torch._foreach_div_(curve, root)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-lr)
    if "alpha" not in rule.tuned_names:
        return DESCENT
    torch._foreach_mul_(curve, direction)
    return Derivative({**DESCENT.weights, "curve": {"alpha": lr / (2 * alpha)}}, {})


def adagrad_inplace(rule: AdagradRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `AdagradRule`."""
    grads, v = batch.decayed_grads(values["weight_decay"]), batch.slots("v")
    torch._foreach_addcmul_(v, grads, grads)
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    torch._foreach_add_(root, rule.eps)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-values["lr"])
    return DESCENT
