"""The rules in place on lists of tensors: the fast path of `Hypergradient`.

Each function moves ``params`` and the lists of state in ``slots``, and returns

- ``kept``: by name ``j``, vectors ``s_j`` to store until the next step, one per parameter;
- ``weights``: numbers ``c_jh`` with ``∂w/∂h = Σ_j c_jh s_j`` for every tuned ``h``, where ``s_j``
  is kept or a slot.

Hyperparameters so share vectors, and the learning rate's is the direction of the step itself.
The tests hold these against the pure rules.
"""

from collections.abc import Callable, Collection
from math import sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedexp.clients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.clients.update_rules import SGD, Rule

Lists: TypeAlias = dict[str, list[Tensor]]
Weights: TypeAlias = dict[str, dict[str, float]]
Values: TypeAlias = dict[str, float]


def sgd(
    rule: SGD, params: list[Tensor], grads: list[Tensor], slots: Lists, values: Values, step: float
) -> tuple[Lists, Weights]:
    """`SGD` in place."""
    lr, mu, decay = (values[k] for k in rule.names)
    borrowed, grads = grads, _decayed(grads, params, decay)
    if not slots:
        if grads is borrowed and rule.hyper:  # The next backward pass may write into them.
            grads = [g.clone() for g in grads]
        torch._foreach_add_(params, grads, alpha=-lr)
        return {"direction": grads}, {"direction": {"lr": -1.0}}
    buffer, kept = slots["momentum"], Lists()
    weights: Weights = {"momentum": {"lr": -1.0}}
    if tune_momentum := "momentum" in tuned(rule):
        kept["old"] = [b.clone() for b in buffer]
        weights["old"] = {"momentum": -lr}
    torch._foreach_mul_(buffer, mu)
    torch._foreach_add_(buffer, grads)
    direction = buffer
    if rule.nesterov:
        kept["direction"] = direction = list(torch._foreach_add(grads, buffer, alpha=mu))
        weights = {"direction": {"lr": -1.0}}
        if tune_momentum:
            weights |= {"momentum": {"momentum": -lr}, "old": {"momentum": -lr * mu}}
    torch._foreach_add_(params, direction, alpha=-lr)
    return kept, weights


def adam(
    rule: Adam, params: list[Tensor], grads: list[Tensor], slots: Lists, values: Values, step: float
) -> tuple[Lists, Weights]:
    """`Adam` and AdamW in place.

    With ``R = √v + ε√(1-β₂ᵗ)`` and ``c = √(1-β₂ᵗ) / (1-β₁ᵗ)`` the step is ``-ηc · m/R``, one
    pass over memory shorter than the textbook's.
    """
    lr, b1, b2, decay = (values[k] for k in rule.names)
    grads = grads if rule.decoupled else _decayed(grads, params, decay)
    m, v, kept = slots["m"], slots["v"], Lists()
    c1, c2 = 1 - b1**step, 1 - b2**step
    c = sqrt(c2) / c1
    if tune_b1 := "beta1" in tuned(rule):
        kept["gap"] = list(torch._foreach_sub(grads, m))
        torch._foreach_add_(m, kept["gap"], alpha=1 - b1)
    else:
        torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    root = torch._foreach_sqrt(v)
    if tune_b2 := "beta2" in tuned(rule):
        kept["curve"] = _curve(root, grads, 1 / b2 + step * b2 ** (step - 1) / c2, -1 / b2)
    torch._foreach_add_(root, rule.eps * sqrt(c2))
    direction = list(torch._foreach_div(m, root))
    if tune_b1:
        torch._foreach_div_(kept["gap"], root)
    if tune_b2:
        torch._foreach_mul_(kept["curve"], direction)
        torch._foreach_div_(kept["curve"], root)
    kept["direction"] = direction
    weights: Weights = {"direction": {"lr": -c}}
    if rule.decoupled and decay:
        if tune_b1:
            weights["bare"], kept["bare"] = {}, direction
        kept["direction"] = direction = list(torch._foreach_add(direction, params, alpha=decay / c))
    if tune_b1:
        weights["gap"] = {"beta1": lr * c}
        weights["bare" if "bare" in kept else "direction"]["beta1"] = (
            -lr * c * step * b1 ** (step - 1) / c1
        )
    if tune_b2:
        weights["curve"] = {"beta2": lr * c / 2}
    torch._foreach_add_(params, direction, alpha=-lr * c)
    return kept, weights


def rmsprop(
    rule: RMSprop,
    params: list[Tensor],
    grads: list[Tensor],
    slots: Lists,
    values: Values,
    step: float,
) -> tuple[Lists, Weights]:
    """`RMSprop` in place."""
    lr, alpha, decay = (values[k] for k in rule.names)
    grads = _decayed(grads, params, decay)
    v, kept = slots["v"], Lists()
    torch._foreach_mul_(v, alpha)
    torch._foreach_addcmul_(v, grads, grads, 1 - alpha)
    root = torch._foreach_sqrt(v)
    if tune_alpha := "alpha" in tuned(rule):
        kept["curve"] = _curve(root, grads, 1 / alpha, -1 / alpha)
    torch._foreach_add_(root, rule.eps)
    kept["direction"] = list(torch._foreach_div(grads, root))
    if tune_alpha:
        torch._foreach_mul_(kept["curve"], kept["direction"])
        torch._foreach_div_(kept["curve"], root)
    torch._foreach_add_(params, kept["direction"], alpha=-lr)
    weights = {"direction": {"lr": -1.0}, "curve": {"alpha": lr / 2}}
    return kept, {name: weights[name] for name in kept}


def adagrad(
    rule: Adagrad,
    params: list[Tensor],
    grads: list[Tensor],
    slots: Lists,
    values: Values,
    step: float,
) -> tuple[Lists, Weights]:
    """`Adagrad` in place."""
    lr, decay = (values[k] for k in rule.names)
    grads = _decayed(grads, params, decay)
    torch._foreach_addcmul_(slots["v"], grads, grads)
    root = torch._foreach_sqrt(slots["v"])
    torch._foreach_add_(root, rule.eps)
    direction = list(torch._foreach_div(grads, root))
    torch._foreach_add_(params, direction, alpha=-lr)
    return {"direction": direction}, {"direction": {"lr": -1.0}}


STEPS: dict[type[Rule], Callable[..., tuple[Lists, Weights]]] = {
    SGD: sgd,
    Adam: adam,
    RMSprop: rmsprop,
    Adagrad: adagrad,
}


def tuned(rule: Rule) -> Collection[str]:
    """The hyperparameters of `rule` that move."""
    return rule.tuned if rule.hyper else ()


def _decayed(grads: list[Tensor], params: list[Tensor], decay: float) -> list[Tensor]:
    return list(torch._foreach_add(grads, params, alpha=decay)) if decay else grads


def _curve(root: Any, grads: list[Tensor], of_root: float, of_square: float) -> list[Tensor]:
    """``of_root · √v + of_square · g²/√v``, from ``∂√v/∂β = (v_old - g²) / (2√v)``.

    Where ``v = 0`` so is ``g``: ``root`` is raised to the least positive number, in place.
    """
    for r in root:
        r.clamp_min_(torch.finfo(r.dtype).tiny)
    curve = list(torch._foreach_div(grads, root))
    torch._foreach_mul_(curve, grads)
    torch._foreach_mul_(curve, of_square)
    torch._foreach_add_(curve, root, alpha=of_root)
    return curve
