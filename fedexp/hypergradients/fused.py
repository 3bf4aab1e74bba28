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
- ``root`` is empty, or the numbers ``eps`` and ``kappa``. With these, the vectors ``m``, ``grad``
  and ``curve`` are made when they are needed; see `quotient_dots`.
- ``seen`` is the count of the group's steps after the last one that moved this parameter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.rules import Rule, SGDRule, Values
from fedexp.hypergradients.scales import HALVES, wide

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Weights: TypeAlias = Mapping[str, Mapping[str, float]]

Root: TypeAlias = Mapping[str, float]


class Derivative(NamedTuple):
    """The numbers of ``∂u/∂h``, as the top of this file has them."""

    weights: Weights
    root: Root


NOTHING, DESCENT = Derivative({}, {}), Derivative({"direction": {"lr": -1.0}}, {})
"""No derivative; and ``∂u/∂η = -d``, where the direction ``d`` is kept."""


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
    def root(self) -> Root:
        """The numbers of `quotient_dots`; empty if the last step kept its vectors ready."""
        root: Root = self.states[0].get("root", {})
        return root

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
    made = STEPS[type(rule)](rule, batch, values)
    # Without a rule above, nothing asks for it.
    weights, root = made if rule.hyper else NOTHING
    if weights.keys() != batch.weights.keys():  # else the last step kept what this one keeps
        for state in batch.states:
            kept = state.get("kept", {})
            state["kept"] = {name: x for name, x in kept.items() if name in weights}
    for state in batch.states:
        state["weights"], state["root"] = weights, root


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
        state["weights"], state["root"] = {f"by-{name}": {name: 1.0} for name in slopes}, {}
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

    Here ``R = √v + ε``, ``m`` and ``v`` are the moments, and ``g`` is the gradient of the last
    step; a rule with no ``m`` has ``g`` in its place. The names are ``m``, ``grad`` and ``curve``.
    Made only now, and block by block, these vectors take no memory between the steps. And ``g'/R``
    takes one division where ``m/R`` and ``g/R`` take two.

    Example:
        >>> slots = {"m": torch.tensor([3.0]), "v": torch.tensor([4.0])}
        >>> state = {"slots": slots, "kept": {"grad": torch.ones(1)}}
        >>> state["root"] = {"eps": 1.0, "kappa": 1.0}
        >>> batch = ParamBatch({}, [torch.ones(1)], [torch.tensor([6.0])], [state])
        >>> {name: sum(dots).item() for name, dots in quotient_dots(batch).items()}
        {'grad': 2.0, 'm': 6.0, 'curve': 3.0}
    """
    eps, kappa = batch.root["eps"], batch.root["kappa"]
    found: dict[str, list[Tensor]] = {"grad": [], "m": [], "curve": []}
    lists = [batch.grads, batch.vectors("grad"), batch.slots("v")]
    if "m" in batch.states[0]["slots"]:
        lists.append(batch.slots("m"))
    for block in blocks(*lists):
        new, grad, v, *moment = map(wide, block)
        root = torch.sqrt(v)
        curve = torch.addcmul(v, grad, grad, value=-1 / kappa)
        # Where √v = 0, v - g²/κ is too, and so shall be their quotient: then the least divisor
        # takes the place of √v. Nothing else changes, since other roots are far greater.
        curve.div_(root.clamp_min_(torch.finfo(root.dtype).tiny)).div_(root.add_(eps))
        quotient = torch.div(new, root, out=root)
        found["grad"].append(quotient.dot(grad))
        for m in moment:
            found["m"].append(quotient.dot(m))
        found["curve"].append(quotient.mul_(*moment or [grad]).dot(curve))
    return found


SMALL, BLOCK = 2**12, 2**18
"""Tensors of fewer numbers than ``SMALL`` are joined; those of more than ``BLOCK`` are divided."""


def blocks(*lists: Tensors) -> Iterator[list[Tensor] | tuple[Tensor, ...]]:
    """The tensors of several lists side by side, as vectors of moderate length.

    The tensors at one place of the lists have one shape, type and device. Short vectors would take
    as long as long ones, and whatever is made of very long ones much memory.

    Example:
        >>> x, y = torch.arange(3.0), torch.ones(1, 2)
        >>> list(blocks([x, y], [-x, -y]))
        [(tensor([0., 1., 2., 1., 1.]), tensor([-0., -1., -2., -1., -1.]))]
    """
    small: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, ...]]] = {}
    for tensors in zip(*lists, strict=True):
        first = tensors[0]
        size = first.numel()
        if size < SMALL:
            small.setdefault((first.dtype, first.device), []).append(tensors)
        elif size <= BLOCK:
            yield [x.reshape(-1) for x in tensors]
        else:
            yield from zip(*[x.reshape(-1).split(BLOCK) for x in tensors], strict=True)
    for rows in small.values():
        columns = zip(*rows, strict=True)
        joined = torch._C._nn.flatten_dense_tensors([x for column in columns for x in column])
        yield joined.view(len(lists), -1).unbind()


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


def sgd_inplace(rule: SGDRule, batch: ParamBatch, values: Values) -> Derivative:
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
        return Derivative({**DESCENT.weights, **weights}, {})
    grads, buffer = _decayed(batch.grads, params, decay), batch.slots("momentum")
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
    """One step of `RMSpropRule`; see the top of this file for what is kept and returned."""
    lr, alpha, decay = (values[name] for name in rule.names)
    grads, v = _decayed(batch.grads, batch.params, decay), batch.slots("v")
    if "alpha" in rule.tuned_names:
        # The step is Adam's with m = g and no corrections: β₁ = 0, t = ∞.
        m = batch.memory("grad")
        torch._foreach_zero_(m)  # What may be there, infinities too, would count 0 times.
        _add_adam_step(batch.params, grads, (inf, m, v), (lr, 0.0, alpha, rule.eps))
        # ∂√v/∂α = (v_old - g²) / 2√v. By now v_old is overwritten, but v_old - g² = (v - g²) / α.
        weights = {"grad": {"lr": -1.0}, "curve": {"alpha": lr / (2 * alpha)}}
        return Derivative(weights, {"eps": rule.eps, "kappa": 1.0})
    torch._foreach_mul_(v, alpha)
    torch._foreach_addcmul_(v, grads, grads, 1 - alpha)
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    torch._foreach_add_(root, rule.eps)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-lr)
    return DESCENT


def adagrad_inplace(rule: AdagradRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `AdagradRule`; see the top of this file for what is kept and returned."""
    grads, v = _decayed(batch.grads, batch.params, values["weight_decay"]), batch.slots("v")
    torch._foreach_addcmul_(v, grads, grads)
    root = batch.write("direction", "sqrt", v)  # Overwritten below; this takes no more memory.
    torch._foreach_add_(root, rule.eps)
    direction = batch.write("direction", "div", grads, root)
    torch._foreach_add_(batch.params, direction, alpha=-values["lr"])
    return DESCENT


