"""Towers of rules: how hyperparameters move, and `Tower`, the same as pure functions.

Let ``w⁺ = u(w, g, θ)`` be the last step, and ``g'`` the gradient at ``w⁺``. The hypergradient is
``df(w⁺)/dθ = ⟨g', ∂u/∂θ⟩``. Chandra et al. 2022 (arXiv:1909.13371) get it by backpropagation
through ``u``, and detach everything older than one step. So ``u`` is the only path from ``θ`` to
the loss, and both numbers are the same. But ``∂u/∂θ`` is known when the step is made: it is stored
then, and no second graph is built. The levels above obey the same formula, with the hypergradients
of the level below in place of ``g'``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.rules import Rule, Slots
from fedexp.hypergradients.scales import Number, clip, finite, no_zero, wide

Levels: TypeAlias = dict[str, Any]
"""The state of the rules above a rule. Numbers are floats or 0-d tensors.

``values[h]`` is the tuned hyperparameter ``h`` of the rule, ``slots[h]`` the state that the rule
above has for it, ``slopes[c][h]`` the derivative of the last step of ``h`` by the hyperparameter
``c`` of the rule above, and ``above`` the state of the rules above that one. With no rule above,
there is only ``values``, and it is empty.
"""

Params: TypeAlias = Mapping[str, Tensor]


def first_levels(rule: Rule, values: Mapping[str, Number]) -> Levels:
    """The state of the rules above ``rule`` before the first step.

    Args:
        rule: The rule.
        values: Its hyperparameters by name; those that are tuned start here.

    Example:
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.tower import first_levels
        >>> first_levels(SGDRule(0.1, hyper=SGDRule(0.5)), {"lr": 0.1})["values"]
        {'lr': 0.1}
    """
    upper = rule.hyper
    if upper is None:
        return {"values": {}}
    like = next(iter(values.values()))  # Numbers become of its kind: floats, or tensors.
    above: dict[str, Number] = {k: like * 0 + v for k, v in upper.values().items()}
    return {
        "values": {k: values[k] for k in rule.tuned},
        "slots": {k: _numbers(upper.init(values[k]), like) for k in rule.tuned},
        "slopes": {c: {k: like * 0 for k in rule.tuned} for c in upper.tuned if upper.hyper},
        "above": first_levels(upper, above),
    }


def updated(rule: Rule, levels: Levels, grads: Mapping[str, Number]) -> Levels:
    """The state above ``rule`` after a step of all rules above it, the top of the tower first.

    Args:
        rule: The rule.
        levels: The state before; it is not modified.
        grads: The hypergradients ``df/dθ_h`` of the tuned hyperparameters ``h`` of ``rule``.

    Example:
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.tower import first_levels, updated
        >>> rule = SGDRule(0.1, hyper=SGDRule(0.5))
        >>> levels = first_levels(rule, {"lr": 0.1})
        >>> updated(rule, levels, {"lr": -0.5})["values"]  # 0.1 + 0.5 · 0.5
        {'lr': 0.35}
    """
    upper = rule.hyper
    if upper is None:
        return levels
    above, upper_values = levels["above"], upper.values()
    if upper.hyper:
        # As in the paper, a hyperparameter moves with the new values of the level above.
        above = updated(upper, above, _gradients_above(upper, levels, grads))
        upper_values |= above["values"]
    values: dict[str, Number] = {}
    slots: dict[str, Slots] = {}
    slopes: dict[str, dict[str, Number]] = {c: {} for c in levels["slopes"]}
    for name, value in levels["values"].items():
        scale = rule.scale(name)
        at = scale.raw(value), grads[name], levels["slots"][name], upper_values
        raw, slots[name] = upper.update(*at)
        values[name] = scale.natural(raw, otherwise=value)
        if slopes:
            found = upper.slopes(*at, upper.tuned)
            for by in slopes:
                slopes[by][name] = found[by]
    return {"values": values, "slots": slots, "slopes": slopes, "above": above}


def mean_of(rule: Rule, towers: Sequence[Levels]) -> Rule:
    """The rule and those above it, at the mean over ``towers`` of the values that are tuned.

    Example:
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.tower import first_levels, mean_of
        >>> rule = SGDRule(0.1, hyper=SGDRule(0.5))
        >>> mean_of(rule, [first_levels(rule, {"lr": lr}) for lr in (0.1, 0.3)]).lr
        0.2
    """
    if rule.hyper is None:
        return rule
    means = {k: sum(float(t["values"][k]) for t in towers) / len(towers) for k in rule.tuned}
    above = mean_of(rule.hyper, [levels["above"] for levels in towers])
    return replace(rule.with_values(means), hyper=above)


def hypergradient(rule: Rule, name: str, value: Number, inner: Number, norm: Number) -> Number:
    """The hypergradient ``df/dθ`` of one hyperparameter ``h``: ``⟨g', ∂u/∂h⟩ dh/dθ``.

    A normalised rule has the cosine ``⟨g', ∂u/∂h⟩ / (‖g'‖ ‖∂u/∂h‖)`` in place of the inner
    product. The result is never NaN, and never so large that its square overflows.

    Args:
        rule: The rule that has the hyperparameter.
        name: Its name.
        value: Its value at the last step.
        inner: ``⟨g', ∂u/∂h⟩``.
        norm: ``‖g'‖ ‖∂u/∂h‖``. Only a normalised rule reads it.

    Example:
        >>> from fedexp.hypergradients import SGDRule
        >>> from fedexp.hypergradients.tower import hypergradient
        >>> hypergradient(SGDRule(0.1), "lr", 0.1, inner=-3.0, norm=0.0)
        -3.0
        >>> hypergradient(SGDRule(0.1, lr_form="log"), "lr", 0.1, inner=-3.0, norm=0.0)
        -0.30000000000000004
    """
    scale = rule.scale(name)
    if not rule.normalised:
        grad = inner * scale.speed(value)
    else:
        # An additive rate moves in proportion to itself: then, as on the log axis, the hyper
        # learning rate is a relative change.
        grad = inner / no_zero(norm) * (value if scale.form == "additive" else 1.0)
    return clip(finite(grad, 0.0), -1e30, 1e30)


def _gradients_above(upper: Rule, levels: Levels, grads: Mapping[str, Number]) -> dict[str, Number]:
    """The hypergradients one level up, from those of the level below."""
    found = {}
    for name, slopes in levels["slopes"].items():
        inner = sum(grads[k] * slope for k, slope in slopes.items())
        norm = 0.0
        if upper.normalised:
            norm = (sum(g * g for g in grads.values()) * sum(d * d for d in slopes.values())) ** 0.5
        found[name] = hypergradient(upper, name, levels["above"]["values"][name], inner, norm)
    return found


def _numbers(slots: Slots, like: Number) -> Slots:
    return {k: like * 0 + v for k, v in slots.items()}


@dataclass(frozen=True)
class Tower:
    """A tower as pure functions of dicts of tensors, for `torch.func`.

    It steps as `HypergradientOptimizer` does. With a leading dimension of clients,
    ``torch.func.vmap(tower.update)`` gives every client a learning rate of its own. Hyperparameters
    are kept in float64. Only those that are tuned are part of the state.

    Attributes:
        rule: The rule of the weights; its ``hyper`` is the next level.
        per_tensor: Whether each tensor has its own hyperparameters, rather than all the same.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGDRule, Tower
        >>> tower = Tower(SGDRule(0.1, hyper=SGDRule(0.01)))
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> state = tower.init(params)
        >>> for _ in range(2):  # The gradient of ‖w‖²/2 is w.
        ...     params, state = tower.update(params, params, state)
        >>> round(tower.learning_rate(state).item(), 4)  # 0.1 + 0.01 ⟨0.9w, w⟩
        0.145
    """

    rule: Rule
    per_tensor: bool = False

    def init(self, params: Params, **values: Tensor) -> Levels:
        """The state before the first step.

        Args:
            params: The weights by name.
            values: Where tuned hyperparameters start, 0-d, if not at the values of the rule.
        """
        like = torch.zeros((), dtype=torch.float64, device=next(iter(params.values())).device)
        wanted: dict[str, Number] = {**self.rule.values(), **values}
        initial = {k: like + v for k, v in wanted.items()}
        tuned = self.rule.tuned_names
        return {
            "slots": {
                # A count of steps, a float, becomes float64; tensors keep their type.
                k: {
                    s: v if isinstance(v, Tensor) else like + v
                    for s, v in self.rule.init(p).items()
                }
                for k, p in params.items()
            },
            "slopes": {h: {k: torch.zeros_like(p) for k, p in params.items()} for h in tuned},
            "towers": {key: first_levels(self.rule, initial) for key in self._param_sets(params)},
        }

    def update(self, params: Params, grads: Params, state: Levels) -> tuple[Params, Levels]:
        """One step of the whole tower, its top first and the weights last.

        Args:
            params: The weights by name.
            grads: Their gradients.
            state: As `init` or the last `update` returned it.
        """
        slopes = state["slopes"]
        towers, new, slots = {}, {}, {}
        found: dict[str, dict[str, Tensor]] = {h: {} for h in slopes}
        for key, names in self._param_sets(params).items():
            levels = state["towers"][key]
            towers[key] = updated(
                self.rule, levels, self._hypergradients(names, grads, state, levels)
            )
            values = {**self.rule.values(), **towers[key]["values"]}
            for k in names:
                at = params[k], grads[k], state["slots"][k], values
                moved, kept = self.rule.update(*at)
                # A 0-d parameter would otherwise take the hyperparameters' float64.
                new[k] = moved.to(params[k].dtype)
                slots[k] = {s: v.to(state["slots"][k][s].dtype) for s, v in kept.items()}
                by = self.rule.slopes(*at, tuple(slopes)) if slopes else {}
                for h in slopes:
                    found[h][k] = by[h].to(params[k].dtype)
        return new, {"slots": slots, "slopes": found, "towers": towers}

    def learning_rate(self, state: Levels) -> Tensor:
        """The learning rate ``η`` now, 0-d; with ``per_tensor`` the mean over the tensors."""
        rates = [t["values"].get("lr", self.rule.values()["lr"]) for t in state["towers"].values()]
        return torch.stack([torch.as_tensor(rate, dtype=torch.float64) for rate in rates]).mean()

    def _param_sets(self, params: Params) -> dict[str, list[str]]:
        return {k: [k] for k in params} if self.per_tensor else {"all": list(params)}

    def _hypergradients(
        self, names: list[str], grads: Params, state: Levels, levels: Levels
    ) -> dict[str, Tensor]:
        def inner(x: Params, y: Params) -> Tensor:
            return torch.stack([(wide(x[k]) * wide(y[k])).sum().double() for k in names]).sum()

        found = {}
        for h, slopes in state["slopes"].items():
            norm = torch.zeros(())
            if self.rule.normalised:
                norm = (inner(grads, grads) * inner(slopes, slopes)).sqrt()
            value = levels["values"][h]
            found[h] = hypergradient(self.rule, h, value, inner(grads, slopes), norm)
        return found
