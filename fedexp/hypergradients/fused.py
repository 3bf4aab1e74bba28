"""The rules in place on lists of tensors: the fast path of `Hypergradient`.

Each function moves the parameters and slots of a batch, writes into ``batch.kept`` the vectors
that the derivative of this step is made of, and returns their weights, see ``batches``.
Hyperparameters so share vectors, and the learning rate's is the direction of the step itself.
The tests hold these against the pure rules.
"""

from collections.abc import Callable, Collection
from typing import TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.adaptive_rules import Adagrad, RMSprop
from fedexp.hypergradients.batches import Batch, Lists, Weights
from fedexp.hypergradients.rules import SGD, Rule

Values: TypeAlias = dict[str, float]
DESCENT: Weights = {"direction": {"lr": -1.0}}


def sgd(rule: SGD, batch: Batch, grads: list[Tensor], values: Values) -> Weights:
    """`SGD` in place."""
    lr, mu, decay = values["lr"], values["momentum"], values["weight_decay"]
    params, kept = batch.params, batch.kept
    by_decay: Weights = {}
    if "weight_decay" in tuned(rule):
        copied(kept, "param", params)
        look = 1 + mu if rule.nesterov and batch.slots else 1.0
        by_decay = {"param": {"weight_decay": -lr * look}}
    if not batch.slots:
        if rule.hyper:  # A copy: the next backward pass may write into the gradients.
            grads = copied(kept, "direction", grads)
            if decay:
                torch._foreach_add_(grads, params, alpha=decay)
        else:
            grads = decayed(grads, params, decay)
        torch._foreach_add_(params, grads, alpha=-lr)
        return {**DESCENT, **by_decay} if by_decay else DESCENT
    grads, buffer = decayed(grads, params, decay), batch.slots["momentum"]
    weights = {"momentum": {"lr": -1.0}}
    if tune_momentum := "momentum" in tuned(rule):
        copied(kept, "old", buffer)
        weights["old"] = {"momentum": -lr}
    torch._foreach_mul_(buffer, mu)
    torch._foreach_add_(buffer, grads)
    direction = buffer
    if rule.nesterov:
        direction = copied(kept, "direction", grads)
        torch._foreach_add_(direction, buffer, alpha=mu)
        weights = {"direction": {"lr": -1.0}}
        if tune_momentum:
            weights |= {"momentum": {"momentum": -lr}, "old": {"momentum": -lr * mu}}
    torch._foreach_add_(params, direction, alpha=-lr)
    return {**weights, **by_decay}


def rmsprop(rule: RMSprop, batch: Batch, grads: list[Tensor], values: Values) -> Weights:
    """`RMSprop` in place."""
    lr, alpha = values["lr"], values["alpha"]
    grads = decayed(grads, batch.params, values["weight_decay"])
    v, kept = batch.slots["v"], batch.kept
    torch._foreach_mul_(v, alpha)
    torch._foreach_addcmul_(v, grads, grads, 1 - alpha)
    root = list(torch._foreach_sqrt(v))
    weights = DESCENT
    if tune_alpha := "alpha" in tuned(rule):
        curve = product(kept, "curve", grads, grads)
        torch._foreach_sub_(curve, v)
        over_root(curve, root)
        weights = {**DESCENT, "curve": {"alpha": -lr / (2 * alpha)}}
    torch._foreach_add_(root, rule.eps)
    direction = quotient(kept, "direction", grads, root)
    if tune_alpha:
        torch._foreach_mul_(curve, direction)
        torch._foreach_div_(curve, root)
    torch._foreach_add_(batch.params, direction, alpha=-lr)
    return weights


def adagrad(rule: Adagrad, batch: Batch, grads: list[Tensor], values: Values) -> Weights:
    """`Adagrad` in place."""
    grads = decayed(grads, batch.params, values["weight_decay"])
    v = batch.slots["v"]
    torch._foreach_addcmul_(v, grads, grads)
    root = list(torch._foreach_sqrt(v))
    torch._foreach_add_(root, rule.eps)
    direction = quotient(batch.kept, "direction", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-values["lr"])
    return DESCENT


def tuned(rule: Rule) -> Collection[str]:
    """The hyperparameters of `rule` that move."""
    return rule.tuned if rule.hyper else ()


def decayed(grads: list[Tensor], params: list[Tensor], decay: float) -> list[Tensor]:
    """The gradients with an L2 penalty; no work where there is none."""
    return list(torch._foreach_add(grads, params, alpha=decay)) if decay else grads


def copied(kept: Lists, name: str, x: list[Tensor]) -> list[Tensor]:
    """A copy of `x`, kept where the last was."""
    if name in kept:
        torch._foreach_copy_(kept[name], x)
    else:
        kept[name] = [t.clone() for t in x]
    return kept[name]


def difference(kept: Lists, name: str, x: list[Tensor], y: list[Tensor]) -> list[Tensor]:
    """``x - y``, kept where the last was."""
    return _into(kept, name, torch.sub, torch._foreach_sub_, x, y)


def product(kept: Lists, name: str, x: list[Tensor], y: list[Tensor]) -> list[Tensor]:
    """``x · y`` by coordinate, kept where the last was."""
    return _into(kept, name, torch.mul, torch._foreach_mul_, x, y)


def quotient(kept: Lists, name: str, x: list[Tensor], y: list[Tensor]) -> list[Tensor]:
    """``x / y`` by coordinate, kept where the last was."""
    return _into(kept, name, torch.div, torch._foreach_div_, x, y)


def over_root(x: list[Tensor], root: list[Tensor]) -> None:
    """Divide by ``√v`` in place, where that is 0, and so is `x`, by the least positive number."""
    floors = []
    for r in root:
        tiny = torch.finfo(r.dtype).tiny
        # In float16 that is not so little, and `root` is still to be used: it stays as it is.
        floors.append(r.clamp_min(tiny) if r.dtype == torch.float16 else r.clamp_min_(tiny))
    torch._foreach_div_(x, floors)


def _into(
    kept: Lists,
    name: str,
    one: Callable[..., Tensor],
    many: Callable[..., None],
    x: list[Tensor],
    y: list[Tensor],
) -> list[Tensor]:
    if name not in kept:
        kept[name] = [torch.empty_like(t) for t in x]
    out = kept[name]
    if x[0].is_cpu:  # Torch's own lists are loops there, and have no place to write to.
        for a, b, c in zip(x, y, out, strict=True):
            one(a, b, out=c)
    else:
        torch._foreach_copy_(out, x)
        many(out, y)
    return out