def adam_inplace(rule: AdamRule, batch: ParamBatch, values: Values) -> Derivative:
    """One step of `AdamRule`, AdamW included; see the top of this file for what is returned.

    With ``R = √v + ε√(1-β₂ᵗ)`` and ``c = √(1-β₂ᵗ) / (1-β₁ᵗ)`` the step of the textbook is
    ``-ηc · m/R``. The corrections of ``m`` and ``v`` are then one number, where the textbook's
    form takes two passes over the memory.

    Where only the learning rate is tuned, the direction is kept. The derivatives by the betas need
    ``m_old - g`` and ``v_old - g²``. When they are made, the old moments are overwritten, but
    ``m_old - g = (m - g) / β₁`` and ``v_old - g² = (v - g²) / β₂``.
    """
    lr, b1, b2, decay = (values[name] for name in rule.names)
    params, tuned = batch.params, rule.tuned_names
    grads = batch.grads if rule.decoupled else _decayed(batch.grads, params, decay)
    t = batch.states[0]["slots"]["step"]
    moments = t, batch.slots("m"), batch.slots("v")
    decay = decay if rule.decoupled else 0.0
    if tuned == ("lr",):
        # From zero, a step with a learning rate of 1 ends at minus the direction.
        descent = batch.memory("direction")
        torch._foreach_zero_(descent)
        _add_adam_step(descent, grads, moments, (1.0, b1, b2, rule.eps))
        if decay:
            torch._foreach_add_(descent, params, alpha=-decay)
        torch._foreach_add_(params, descent, alpha=lr)
        return Derivative({"direction": {"lr": 1.0}}, {})
    made = NOTHING
    if tuned:
        batch.copy("grad", grads)
        c1, c2 = 1 - b1**t, 1 - b2**t
        # ∂v̂/∂β₂ = (κv - g²) / (β₂ (1-β₂ᵗ)).
        c, kappa = sqrt(c2) / c1, 1 + t * b2**t / c2
        weights = {
            "m": {"lr": -c, "beta1": -lr * c * (1 / b1 + t * b1 ** (t - 1) / c1)},
            "grad": {"beta1": lr * c / b1},
            "curve": {"beta2": lr * c * kappa / (2 * b2)},
        }
        made = Derivative(weights, {"eps": rule.eps * sqrt(c2), "kappa": kappa})
    if decay:
        if tuned:  # η scales the decay too.
            batch.copy("param", params)
            weights["param"] = {"lr": -decay}
        torch._foreach_mul_(params, 1 - lr * decay)
    _add_adam_step(params, grads, moments, (lr, b1, b2, rule.eps))
    return made


