"""The rules in place, on lists of tensors: the fast path of `HypergradientOptimizer`.

A function here makes the same step as the pure rule of its name. It writes into the parameters and
into the state of the rule, keeps what the derivative of the step needs, and returns the weights of
that. The tests compare every function with its pure rule.

The state of a parameter, in ``optimizer.state``, is a dict:

- ``slots`` is the state of the rule.
- ``kept`` and ``weights`` are the derivative of the last step, ``∂u/∂h = Σ_j weights[j][h] · s_j``,
  where the vector ``s_j`` is ``kept[j]``, or ``slots[j]`` if nothing is kept under ``j``. In this
  form the hyperparameters share vectors. That of the learning rate is the direction of the step,
  which the step needs anyway.
- ``seen`` is the count of the group's steps after the last one that moved this parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.rules import Rule, SGDRule, Values
from fedexp.hypergradients.scales import HALVES

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Weights: TypeAlias = Mapping[str, Mapping[str, float]]

DESCENT: Weights = {"direction": {"lr": -1.0}}
"""``∂u/∂η = -d``, where the direction ``d`` is kept."""


@dataclass(slots=True)
class ParamBatch:
    """Parameters of one group that step together: equally old, and last moved in the same step.

    Attributes:
        group: The group in ``optimizer.param_groups``.
        params: The parameters; a complex one as a view of pairs of real numbers.
        grads: Their gradients, in the same order and form.
        states: Their states, in the same order.

    Example:
        >>> batch = ParamBatch({}, [torch.ones(2)], [torch.ones(2)], [{"slots": {}}])
        >>> batch.copy("direction", batch.grads)
        [tensor([1., 1.])]
        >>> batch.states
        [{'slots': {}, 'kept': {'direction': tensor([1., 1.])}}]
    """

    group: Group
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def slots(self, name: str) -> list[Tensor]:
        """The tensors of the rule's state under a name."""
        return [state["slots"][name] for state in self.states]

    def vectors(self, name: str) -> list[Tensor]:
        """The vectors ``s_j`` of the last derivative under a name."""
        return [state["kept" if name in state["kept"] else "slots"][name] for state in self.states]

    def memory(self, name: str) -> list[Tensor]:
        """Where to keep the vectors of a name; if there are some of the last step, over these."""
        if name not in self.states[0].get("kept", ()):  # All have the same names.
            for param, state in zip(self.params, self.states, strict=True):
                state.setdefault("kept", {})[name] = torch.empty_like(param)
        return [state["kept"][name] for state in self.states]

    def copy(self, name: str, tensors: Tensors) -> list[Tensor]:
        """Keep copies of tensors under a name."""
        memory = self.memory(name)
        torch._foreach_copy_(memory, tensors)
        return memory

    def write(self, name: str, op: str, *lists: Tensors, **options: float) -> list[Tensor]:
        """Keep what an operation of torch makes of the lists, tensor by tensor, under a name.

        A list may be the one that is written to.
        """
        memory = self.memory(name)
        if memory[0].is_cpu:  # Lists are no faster there, and have no `out`.
            single = getattr(torch, op)
            for out, tensors in zip(memory, zip(*lists, strict=True), strict=True):
                single(*tensors, **options, out=out)
        else:
            torch._foreach_copy_(memory, getattr(torch, f"_foreach_{op}")(*lists, **options))
        return memory

    @property
    def weights(self) -> Weights:
        """The weights of the last derivative; empty before the first step."""
        weights: Weights = self.states[0].get("weights", {})
        return weights


def can_step_inplace(rule: Rule, values: Values) -> bool:
    """Whether `step_inplace` makes the next step of a rule.

    The derivatives by ``β₁``, ``β₂`` and ``α`` are divided by these, since they are made of the new
    moments. With a value below 0.1 that would multiply rounding errors by more than ten.

    Args:
        rule: The rule.
        values: All its hyperparameters for this step, by name.

    Example:
        >>> rule = AdamRule(tuned=("lr", "beta1"), hyper=SGDRule(1e-3))
        >>> [can_step_inplace(rule, {**rule.values(), "beta1": beta}) for beta in (0.0, 0.9)]
        [False, True]
    """
    decays = [values[h] for h in rule.tuned_names if h in ("beta1", "beta2", "alpha")]
    return type(rule) in STEPS and all([decay >= 0.1 for decay in decays])


