"""Towers as `torch.optim` optimizers: learning rates that tune themselves.

    optimizer = Hypergradient(model.parameters(), SGD(0.01, hyper=SGD(1e-3, hyper=SGD(1e-4))))

is used as any other optimizer. A step first takes the inner products of the new gradients with the
derivative of the last step. With these it moves the hyperparameters, from the top of the tower
down, and then the weights. `fedexp.hypergradients.tower` says why this is the hypergradient of
Chandra et al. 2022, which they get by backpropagation through the last step.

``group["lr"]`` is the live learning rate: `step` reads it first, and writes it at the end. So a
`torch.optim.lr_scheduler` that multiplies (`StepLR`, `ExponentialLR`, `MultiStepLR`) scales the
tuned rate, and tuning goes on from there. One that assigns (`LambdaLR`, `OneCycleLR`) replaces it.
The same holds for ``group["momentum"]`` and for ``group["betas"]``, the pair of ``beta1`` and
``beta2``.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import unwrap
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import (
    ParamsT,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from fedexp.hypergradients.batches import Group, ParamBatch
from fedexp.hypergradients.inner_products import inner_products, norm_product
from fedexp.hypergradients.inplace import can_step_inplace, step_inplace, step_pure
from fedexp.hypergradients.rules import Rule
from fedexp.hypergradients.tower import Levels, first_levels, hypergradient, mean_of, updated

try:
    from torch._C._autograd import _profiler_enabled as _is_recorded
except ImportError:  # PyTorch has no public name for it; where it is gone, every step is recorded

    def _is_recorded() -> bool:
        return True


Per: TypeAlias = Literal["all", "group", "tensor"]


class ParamSet(NamedTuple):
    """Parameters that share one tower, ``owner["towers"][place]``.

    Attributes:
        owner: The group that holds the tower.
        place: Its index there.
        members: The parameters, each list with the group whose settings these step with.
    """

    owner: Group
    place: int
    members: Sequence[tuple[Group, Sequence[Tensor]]]


class HypergradientOptimizer(torch.optim.Optimizer):
    """Any rule, tuned by the rules above it; ``Hypergradient`` for short.

    ``θ ← u'(θ, ⟨g', ∂u/∂θ⟩)``, then ``w ← u(w, g', θ)``: ``u`` is the rule, ``u'`` the rule above
    it, ``g'`` the gradient now, and ``∂u/∂θ`` the derivative of the last step of ``w``.
    Chandra et al. 2022, arXiv:1909.13371; with one level and ``tuned=("lr",)`` these are the rules
    of Baydin et al. 2018, arXiv:1703.04782.

    Beyond the memory of the rule, tuning takes one copy of the parameters for the learning rate
    (none with heavy-ball momentum), and one or two for each further hyperparameter. The betas of
    Adam take one in all (those of AdamW two), and another one during the step. A parameter that
    the last step did not move has no hypergradient.

    Args:
        params: Parameters or groups. A group may set any hyperparameter of ``rule``.
        rule: How the weights move; its ``hyper`` is the next level.
        per: Whether ``all`` parameters share their hyperparameters, those of each ``group`` do, or
            each ``tensor`` has its own. In the last case ``group["lr"]`` is the mean, and setting
            it scales that of every tensor.
        foreach: Whether to use operations on lists of tensors. Rules of your own do not have them,
            and move one parameter after another.
        maximize: Whether to ascend.

    Raises:
        ValueError: A hyperparameter is out of its range, or differs between groups that share it;
            there are no parameters. `step` raises it for a sparse gradient.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGD, HypergradientOptimizer
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> optimizer = HypergradientOptimizer([w], SGD(0.1, hyper=SGD(0.01)))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     (w @ w / 2).backward()
        ...     optimizer.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)  # 0.1 + 0.01 ⟨0.9w, w⟩
        0.145
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
        owner, pers = type(self).__name__, get_args(Per)
        if not isinstance(rule, Rule):
            raise ValueError(
                f"{owner}(rule={rule!r}): must be a rule. Use SGD(0.1, hyper=SGD(1e-3))."
            )
        if per not in pers:
            raise ValueError(f"{owner}(per={per!r}): must be one of {pers}.")
        self.rule, self.per = rule, per
        options = {"foreach": foreach, "maximize": maximize, **betas_of(rule.values())}
        super().__init__(params, {**rule.values(), **options})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, as `torch.optim.Optimizer` does.

        Raises:
            ValueError: With ``per="all"``, a tuned hyperparameter differs from the first group's.
        """
        # torch's wrapper around its own imports PyTorch's compiler, which takes a second.
        above: Any = super().add_param_group
        unwrap(above.__func__)(self, {**param_group, **_unpacked(param_group)})
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
        """Move the hyperparameters, from the top of the tower down, and then the weights.

        Args:
            closure: Computes the loss and its gradients anew; it is called first.

        Returns:
            What the closure returned.

        Raises:
            ValueError: A gradient is sparse.
        """
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return self._recorded_step(closure)
        return self._recorded_step(closure) if _is_recorded() else self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # So that torch does not wrap it.

    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        was_on = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # `torch.no_grad` takes six times as long.
        try:
            self._move_all()
        finally:
            torch._C._set_grad_enabled(was_on)
        return loss

    def _move_all(self) -> None:
        for group in self.param_groups:
            self._take_over(group)
        for param_set in self._param_sets():
            batches = [b for group, ps in param_set.members for b in self._batches(group, ps)]
            if batches:
                towers, i = param_set.owner["towers"], param_set.place
                towers[i] = self._updated(towers[i], batches)
                for batch in batches:
                    self._move(batch, towers[i]["values"])
        for group in self.param_groups:
            self._show(group)

    # Torch wraps every `step` in this, which takes as long as moving 100,000 weights. Here it is
    # used only where hooks are registered or a profiler runs.
    _recorded_step = torch.optim.Optimizer.profile_hook_step(_step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as `torch.optim.Optimizer` does but without an entry in profiles."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def learned(self) -> Rule:
        """The rule, and those above it, at the present values of the hyperparameters.

        These are means where groups or tensors have their own. An optimizer built with the
        result goes on from these values.
        """
        first, tuned = self.param_groups[0], self.rule.tuned_names
        fixed = {k: first[k] for k in self.rule.names if k not in tuned}
        towers = [levels for group in self.param_groups for levels in group["towers"]]
        return mean_of(self.rule.with_values(fixed), towers)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "per": self.per}

    def _param_sets(self) -> list[ParamSet]:
        groups = self.param_groups
        if self.per == "all":
            return [ParamSet(groups[0], 0, [(group, group["params"]) for group in groups])]
        if self.per == "group":
            return [ParamSet(group, 0, [(group, group["params"])]) for group in groups]
        each = [(group, i, p) for group in groups for i, p in enumerate(group["params"])]
        return [ParamSet(group, i, [(group, [p])]) for group, i, p in each]

    # Sets and batches are made anew at every step. On an MLP, and all the more on larger models,
    # keeping them between steps saves less than a tenth of a training step, but has to notice
    # whatever a program may exchange: groups, parameters, their memory, their state.
    def _batches(self, group: Group, params: Sequence[Tensor]) -> list[ParamBatch]:
        """The parameters that have a gradient: one batch, unless some lacked one at times."""
        found: dict[tuple[Any, ...], ParamBatch] = {}
        states, maximize = self.state, group["maximize"]
        for p in params:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise ValueError(
                    f"{type(self).__name__}(gradient=sparse): only dense gradients have a "
                    "hypergradient here. Use Embedding(sparse=False)."
                )
            state = states[p]
            if p.is_complex():  # A view: what is written to it, the parameter has.
                p, grad = torch.view_as_real(p), torch.view_as_real(grad)
            if not state:
                rule = self.rule.with_values({k: group[k] for k in self.rule.names if k != "lr"})
                state["slots"] = rule.init(p)
            slots = state["slots"]
            key = state.get("seen"), slots.get("step"), *slots
            batch = found.get(key)
            if batch is None:
                found[key] = batch = ParamBatch(group)
            batch.params.append(p)
            batch.grads.append(-grad if maximize else grad)
            batch.states.append(state)
        return list(found.values())

    def _updated(self, levels: Levels, batches: list[ParamBatch]) -> Levels:
        if self.rule.hyper is None:
            return levels
        # A batch that sat out the last step holds the derivative of an older one.
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
        inplace = group["foreach"] and can_step_inplace(self.rule, values)
        (step_inplace if inplace else step_pure)(self.rule, batch, values)
        for state in batch.states:
            state["seen"] = group["steps"] + 1

    def _take_over(self, group: Group) -> None:
        """Take over values that a scheduler, or the user, set in the group since the last step."""
        if group.get("betas") != group.get("shown_betas"):
            group |= _unpacked(group)
        for h, shown in group["shown"].items():
            if (now := group[h]) != shown:
                for levels in group["towers"]:
                    value = levels["values"][h]
                    # The group shows a mean, so a change scales the value of every tensor.
                    levels["values"][h] = value / shown * now if shown else now

    def _show(self, group: Group) -> None:
        """Write the hyperparameters into the group, for schedulers and for the user."""
        group["steps"] += 1
        towers = group["towers"] if self.per != "all" else self.param_groups[0]["towers"]
        if not towers:
            return  # A group without parameters, with per="tensor".
        for h in group["shown"]:
            group[h] = group["shown"][h] = sum([t["values"][h] for t in towers]) / len(towers)
        group |= betas_of(group)


Hypergradient = HypergradientOptimizer
"""The short name. Pickles of earlier versions refer to it."""


def betas_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``betas`` as in `torch.optim`, the pair of ``beta1`` and ``beta2``; empty without these.

    The pair is there twice. Schedulers set ``betas``; then it differs from ``shown_betas``.

    Example:
        >>> from fedexp.hypergradients.optimizer import betas_of
        >>> betas_of({"lr": 0.1, "beta1": 0.9, "beta2": 0.99})
        {'betas': (0.9, 0.99), 'shown_betas': (0.9, 0.99)}
        >>> betas_of({"lr": 0.1})
        {}
    """
    if "beta2" not in values:
        return {}
    return dict.fromkeys(("betas", "shown_betas"), (values["beta1"], values["beta2"]))


def _unpacked(group: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
