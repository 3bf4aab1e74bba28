"""The rules in place, on lists of tensors: the fast path of `HypergradientOptimizer`.

A function in `STEPS` makes the same step as the pure rule of its name. It writes into the
parameters and into the state of the rule, keeps what the derivative of the step needs, and returns
the numbers of that; see `fedexp.hypergradients.batches`. The tests compare every function with its
pure rule.
"""

from collections.abc import Callable

from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.batches import NOTHING, Derivative, ParamBatch
from fedexp.hypergradients.inplace_adam import adam_inplace
from fedexp.hypergradients.inplace_rules import adagrad_inplace, rmsprop_inplace, sgd_inplace
from fedexp.hypergradients.rules import Rule, SGDRule, Values

STEPS: dict[type[Rule], Callable[..., Derivative]] = {
    SGDRule: sgd_inplace,
    AdamRule: adam_inplace,
    RMSpropRule: rmsprop_inplace,
    AdagradRule: adagrad_inplace,
}
"""What `step_inplace` can do. Other rules step by `step_pure`."""


def can_step_inplace(rule: Rule, values: Values) -> bool:
    """Whether `step_inplace` makes the next step of a rule.

    The derivatives by ``β₁``, ``β₂`` and ``α`` are divided by these, since they are made of the new
    moments. With a value below 0.1 that would multiply rounding errors by more than ten.

    Args:
        rule: The rule.
        values: All its hyperparameters for this step, by name.

    Example:
        >>> from fedexp.hypergradients import AdamRule, SGDRule
        >>> from fedexp.hypergradients.inplace import can_step_inplace
        >>> rule = AdamRule(tuned=("lr", "beta1"), hyper=SGDRule(1e-3))
        >>> [can_step_inplace(rule, {**rule.values(), "beta1": beta}) for beta in (0.0, 0.9)]
        [False, True]
    """
    if type(rule) not in STEPS:
        return False
    return not any([values[h] < 0.1 for h in rule.tuned_names if h in ("beta1", "beta2", "alpha")])


def step_inplace(rule: Rule, batch: ParamBatch, values: Values) -> None:
    """Move the parameters of a batch by one of the rules in `STEPS`; see `can_step_inplace`.

    Args:
        rule: The rule.
        batch: The parameters, which are written to, as are their states.
        values: All hyperparameters of the rule for this step, by name.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.batches import ParamBatch
        >>> from fedexp.hypergradients.inplace import step_inplace
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
    changed = weights.keys() != batch.weights.keys()
    for state in batch.states:
        if changed:  # Else the last step kept what this one keeps.
            kept = state.get("kept", {})
            state["kept"] = {name: x for name, x in kept.items() if name in weights}
        state["weights"], state["root"] = weights, root


def step_pure(rule: Rule, batch: ParamBatch, values: Values) -> None:
    """Move the parameters of a batch by the pure rule, one after another.

    The arguments are those of `step_inplace`; the rule may be any.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.batches import ParamBatch
        >>> from fedexp.hypergradients.inplace import step_pure
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