def step_inplace(rule: Rule, batch: ParamBatch, values: Values) -> None:
    """Move the parameters of a batch by one of the rules in `STEPS`; see `can_step_inplace`.

    Args:
        rule: The rule.
        batch: The parameters, which are written to, as are their states.
        values: All hyperparameters of the rule for this step, by name.

    Example:
        >>> batch = ParamBatch({}, [torch.ones(2)], [torch.ones(2)], [{"slots": {}}])
        >>> step_inplace(SGDRule(0.5), batch, SGDRule(0.5).values())
        >>> batch.params
        [tensor([0.5000, 0.5000])]
    """
    if "step" in batch.states[0]["slots"]:
        for state in batch.states:
            state["slots"]["step"] += 1
    weights = STEPS[type(rule)](rule, batch, values)
    weights = weights if rule.hyper else {}  # Without a rule above, nothing asks for these.
    if weights.keys() != batch.weights.keys():  # else the last step kept what this one keeps
        for state in batch.states:
            kept = state.get("kept", {})
            state["kept"] = {name: x for name, x in kept.items() if name in weights}
    for state in batch.states:
        state["weights"] = weights


def step_pure(rule: Rule, batch: ParamBatch, values: Values) -> None:
    """Move the parameters of a batch by the pure rule, one after another.

    The arguments are those of `step_inplace`; the rule may be any.

    Example:
        >>> batch = ParamBatch({}, [torch.ones(2)], [torch.ones(2)], [{"slots": {}}])
        >>> step_pure(SGDRule(0.5), batch, SGDRule(0.5).values())
        >>> batch.params
        [tensor([0.5000, 0.5000])]
    """
    names = rule.tuned_names
    for param, grad, state in zip(batch.params, batch.grads, batch.states, strict=True):
        slots = state["slots"]
        new, state["slots"] = rule.update(param, grad, slots, values)
        slopes = rule.slopes(param, grad, slots, values, names) if names else {}
        # The prefix avoids the names of slots, and those that `step_inplace` keeps, which may
        # make the next step.
        state["kept"] = {f"by-{name}": slope for name, slope in slopes.items()}
        state["weights"] = {f"by-{name}": {name: 1.0} for name in slopes}
        param.copy_(new)


def inner_products(rule: Rule, batches: Sequence[ParamBatch]) -> dict[str, float]:
    """The inner product ``⟨g', ∂u/∂h⟩`` for each tuned hyperparameter ``h``, by name.

    Args:
        rule: The rule.
        batches: The new gradients ``g'``, and in the states the derivatives of the last step.

    Example:
        >>> rule = SGDRule(0.5, hyper=SGDRule(0.1))
        >>> batch = ParamBatch({}, [torch.ones(2)], [torch.ones(2)], [{"slots": {}}])
        >>> step_inplace(rule, batch, rule.values())
        >>> inner_products(rule, [batch])  # ∂u/∂η = -g
        {'lr': -2.0}
    """
    terms: list[Mapping[str, float]] = []
    dots: list[list[Tensor]] = []
    for batch in batches:
        grads = _flat(batch.grads)
        for name, weights in batch.weights.items():
            terms.append(weights)
            dots.append(list(map(torch.dot, grads, _flat(batch.vectors(name)))))
    sums = dict.fromkeys(rule.tuned, 0.0)
    for weights, number in zip(terms, _sums(dots), strict=True):
        for h, weight in weights.items():
            if h in sums:
                sums[h] += weight * number
    return sums


