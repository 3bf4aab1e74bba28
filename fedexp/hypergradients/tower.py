"""Towers of rules: how hyperparameters move, and a functional tower for cohorts of clients.

With ``w_new = u(w, g, θ)`` the last step and ``g'`` the gradient at ``w_new``, the hypergradient is
``df(w_new)/dθ = ⟨g', ∂u/∂θ⟩``. Backpropagation through ``u`` gives the same number: Chandra et al.
2022 (arXiv:1909.13371) detach everything older than one step, so ``u`` is the only path from ``θ``
to the loss. But ``∂u/∂θ`` is known when the step is made; it is stored, and no second graph is
ever built. Levels above obey the same formula, with the hypergradients below in place of ``g'``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.rules import Rule, Slots
from fedexp.hypergradients.scales import Number, clip, finite, no_zero, wide

Levels: TypeAlias = dict[str, Any]
"""A tower's state above a rule: ``values``, and if they are tuned ``slots``, ``slopes``, ``above``.

``values[h]`` is a tuned hyperparameter, ``slots[h]`` the state of the rule above for it,
``slopes[c][h]`` the derivative of its last step by the hyperparameter ``c`` of the rule above.
"""

Params: TypeAlias = Mapping[str, Tensor]


def first_levels(rule: Rule, values: Mapping[str, Number]) -> Levels:
    """The state above `rule` before the first step, at the given values of what is tuned."""
    upper = rule.hyper
    if upper is None:
        return {"values": {}}
    like = next(iter(values.values()))
    above: dict[str, Number] = {k: like * 0 + v for k, v in upper.values().items()}
    return {
        "values": {k: values[k] for k in rule.tuned},
        "slots": {k: _numbers(upper.init(values[k]), like) for k in rule.tuned},
        "slopes": {c: {k: like * 0 for k in rule.tuned} for c in upper.tuned if upper.hyper},
        "above": first_levels(upper, above),
    }


def updated(rule: Rule, levels: Levels, grads: Mapping[str, Number]) -> Levels:
    """Move what is tuned of `rule` by ``grads[h] = df/dθ_h``: the top of the tower first."""
    upper = rule.hyper
    if upper is None:
        return levels
    above, with_what = levels["above"], upper.values()
    if upper.hyper:
        above = updated(upper, above, _lift(upper, levels, grads))
        with_what |= above["values"]
    values, slots, slopes = {}, {}, {c: {} for c in levels["slopes"]}  # type: ignore[var-annotated]
    for name, value in levels["values"].items():
        scale = rule.scale(name)
        at = scale.raw(value), grads[name], levels["slots"][name], with_what
        raw, slots[name] = upper.update(*at)
        values[name] = scale.natural(raw, otherwise=value)
        if slopes:
            found = upper.slopes(*at, upper.tuned)
            for by in slopes:
                slopes[by][name] = found[by]
    return {"values": values, "slots": slots, "slopes": slopes, "above": above}


def mean_of(rule: Rule, towers: Sequence[Levels]) -> Rule:
    """`rule` and the rules above it at the mean of the values reached in `towers`."""
    if rule.hyper is None:
        return rule
    means = {k: sum(float(t["values"][k]) for t in towers) / len(towers) for k in rule.tuned}
    above = mean_of(rule.hyper, [levels["above"] for levels in towers])
    return replace(rule.with_values(means), hyper=above)


def hypergradient(rule: Rule, name: str, value: Number, inner: Number, norm: Number) -> Number:
    """``df/dθ`` of one hyperparameter ``h``, never NaN and never so large that squares overflow.

    Args:
        rule: The rule it belongs to.
        name: Its name.
        value: Its value at the last step.
        inner: ``⟨g', ∂u/∂h⟩``.
        norm: ``‖g'‖ ‖∂u/∂h‖``; read only by a normalised rule.
    """
    scale = rule.scale(name)
    if not rule.normalised:
        grad = inner * scale.speed(value)
    elif scale.form == "additive":
        grad = inner / no_zero(norm) * value
    else:
        grad = inner / no_zero(norm)
    return clip(finite(grad, 0.0), -1e30, 1e30)


def _lift(upper: Rule, levels: Levels, grads: Mapping[str, Number]) -> dict[str, Number]:
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
    """A tower as pure functions of dicts of tensors: for `torch.func`, and for cohorts under vmap.

    ``params, state = tower.update(params, grads, state)`` steps as `Hypergradient` does. With
    a leading client dimension, ``vmap(tower.update)`` gives every client its own learning rate.
    Hyperparameters are kept in float64; only those that are tuned are in the state.

    Attributes:
        rule: The rule of the weights; its ``hyper`` is the next level.
        per_tensor: One set of hyperparameters for each tensor in place of one for all.
    """

    rule: Rule
    per_tensor: bool = False

    def init(self, params: Params, **values: Tensor) -> Levels:
        """The state before the first step.

        Args:
            params: Weights by name.
            values: Initial values, 0-d, of tuned hyperparameters, where not the rule's own.
        """
        like = torch.zeros((), dtype=torch.float64, device=next(iter(params.values())).device)
        wanted: dict[str, Number] = {**self.rule.values(), **values}
        initial = {k: like + v for k, v in wanted.items()}
        tuned = self.rule.tuned_names
        return {
            "slots": {
                # A count of steps, a float, becomes exact; tensors stay what they are.
                k: {
                    s: v if isinstance(v, Tensor) else like + v
                    for s, v in self.rule.init(p).items()
                }
                for k, p in params.items()
            },
            "slopes": {h: {k: torch.zeros_like(p) for k, p in params.items()} for h in tuned},
            "towers": {unit: first_levels(self.rule, initial) for unit in self._units(params)},
        }

    def update(self, params: Params, grads: Params, state: Levels) -> tuple[Params, Levels]:
        """One step of the whole tower: its top first, the weights last."""
        slopes = state["slopes"]
        towers, new, slots = {}, {}, {}
        found: dict[str, dict[str, Tensor]] = {h: {} for h in slopes}
        for unit, names in self._units(params).items():
            levels = state["towers"][unit]
            towers[unit] = updated(
                self.rule, levels, self._hypergradients(names, grads, state, levels)
            )
            values = {**self.rule.values(), **towers[unit]["values"]}
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
        """``η`` now: 0-d, or the mean over tensors."""
        rates = [t["values"].get("lr", self.rule.values()["lr"]) for t in state["towers"].values()]
        return torch.stack([torch.as_tensor(rate, dtype=torch.float64) for rate in rates]).mean()

    def _units(self, params: Params) -> dict[str, list[str]]:
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
