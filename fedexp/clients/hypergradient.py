"""Towers as `torch.optim` optimizers: learning rates that tune themselves, without a second graph.

    optimizer = Hypergradient(model.parameters(), SGD(0.01, hyper=SGD(1e-3, hyper=SGD(1e-4))))

is used as any other optimizer. A step first takes the inner products of the new gradients with
what the last step stored, moves the hyperparameters from the top of the tower down, then the
weights. See `fedexp.clients.towers` for why this equals the paper's hypergradient.

``group["lr"]`` is the live learning rate: read at the start of `step`, written by it. So a
`torch.optim.lr_scheduler` that multiplies (`StepLR`, `ExponentialLR`, `MultiStepLR`) scales the
tuned rate, which is tuned on from there; one that assigns (`LambdaLR`, `OneCycleLR`) replaces it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fedexp.clients.foreach_steps import STEPS, Values, tuned
from fedexp.clients.moves import inner_products, move_lists, move_one, norm_product
from fedexp.clients.towers import Levels, climb, hypergradient, settled, start
from fedexp.clients.update_rules import Rule

Group: TypeAlias = dict[str, Any]
Per: TypeAlias = Literal["all", "group", "tensor"]
Batch: TypeAlias = tuple[Group, list[Tensor], list[Tensor], list[dict[str, Any]]]
"""A group, its parameters that have gradients, these, and their states."""


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
        super().__init__(params, {**rule.values(), "foreach": foreach, "maximize": maximize})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, with hyperparameters of its own unless shared by ``all``."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the hyperparameters, top of the tower first, then the weights."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            self._absorb(group)
        for towers, index, members in self._units():
            batches = [b for group, params in members if (b := self._batch(group, params))[1]]
            if batches:
                towers[index] = self._climb(towers[index], batches)
                for batch in batches:
                    self._move(batch, towers[index]["values"])
        for group in self.param_groups:
            self._show(group)
        return loss

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

    def _units(self) -> Iterator[tuple[list[Levels], int, list[tuple[Group, list[Tensor]]]]]:
        """What shares hyperparameters: the place of its tower, and its members by group."""
        groups = self.param_groups
        if self.per == "all":
            yield groups[0]["towers"], 0, [(group, group["params"]) for group in groups]
            return
        for group in groups:
            params = group["params"]
            parts = [params] if self.per == "group" else [[p] for p in params]
            for i, part in enumerate(parts):
                yield group["towers"], i, [(group, part)]

    def _batch(self, group: Group, params: Iterable[Tensor]) -> Batch:
        params = [p for p in params if p.grad is not None]
        grads = [cast(Tensor, p.grad) for p in params]
        if any([g.is_sparse for g in grads]):  # A list: the short ones are faster so.
            raise ValueError(
                f"{type(self).__name__}(gradient=sparse): only dense gradients have a "
                "hypergradient here. Use Embedding(sparse=False)."
            )
        states = [self.state[p] for p in params]
        if any([p.is_complex() for p in params]):
            params = [torch.view_as_real(p) if p.is_complex() else p for p in params]
            grads = [torch.view_as_real(g) if g.is_complex() else g for g in grads]
        for p, state in zip(params, states, strict=True):
            if not state:
                fixed = {k: group[k] for k in self.rule.names if k != "lr"}
                state["slots"] = self.rule.moved(fixed).init(p)
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        return group, params, grads, states

    def _climb(self, levels: Levels, batches: list[Batch]) -> Levels:
        if self.rule.hyper is None:
            return levels
        fresh = [
            (grad, state)
            for group, _, grads, states in batches
            for grad, state in zip(grads, states, strict=True)
            if state.get("seen") == group["steps"]
        ]
        inner = inner_products(self.rule, fresh)
        norm = norm_product(fresh) if self.rule.normalised else 0.0
        grads = {
            h: hypergradient(self.rule, h, value, inner[h], norm)
            for h, value in levels["values"].items()
        }
        return climb(self.rule, levels, grads)

    def _move(self, batch: Batch, values: Values) -> None:
        group, params, grads, states = batch
        values = {k: group[k] for k in self.rule.names} | values
        if group["foreach"] and type(self.rule) in STEPS:
            move_lists(self.rule, params, grads, states, values)
        else:
            for p, g, state in zip(params, grads, states, strict=True):
                move_one(self.rule, p, g, state, values)
        for state in states:
            state["seen"] = group["steps"] + 1

    def _absorb(self, group: Group) -> None:
        """Take over what was set from outside since the last step, as schedulers do."""
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