def norm_product(batches: Sequence[ParamBatch]) -> float:
    """``‖g'‖ ‖∂u/∂η‖``, where ``∂u/∂η`` is one vector times a number, as in all rules here.

    Example:
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


def sgd_inplace(rule: SGDRule, batch: ParamBatch, values: Values) -> Weights:
    """One step of `SGDRule`; see the top of this file for what is kept and returned."""
    lr, mu, decay = (values[name] for name in rule.names)
    params, tuned = batch.params, rule.tuned_names
    with_momentum = "momentum" in batch.states[0]["slots"]
    weights: dict[str, dict[str, float]] = {}
    if "weight_decay" in tuned:
        batch.copy("param", params)
        ahead = 1 + mu if rule.nesterov and with_momentum else 1.0
        weights["param"] = {"weight_decay": -lr * ahead}
    if not with_momentum:
        direction = _decayed(batch.grads, params, decay)
        if rule.hyper:  # A copy: the next backward pass may write into the gradients.
            direction = batch.copy("direction", direction)
        torch._foreach_add_(params, direction, alpha=-lr)
        return {**DESCENT, **weights}
    grads, buffer = _decayed(batch.grads, params, decay), batch.slots("momentum")
    if "momentum" in tuned:
        batch.copy("old", buffer)
        weights["old"] = {"momentum": -lr * (mu if rule.nesterov else 1.0)}
    torch._foreach_mul_(buffer, mu)
    torch._foreach_add_(buffer, grads)
    if not rule.nesterov:  # The direction is in the slots, and need not be kept.
        torch._foreach_add_(params, buffer, alpha=-lr)
        return {"momentum": {"lr": -1.0}, **weights}
    direction = batch.copy("direction", grads)
    torch._foreach_add_(direction, buffer, alpha=mu)
    torch._foreach_add_(params, direction, alpha=-lr)
    if "momentum" in tuned:
        weights["momentum"] = {"momentum": -lr}
    return {**DESCENT, **weights}


def rmsprop_inplace(rule: RMSpropRule, batch: ParamBatch, values: Values) -> Weights:
    """One step of `RMSpropRule`; see the top of this file for what is kept and returned."""
    lr, alpha, decay = (values[name] for name in rule.names)
    grads, v = _decayed(batch.grads, batch.params, decay), batch.slots("v")
    torch._foreach_mul_(v, alpha)
    torch._foreach_addcmul_(v, grads, grads, 1 - alpha)
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    if "alpha" in rule.tuned_names:
        # ∂√v/∂α = (v_old - g²) / 2√v. By now v_old is overwritten, but v_old - g² = (v - g²) / α.
        curve = batch.write("curve", "addcmul", v, grads, grads, value=-1.0)
        _divide_by_root(curve, root)
    torch._foreach_add_(root, rule.eps)
    if "alpha" in rule.tuned_names:
        torch._foreach_div_(curve, root)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-lr)
    if "alpha" not in rule.tuned_names:
        return DESCENT
    torch._foreach_mul_(curve, direction)
    return {**DESCENT, "curve": {"alpha": lr / (2 * alpha)}}


def adagrad_inplace(rule: AdagradRule, batch: ParamBatch, values: Values) -> Weights:
    """One step of `AdagradRule`; see the top of this file for what is kept and returned."""
    grads, v = _decayed(batch.grads, batch.params, values["weight_decay"]), batch.slots("v")
    torch._foreach_addcmul_(v, grads, grads)
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    torch._foreach_add_(root, rule.eps)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-values["lr"])
    return DESCENT


def adam_inplace(rule: AdamRule, batch: ParamBatch, values: Values) -> Weights:
    """One step of `AdamRule`, AdamW included; see the top of this file for what is returned.

    With ``R = √v + ε√(1-β₂ᵗ)`` and ``c = √(1-β₂ᵗ) / (1-β₁ᵗ)`` the step of the textbook is
    ``-ηc · m/R``. The corrections of ``m`` and ``v`` are then one number, where the textbook's
    form takes two passes over the memory.

    The derivatives by the betas need ``m_old - g`` and ``v_old - g²``. When they are made, the old
    moments are overwritten, but ``m_old - g = (m - g) / β₁`` and ``v_old - g² = (v - g²) / β₂``.
    """
    lr, b1, b2, decay = (values[name] for name in rule.names)
    params, m, v = batch.params, batch.slots("m"), batch.slots("v")
    grads = batch.grads if rule.decoupled else _decayed(batch.grads, params, decay)
    t, tuned = batch.states[0]["slots"]["step"], rule.tuned_names
    shrinks, fusible = rule.decoupled and decay, _fusible(params, (*grads, *m, *v))
    if tuned == ("lr",) and fusible:
        return _fused_direction(rule, batch, grads, (t, m, v), values)
    # The kernel moves the weights, but the rate's slope needs those that shrink as they were.
    moves_later = shrinks or not fusible
    if moves_later:
        torch._foreach_lerp_(m, grads, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    else:
        _fused_adam(rule, params, grads, (t, m, v), values)
        if not tuned:
            return {}
    c1, c2 = 1 - b1**t, 1 - b2**t
    c = sqrt(c2) / c1
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    weights: dict[str, dict[str, float]] = {"direction": {"lr": -c}}
    if "beta2" in tuned:
        # ∂v̂/∂β₂ = (κv - g²) / (β₂ (1-β₂ᵗ)).
        kappa = 1 + t * b2**t / c2
        curve = batch.write("beta2", "addcmul", v, grads, grads, value=-1 / kappa)
        weights["beta2"] = {"beta2": lr * c * kappa / (2 * b2)}
        _divide_by_root(curve, root)
    torch._foreach_add_(root, rule.eps * sqrt(c2))
    if "beta2" in tuned:
        torch._foreach_div_(curve, root)
    if "beta1" in tuned:
        batch.write("beta1", "div", grads, root)
        weights["beta1"] = {"beta1": lr * c / b1}
        weights["direction"]["beta1"] = -lr * c * (1 / b1 + t * b1 ** (t - 1) / c1)
    direction = batch.write("direction", "div", m, root)
    if "beta2" in tuned:
        torch._foreach_mul_(curve, direction)
    if shrinks:
        if "beta1" in tuned:
            # η scales the decay too, but β₁ moves only the direction without it.
            batch.copy("bare", direction)
            weights["bare"] = {"beta1": weights["direction"].pop("beta1")}
        torch._foreach_add_(direction, params, alpha=decay / c)
    if moves_later:
        torch._foreach_add_(params, direction, alpha=-lr * c)
    return weights


def _fusible(params: Tensors, others: Tensors) -> bool:
    """Whether torch's fused kernel takes the parameters, their gradients and moments.

    It reads each as one vector in memory. The others have the type and device of the parameters.
    """
    dtype, device = params[0].dtype, params[0].device
    return (
        dtype in (torch.float32, torch.float64)
        and device.type in ("cpu", "cuda")
        and all([x.dtype == dtype and x.device == device for x in params])
        and all([x.is_contiguous() for x in (*params, *others)])
    )


def _fused_adam(
    rule: AdamRule, params: Tensors, grads: Tensors, slots: Sequence[Any], values: Values
) -> None:
    """Move ``params`` and the moments with torch's fused kernel, in one pass over the memory."""
    t, m, v = slots
    count = torch.scalar_tensor(t, dtype=torch.float32, device=params[0].device)
    torch._fused_adam_(
        params,
        grads,
        m,
        v,
        [],
        [count] * len(params),
        lr=values["lr"],
        beta1=values["beta1"],
        beta2=values["beta2"],
        weight_decay=0.0,
        eps=rule.eps,
        amsgrad=False,
        maximize=False,
    )


