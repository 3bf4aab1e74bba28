"""Towers as `torch.optim` optimizers: learning rates that tune themselves, without a second graph.

    optimizer = Hypergradient(model.parameters(), SGD(0.01, hyper=SGD(1e-3, hyper=SGD(1e-4))))

is used as any other optimizer. A step first takes the inner products of the new gradients with
what the last step stored, moves the hyperparameters from the top of the tower down, then the
weights. See `fedexp.hypergradients.tower` for why this equals the paper's hypergradient.

``group["lr"]`` is the live learning rate: read at the start of `step`, written by it. So a
`torch.optim.lr_scheduler` that multiplies (`StepLR`, `ExponentialLR`, `MultiStepLR`) scales the
tuned rate, which is tuned on from there; one that assigns (`LambdaLR`, `OneCycleLR`) replaces it.
So it is with ``group["momentum"]``, and with ``group["betas"]``, the pair of ``beta1``, ``beta2``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._C._autograd import _profiler_enabled
from torch.optim.optimizer import (
    ParamsT,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from fedexp.hypergradients.batches import Group
from fedexp.hypergradients.fused import tuned
from fedexp.hypergradients.rules import Rule
from fedexp.hypergradients.steps import (
    STEPS,
    Pair,
    inner_products,
    move_lists,
    move_one,
    norm_product,
)
from fedexp.hypergradients.tower import Levels, climb, hypergradient, settled, start
from fedexp.hypergradients.units import Layout, Per, Unit, divided


class Hypergradient(torch.optim.Optimizer):
    """Any rule, tuned by the tower above it.

    Chandra et al. 2022, arXiv:1909.13371; with one level and ``tuned=("lr",)``, the rules of
    Baydin et al. 2018, arXiv:1703.04782. Memory beyond the rule's own: one copy of the
    parameters for the learning rate (none with heavy-ball momentum), one or two per further
    hyperparameter. A parameter that the last step did not move has no hypergradient.

    Args:
        params: Parameters or groups; groups may set any hyperparameter of `rule`.
        rule: How the weights move; its `hyper` is the next level.
        per: One set of hyperparameters for ``all`` parameters, each ``group`` or each ``tensor``.
            In the last case ``group["lr"]`` is the mean, and setting it scales every tensor's.
        foreach: Lists of tensors at once; else, as for rules of your own, one after another.
        maximize: Ascend.

    Raises:
        ValueError: At once for a hyperparameter outside its range, in `step` for a sparse gradient.
    """

    _layout: Layout | None = None  # Of the class, so that copies start without.

    def __init__(
        self,
        params: ParamsT,
        rule: Rule,
        *,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
    ) -> None:
        self.rule, self.per = rule, per
        options = {"foreach": foreach, "maximize": maximize, **betas_of(rule.values())}
        super().__init__(params, {**rule.values(), **options})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, with hyperparameters of its own unless shared by ``all``."""
        super().add_param_group({**param_group, **_unpacked(param_group)})
        group = self.param_groups[-1]
        group |= betas_of(group)
        rule = self.rule.moved({k: group[k] for k in self.rule.names})
        first, mine = self.param_groups[0], rule.values()
        if self.per == "all" and (other := [k for k in tuned(rule) if mine[k] != first[k]]):
            self.param_groups.pop()
            raise ValueError(
                f'{type(self).__name__}(per="all"): groups differ in {other}, which all share. '
                'Use per="group".'
            )
        count = {"tensor": len(group["params"]), "group": 1, "all": group is first}[self.per]
        group["towers"] = [start(rule, mine) for _ in range(count)]
        group["shown"] = {k: mine[k] for k in tuned(rule)}
        group["steps"] = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the hyperparameters, top of the tower first, then the weights."""
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return self._recorded_step(closure)
        return self._recorded_step(closure) if _profiler_enabled() else self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # Torch then leaves it as it is.

    @torch.no_grad()
    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            self._absorb(group)
        owner = type(self).__name__
        for unit in self._units():
            pairs = [x for part in unit.parts for x in part.batches(self.rule, owner, self.state)]
            if pairs:
                towers = unit.owner["towers"]
                levels = towers[unit.index] = self._climb(towers[unit.index], pairs)
                for pair in pairs:
                    self._move(pair, levels["values"])
        for group in self.param_groups:
            self._show(group)
        return loss

    # Torch wraps every step so, which costs as much as moving 100,000 weights: here only where
    # hooks are registered or a profiler runs.
    _recorded_step = torch.optim.Optimizer.profile_hook_step(_step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:  # As torch does, without its entry in profiles.
            for p in group["params"]:
                p.grad = None

    def learned(self) -> Rule:
        """The tower at its present hyperparameters, the mean of what is tuned separately.

        ``Hypergradient(params, optimizer.learned())`` carries them to another round.
        """
        first = self.param_groups[0]
        fixed = {k: first[k] for k in self.rule.names if k not in tuned(self.rule)}
        towers = [levels for group in self.param_groups for levels in group["towers"]]
        return settled(self.rule.moved(fixed), towers)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "per": self.per}

    def _units(self) -> list[Unit]:
        groups = self.param_groups
        params = [p for group in groups for p in group["params"]]
        states = list(map(self.state.get, params))
        flags = [group["foreach"] for group in groups]
        if not (self._layout and self._layout.holds(groups, flags, params, states)):
            units = divided(groups, self.per)
            self._layout = Layout((list(groups), flags, params, states), units)
        return self._layout.units

    def _climb(self, levels: Levels, pairs: list[Pair]) -> Levels:
        if self.rule.hyper is None:
            return levels
        fresh = [pair for pair in pairs if pair[0].seen == pair[0].group["steps"]]
        inner = inner_products(self.rule, fresh)
        norm = norm_product(fresh) if self.rule.normalised else 0.0
        grads = {
            h: hypergradient(self.rule, h, value, inner[h], norm)
            for h, value in levels["values"].items()
        }
        return climb(self.rule, levels, grads)

    def _move(self, pair: Pair, tuned_values: dict[str, float]) -> None:
        batch, grads = pair
        group = batch.group
        values = {k: group[k] for k in self.rule.names} | tuned_values
        if group["foreach"] and type(self.rule) in STEPS:
            move_lists(self.rule, batch, grads, values)
        else:
            self._layout = None  # Its lists are of tensors that the pure rule replaces.
            for p, g, state in zip(batch.params, grads, batch.states, strict=True):
                move_one(self.rule, p, g, state, values)
        batch.seen = group["steps"] + 1
        for state in batch.states:
            state["seen"] = batch.seen

    def _absorb(self, group: Group) -> None:
        """Take over what was set from outside since the last step, as schedulers do."""
        if group.get("betas") != group.get("shown_betas"):
            group |= _unpacked(group)
        for h, shown in group["shown"].items():
            if (now := group[h]) != shown:
                group["towers"] = [
                    {
                        **t,
                        "values": {
                            **t["values"],
                            h: t["values"][h] / shown * now if shown else now,
                        },
                    }
                    for t in group["towers"]
                ]

    def _show(self, group: Group) -> None:
        group["steps"] += 1
        towers = group["towers"] if self.per != "all" else self.param_groups[0]["towers"]
        for h in group["shown"]:
            group[h] = group["shown"][h] = sum(t["values"][h] for t in towers) / len(towers)
        group |= betas_of(group)


def betas_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``betas`` as `torch.optim` has them, of a rule's ``beta1`` and ``beta2`` if it has these.

    Either may be set in a group; ``shown_betas`` tells who did. Schedulers set the pair.
    """
    if "beta2" not in values:
        return {}
    return dict.fromkeys(("betas", "shown_betas"), (values["beta1"], values["beta2"]))


def _unpacked(group: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
