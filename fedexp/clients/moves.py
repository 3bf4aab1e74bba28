"""One step of the bottom of a tower on `torch.optim` state, and its inner products at the next.

The state of a parameter is a dict: ``slots`` is the rule's own, ``kept`` and ``weights`` are the
derivative of the last step (`fedexp.clients.foreach_steps`), ``seen`` is when that was.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedexp.clients.foreach_steps import STEPS, Values, tuned
from fedexp.clients.update_rules import Rule

States: TypeAlias = Sequence[dict[str, Any]]
HALVES = frozenset({torch.float16, torch.bfloat16})
Pair: TypeAlias = tuple[Tensor, dict[str, Any]]


def move_lists(
    rule: Rule, params: list[Tensor], grads: list[Tensor], states: States, values: Values
) -> None:
    """Step with lists of tensors, those of one age at a time: Adam's corrections depend on it."""
    if "step" not in states[0]["slots"]:
        _move_same_age(rule, params, grads, states, values, 0.0)
        return
    ages: dict[float, list[int]] = {}
    for i, state in enumerate(states):
        ages.setdefault(state["slots"]["step"] + 1, []).append(i)
    for age, at in ages.items():
        some = [states[i] for i in at]
        for state in some:
            state["slots"]["step"] = age
        _move_same_age(rule, [params[i] for i in at], [grads[i] for i in at], some, values, age)


def move_one(
    rule: Rule, param: Tensor, grad: Tensor, state: dict[str, Any], values: Values
) -> None:
    """Step with the pure rule."""
    slots, names = state["slots"], tuned(rule)
    new, state["slots"] = rule.update(param, grad, slots, values)
    if names:
        state["kept"] = rule.slopes(param, grad, slots, values, names)
        state["weights"] = {name: {name: 1.0} for name in state["kept"]}
    param.copy_(new)


def inner_products(rule: Rule, pairs: Sequence[Pair]) -> dict[str, float]:
    """``⟨g', ∂w/∂h⟩`` for each tuned ``h``; one transfer from the device."""
    terms, dots = [], []
    for grad, state in pairs:
        kept = state["kept"]
        for name, weights in state["weights"].items():
            terms.append(weights)
            dots.append(_dot(grad, kept[name] if name in kept else state["slots"][name]))
    sums = dict.fromkeys(rule.tuned, 0.0)
    for weights, number in zip(terms, _floats(dots), strict=True):
        for h, weight in weights.items():
            if h in sums:
                sums[h] += weight * number
    return sums


def norm_product(pairs: Sequence[Pair]) -> float:
    """``‖g'‖ ‖∂w/∂η‖``."""
    slopes, factors = [], []
    for _, state in pairs:
        [(name, factor)] = [(j, by["lr"]) for j, by in state["weights"].items() if "lr" in by]
        slopes.append(state["kept"].get(name, state["slots"].get(name)))
        factors.append(factor)
    squares = _floats([_dot(x, x) for x in (*slopes, *(grad for grad, _ in pairs))])
    sq_slope = sum(c * c * square for c, square in zip(factors, squares, strict=False))
    return math.sqrt(sq_slope * sum(squares[len(slopes) :]))


def _move_same_age(
    rule: Rule,
    params: list[Tensor],
    grads: list[Tensor],
    states: States,
    values: Values,
    age: float,
) -> None:
    slots = {k: [s["slots"][k] for s in states] for k in states[0]["slots"] if k != "step"}
    for state in states:
        state.pop("kept", None)  # Freed before its successor is made.
    kept, weights = STEPS[type(rule)](rule, params, grads, slots, values, age)
    if rule.hyper:
        for i, state in enumerate(states):
            state["kept"], state["weights"] = {k: x[i] for k, x in kept.items()}, weights


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype in HALVES:
        x, y = x.float(), y.float()
    return torch.dot(x.reshape(-1), y.reshape(-1))


def _floats(numbers: list[Tensor]) -> list[float]:
    if not numbers or (numbers[0].is_cpu and numbers[-1].is_cpu):
        return [x.item() for x in numbers]
    return [float(x) for x in torch.stack([x.to(numbers[0].device) for x in numbers]).tolist()]