def _fused_direction(
    rule: AdamRule, batch: ParamBatch, grads: Tensors, slots: Sequence[Any], values: Values
) -> Weights:
    """A step with the kernel where its direction is all that is kept.

    It starts from zero with a learning rate of 1, so that its result is minus the direction.
    """
    descent = batch.memory("direction")
    torch._foreach_zero_(descent)
    _fused_adam(rule, descent, grads, slots, {**values, "lr": 1.0})
    if rule.decoupled and values["weight_decay"]:
        torch._foreach_add_(descent, batch.params, alpha=-values["weight_decay"])
    torch._foreach_add_(batch.params, descent, alpha=values["lr"])
    return {"direction": {"lr": 1.0}}


STEPS: dict[type[Rule], Callable[..., Weights]] = {
    SGDRule: sgd_inplace,
    AdamRule: adam_inplace,
    RMSpropRule: rmsprop_inplace,
    AdagradRule: adagrad_inplace,
}
"""What `step_inplace` can do. Other rules step by `step_pure`."""


def _decayed(grads: list[Tensor], params: list[Tensor], decay: float) -> Tensors:
    """The gradients with those of an L2 penalty, ``g + λw``."""
    return torch._foreach_add(grads, params, alpha=decay) if decay else grads


def _divide_by_root(x: Tensors, root: Tensors) -> None:
    """``x /= root``, where ``x`` stays 0 if ``root`` is 0, as then ``x`` is too.

    For that, zeros in ``root`` become the least divisor. Nothing else changes: the root of the
    least number above 0 is far greater.
    """
    torch._foreach_clamp_min_(root, [LEAST[r.dtype] for r in root])
    torch._foreach_div_(x, root)


LEAST = {
    **{dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64, torch.bfloat16)},
    torch.float16: 2.0**-24,
}
"""The least divisors. In float16 that is no normal number: the least of these is 6e-5."""