def _add_adam_step(
    params: Tensors,
    grads: Tensors,
    moments: tuple[float, Tensors, Tensors],
    values: tuple[float, float, float, float],
) -> None:
    """Move the moments, and add Adam's step ``-ηc · m/R`` to ``params``.

    Torch's fused kernel does this in one pass over the memory, where it can.

    Args:
        params: The tensors that move.
        grads: ``g``.
        moments: The count of steps ``t``, this one included, and ``m`` and ``v``, which move too.
        values: ``η``, ``β₁``, ``β₂`` and ``ε``.
    """
    t, m, v = moments
    lr, b1, b2, eps = values
    if _fusible(params, (*grads, *m, *v)):
        count = torch.scalar_tensor(t, dtype=torch.float32, device=params[0].device)
        torch._fused_adam_(
            params,
            grads,
            m,
            v,
            [],
            [count] * len(params),
            lr=lr,
            beta1=b1,
            beta2=b2,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return
    torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    root, scale = torch._foreach_sqrt(v), sqrt(1 - b2**t)
    torch._foreach_add_(root, eps * scale)
    torch._foreach_addcdiv_(params, m, root, -lr * scale / (1 - b1**t))


def _fusible(params: Tensors, others: Tensors) -> bool:
    """Whether torch's fused kernel takes the parameters, their gradients and moments.

    It reads each as one vector in memory. The others have the type and device of the parameters.
    """
    dtype, device = params[0].dtype, params[0].device
    return (
        dtype in (torch.float32, torch.float64)
        and device.type in ("cpu", "cuda")
        and all([x.dtype == dtype and x.device == device for x in params])
        and all(map(Tensor.is_contiguous, (*params, *others)))
    )


STEPS: dict[type[Rule], Callable[..., Derivative]] = {
    SGDRule: sgd_inplace,
    AdamRule: adam_inplace,
    RMSpropRule: rmsprop_inplace,
    AdagradRule: adagrad_inplace,
}
"""What `step_inplace` can do. Other rules step by `step_pure`."""


def _decayed(grads: list[Tensor], params: list[Tensor], decay: float) -> Tensors:
    """The gradients with those of an L2 penalty, ``g + λw``."""
    return torch._foreach_add(grads, params, alpha=decay) if decay else grads
