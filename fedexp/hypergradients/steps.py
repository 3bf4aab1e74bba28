"""One step of the bottom of a tower on batches, and its inner products at the next."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.batches import Batch, State, Weights
from fedexp.hypergradients.fused import Values, adagrad, rmsprop, sgd, tuned
from fedexp.hypergradients.fused_adam import adam
from fedexp.hypergradients.rules import SGD, Rule
from fedexp.hypergradients.scales import wide

Pair: TypeAlias = tuple[Batch, list[Tensor]]
STEPS: dict[type[Rule], Callable[..., Weights]] = {
    SGD: sgd,
    Adam: adam,
    RMSprop: rmsprop,
    Adagrad: adagrad,
}


def move_lists(rule: Rule, batch: Batch, grads: list[Tensor], values: Values) -> None:
    """Step with lists of tensors."""
    if "step" in batch.states[0]["slots"]:
        batch.age += 1
        for state in batch.states:
            state["slots"]["step"] = batch.age
    weights = STEPS[type(rule)](rule, batch, grads, values)
    if rule.hyper and weights is not batch.weights:
        batch.note(weights)


def move_one(rule: Rule, param: Tensor, grad: Tensor, state: State, values: Values) -> None:
    """Step with the pure rule."""
    slots, names = state["slots"], tuned(rule)
    new, state["slots"] = rule.update(param, grad, slots, values)
    if names:  # Under names that no slot has, nor the lists, should they take over.
        slopes = rule.slopes(param, grad, slots, values, names)
        state["kept"] = {f"by-{name}": slope for name, slope in slopes.items()}
        state["weights"] = {f"by-{name}": {name: 1.0} for name in slopes}
    param.copy_(new)


def inner_products(rule: Rule, pairs: Sequence[Pair]) -> dict[str, float]:
    """``⟨g', ∂w/∂h⟩`` for each tuned ``h``; one transfer from the device."""
    terms: list[Mapping[str, float]] = []
    dots: list[Tensor] = []
    for batch, grads in pairs:
        if batch.matrix is not None:
            terms += batch.weights.values()
            dots.append(batch.matrix.mv(grads[0]))
            continue
        for name, weights in batch.weights.items():
            terms += [weights] * len(grads)
            dots += map(_dot, grads, batch.flat(name))
    sums = dict.fromkeys(rule.tuned, 0.0)
    for weights, number in zip(terms, _floats(dots), strict=True):
        for h, weight in weights.items():
            if h in sums:
                sums[h] += weight * number
    return sums


def norm_product(pairs: Sequence[Pair]) -> float:
    """``‖g'‖ ‖∂w/∂η‖``."""
    slopes: list[Tensor] = []
    factors: list[float] = []
    for batch, grads in pairs:
        [(name, factor)] = [(j, by["lr"]) for j, by in batch.weights.items() if "lr" in by]
        slopes += batch.flat(name)
        factors += [factor] * len(grads)
    vectors = slopes + [g for _, grads in pairs for g in grads]
    squares = _floats([_dot(x, x.reshape(-1)) for x in vectors])
    sq_slope = sum(c * c * square for c, square in zip(factors, squares, strict=False))
    return math.sqrt(sq_slope * sum(squares[len(slopes) :]))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    x, y = wide(x), wide(y)
    return (x if x.dim() == 1 else x.reshape(-1)).dot(y)


def _floats(numbers: list[Tensor]) -> list[float]:
    if all([x.is_cpu for x in numbers]):
        return [y for x in numbers for y in (x.tolist() if x.dim() else (x.item(),))]
    device = numbers[0].device
    return [float(x) for x in torch.cat([x.to(device).reshape(-1) for x in numbers]).tolist()]
