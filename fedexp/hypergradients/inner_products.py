"""The inner products of new gradients with the derivative of the last step."""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from fedexp.hypergradients.batches import ParamBatch
from fedexp.hypergradients.joined import Tensors, blocks
from fedexp.hypergradients.rules import Rule
from fedexp.hypergradients.scales import HALVES, LEAST, wide


def inner_products(rule: Rule, batches: Sequence[ParamBatch]) -> dict[str, float]:
    """The inner product ``⟨g', ∂u/∂h⟩`` for each tuned hyperparameter ``h``, by name.

    Args:
        rule: The rule.
        batches: The new gradients ``g'``, and in the states the derivatives of the last step.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.batches import ParamBatch
        >>> from fedexp.hypergradients.inner_products import inner_products
        >>> from fedexp.hypergradients.inplace import step_inplace
        >>> rule = SGDRule(0.5, hyper=SGDRule(0.1))
        >>> batch = ParamBatch({}, [torch.ones(2)], [torch.ones(2)], [{"slots": {}}])
        >>> step_inplace(rule, batch, rule.values())
        >>> inner_products(rule, [batch])  # ∂u/∂η = -g
        {'lr': -2.0}
    """
    terms: list[Mapping[str, float]] = []
    dots: list[list[Tensor]] = []
    for batch in batches:
        quotients = quotient_dots(batch) if batch.root else {}
        for name, weights in batch.weights.items():
            terms.append(weights)
            dots.append(
                quotients.get(name)
                or list(map(torch.dot, _flat(batch.grads), _flat(batch.vectors(name))))
            )
    sums = dict.fromkeys(rule.tuned, 0.0)
    for weights, number in zip(terms, _sums(dots), strict=True):
        for h, weight in weights.items():
            if h in sums:
                sums[h] += weight * number
    return sums


def quotient_dots(batch: ParamBatch) -> dict[str, list[Tensor]]:
    """The inner products of ``g'`` with ``m/R``, ``g/R`` and ``(v - g²/κ) m / (√v R²)``.

    Here ``R = √v + ε``, ``m`` and ``v`` are Adam's moments, and ``g`` is the gradient of the last
    step. The names are ``m``, ``grad`` and ``curve``; `fedexp.hypergradients.inplace_adam` has the
    formulas. Made only now, and block by block, the vectors take no memory between the steps. And
    ``⟨g', m/R⟩ = ⟨g'/R, m⟩``, so all three have one division in common.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.batches import ParamBatch
        >>> from fedexp.hypergradients.inner_products import quotient_dots
        >>> slots = {"m": torch.tensor([3.0]), "v": torch.tensor([4.0])}
        >>> state = {"slots": slots, "kept": {"grad": torch.ones(1)}}
        >>> state["root"] = {"eps": 1.0, "kappa": 1.0}
        >>> batch = ParamBatch({}, [torch.ones(1)], [torch.tensor([6.0])], [state])
        >>> {name: sum(dots).item() for name, dots in quotient_dots(batch).items()}
        {'m': 6.0, 'grad': 2.0, 'curve': 3.0}
    """
    eps, kappa = batch.root["eps"], batch.root["kappa"]
    found: dict[str, list[Tensor]] = {"m": [], "grad": [], "curve": []}
    lists = batch.own_grads(), batch.vectors("grad"), batch.slots("m"), batch.slots("v")
    for block in blocks(*lists):
        new, grad, m, v = map(wide, block) if block[0].dtype in HALVES else block
        root = torch.sqrt(v)
        curve = torch.addcmul(v, grad, grad, value=-1 / kappa)
        if block[0].dtype in HALVES:  # v can underflow to 0 where g², which is wide here, does not.
            curve.masked_fill_(v == 0, 0.0)
        # Where √v = 0, v - g²/κ is too, and so shall be their quotient.
        curve.div_(root.clamp_min_(LEAST[root.dtype])).div_(root.add_(eps))
        quotient = torch.div(new, root, out=root)
        found["m"].append(quotient.dot(m))
        found["grad"].append(quotient.dot(grad))
        found["curve"].append(quotient.mul_(m).dot(curve))
    return found


def norm_product(batches: Sequence[ParamBatch]) -> float:
    """``‖g'‖ ‖∂u/∂η‖``, where ``∂u/∂η`` is one vector times a number, as in all rules here.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.batches import ParamBatch
        >>> from fedexp.hypergradients.inner_products import norm_product
        >>> from fedexp.hypergradients.inplace import step_inplace
        >>> rule = SGDRule(0.5, normalised=True, hyper=SGDRule(0.1))
        >>> batch = ParamBatch({}, [torch.ones(4)], [torch.ones(4)], [{"slots": {}}])
        >>> step_inplace(rule, batch, rule.values())
        >>> norm_product([batch])
        4.0
    """
    grads, slopes, factors = [], [], []
    for batch in batches:
        [(name, factor)] = [(j, by["lr"]) for j, by in batch.weights.items() if "lr" in by]
        grads += batch.grads
        slopes += batch.vectors(name)
        factors += [factor] * len(batch.grads)
    squares = _sums([[x.dot(x)] for x in _flat(grads + slopes)])
    sq_slope = sum(c * c * sq for c, sq in zip(factors, squares[len(grads) :], strict=True))
    return sqrt(sq_slope * sum(squares[: len(grads)]))


def _flat(tensors: Tensors) -> list[Tensor]:
    """The tensors as vectors, at least in single precision."""
    flat = [x if x.dim() == 1 else x.reshape(-1) for x in tensors]
    return [x.float() if x.dtype in HALVES else x for x in flat]


def _sums(lists: list[list[Tensor]]) -> list[float]:
    """The sum of each list of 0-d tensors."""
    if all([numbers[0].is_cpu for numbers in lists]):
        return [sum([x.item() for x in numbers]) for numbers in lists]
    device = lists[0][0].device  # Together, since every transfer waits for the device.
    sums = [torch.stack([x.to(device) for x in numbers]).sum() for numbers in lists]
    return [float(x) for x in torch.stack(sums).tolist()]
