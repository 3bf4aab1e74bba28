"""One step of the bottom of a tower on `torch.optim` state, and its inner products at the next.

The state of a parameter is a dict: ``slots`` is the rule's own, ``kept`` and ``weights`` are the
derivative of the last step (`fedexp.clients.foreach_steps`), ``seen`` is when that was.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedexp.clients.foreach_steps import STEPS, Values, tuned
from fedexp.clients.update_rules import Rule

States: TypeAlias = Sequence[dict[str, Any]]


def move_lists(
    rule: Rule, params: list[Tensor], grads: list[Tensor], states: States, values: Values
) -> None:
    """Step with lists of tensors, those of one age at a time: Adam's corrections depend on it."""
    ages: dict[float, list[int]] = {}
    for i, state in enumerate(states):
        ages.setdefault(state["slots"].get("step", 0.0), []).append(i)
    for age, members in ages.items():
        some = [states[i] for i in members]
        slots = {k: [s["slots"][k] for s in some] for k in some[0]["slots"] if k != "step"}
        for state in some:
            state.pop("kept", None)  # Freed before its successor is made.
        lists = [params[i] for i in members], [grads[i] for i in members]
        kept, weights = STEPS[type(rule)](rule, *lists, slots, values, age + 1)
        for i, state in enumerate(some):
            if "step" in state["slots"]:
                state["slots"]["step"] = age + 1
            if rule.hyper:
                state["kept"], state["weights"] = {k: x[i] for k, x in kept.items()}, weights


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


def inner_products(
    rule: Rule, pairs: Iterable[tuple[Tensor, dict[str, Any]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """``⟨g', ∂w/∂h⟩`` and ``‖g'‖ ‖∂w/∂h‖`` for each tuned ``h``; one transfer from the device.

    Norms are taken for a normalised rule only.
    """
    dots: list[Tensor] = []
    adds: list[tuple[dict[str, float], Mapping[str, float]]] = []
    inner, squares = dict.fromkeys(rule.tuned, 0.0), dict.fromkeys(rule.tuned, 0.0)
    length = {"g": 0.0}
    for grad, state in pairs:
        vectors = state["slots"] | state["kept"]
        for name, weights in state["weights"].items():
            dots.append(_dot(grad, vectors[name]))
            adds.append((inner, weights))
        if not rule.normalised:
            continue
        dots.append(_dot(grad, grad))
        adds.append((length, {"g": 1.0}))
        for h in rule.tuned:
            slope = sum(by[h] * vectors[name] for name, by in state["weights"].items() if h in by)
            dots.append(_dot(slope, slope))
            adds.append((squares, {h: 1.0}))
    for number, (sums, weights) in zip(_floats(dots), adds, strict=True):
        for h in sums.keys() & weights.keys():
            sums[h] += weights[h] * number
    return inner, {h: (length["g"] * square) ** 0.5 for h, square in squares.items()}


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    return torch.dot(x.reshape(-1), y.reshape(-1))


def _floats(numbers: list[Tensor]) -> list[float]:
    if all(x.is_cpu for x in numbers):
        return [x.item() for x in numbers]
    return [float(x) for x in torch.stack([x.to(numbers[0].device) for x in numbers]).tolist()]
