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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.optim.optimizer import (
    ParamsT,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from fedexp.hypergradients.fused import (
    STEPS,
    Group,
    ParamBatch,
    inner_products,
    norm_product,
    step_inplace,
    step_pure,
)
from fedexp.hypergradients.rules import Rule
from fedexp.hypergradients.tower import Levels, first_levels, hypergradient, mean_of, updated

Per: TypeAlias = Literal["all", "group", "tensor"]


@dataclass(frozen=True, slots=True)
class ParamSet:
    """Parameters that share one tower.

    Attributes:
        owner: The group that holds the tower, in ``owner["towers"][index]``.
        index: See above.
        members: The parameters, by the group whose settings they step with.
    """

    owner: Group
    index: int
    members: Sequence[tuple[Group, Sequence[Tensor]]]


class HypergradientOptimizer(torch.optim.Optimizer):
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
        rule = self.rule.with_values({k: group[k] for k in self.rule.names})
        first, mine = self.param_groups[0], rule.values()
        if self.per == "all" and (other := [k for k in rule.tuned_names if mine[k] != first[k]]):
            self.param_groups.pop()
            raise ValueError(
                f'{type(self).__name__}(per="all"): groups differ in {other}, which all share. '
                'Use per="group".'
            )
        count = {"tensor": len(group["params"]), "group": 1, "all": group is first}[self.per]
        group["towers"] = [first_levels(rule, mine) for _ in range(count)]
        group["shown"] = {k: mine[k] for k in rule.tuned_names}
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
            self._take_over(group)
        for param_set in self._param_sets():
            batches = [b for group, ps in param_set.members for b in self._batches(group, ps)]
            if batches:
                towers, i = param_set.owner["towers"], param_set.index
                towers[i] = self._updated(towers[i], batches)
                for batch in batches:
                    self._move(batch, towers[i]["values"])
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
        first, tuned = self.param_groups[0], self.rule.tuned_names
        fixed = {k: first[k] for k in self.rule.names if k not in tuned}
        towers = [levels for group in self.param_groups for levels in group["towers"]]
        return mean_of(self.rule.with_values(fixed), towers)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "per": self.per}

    def _param_sets(self) -> Iterator[ParamSet]:
        groups = self.param_groups
        if self.per == "all":
            yield ParamSet(groups[0], 0, [(group, group["params"]) for group in groups])
            return
        for group in groups:
            if self.per == "group":
                yield ParamSet(group, 0, [(group, group["params"])])
            else:
                for i, param in enumerate(group["params"]):
                    yield ParamSet(group, i, [(group, [param])])

    def _batches(self, group: Group, params: Sequence[Tensor]) -> list[ParamBatch]:
        """Those that have a gradient: in one batch, unless some did not always have one."""
        found: dict[tuple[Any, ...], ParamBatch] = {}
        for p in params:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise ValueError(
                    f"{type(self).__name__}(gradient=sparse): only dense gradients have a "
                    "hypergradient here. Use Embedding(sparse=False)."
                )
            state = self.state[p]
            if p.is_complex():
                p, grad = torch.view_as_real(p), torch.view_as_real(grad)
            if not state:
                rule = self.rule.with_values({k: group[k] for k in self.rule.names if k != "lr"})
                state["slots"] = rule.init(p)
            key = state.get("seen"), state["slots"].get("step"), *state["slots"]
            batch = found.get(key) or found.setdefault(key, ParamBatch(group))
            batch.params.append(p)
            batch.grads.append(-grad if group["maximize"] else grad)
            batch.states.append(state)
        return list(found.values())

    def _updated(self, levels: Levels, batches: list[ParamBatch]) -> Levels:
        if self.rule.hyper is None:
            return levels
        fresh = [b for b in batches if b.states[0].get("seen") == b.group["steps"]]
        inner = inner_products(self.rule, fresh)
        norm = norm_product(fresh) if self.rule.normalised else 0.0
        grads = {
            h: hypergradient(self.rule, h, value, inner[h], norm)
            for h, value in levels["values"].items()
        }
        return updated(self.rule, levels, grads)

    def _move(self, batch: ParamBatch, tuned_values: dict[str, float]) -> None:
        group = batch.group
        values = {k: group[k] for k in self.rule.names} | tuned_values
        inplace = group["foreach"] and type(self.rule) in STEPS
        (step_inplace if inplace else step_pure)(self.rule, batch, values)
        for state in batch.states:
            state["seen"] = group["steps"] + 1

    def _take_over(self, group: Group) -> None:
        """Take over what was set from outside since the last step, as schedulers do."""
        if group.get("betas") != group.get("shown_betas"):
            group |= _unpacked(group)
        for h, shown in group["shown"].items():
            if (now := group[h]) != shown:
                for levels in group["towers"]:
                    value = levels["values"][h]
                    levels["values"][h] = value / shown * now if shown else now

    def _show(self, group: Group) -> None:
        group["steps"] += 1
        towers = group["towers"] if self.per != "all" else self.param_groups[0]["towers"]
        for h in group["shown"]:
            group[h] = group["shown"][h] = sum(t["values"][h] for t in towers) / len(towers)
        group |= betas_of(group)


Hypergradient = HypergradientOptimizer
"""The short name; optimizers that were pickled under it can be read."""


def betas_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``betas`` as `torch.optim` has them, of a rule's ``beta1`` and ``beta2`` if it has these.

    Either may be set in a group; ``shown_betas`` tells who did. Schedulers set the pair.
    """
    if "beta2" not in values:
        return {}
    return dict.fromkeys(("betas", "shown_betas"), (values["beta1"], values["beta2"]))


def _unpacked(group: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
