"""Which parameters share hyperparameters, and in which batches they step."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Literal, TypeAlias

from torch import Tensor

from fedexp.hypergradients.adaptive_rules import Adam
from fedexp.hypergradients.batches import Batch, Group, State, real
from fedexp.hypergradients.rules import Rule

Per: TypeAlias = Literal["all", "group", "tensor"]


@dataclass(slots=True)
class Part:
    """The parameters of one group that share a tower, and their batch if all step alike."""

    group: Group
    params: list[Tensor]
    batch: Batch | None = field(default=None, repr=False)

    def batches(
        self, rule: Rule, owner: str, states: MutableMapping[Tensor, State]
    ) -> list[tuple[Batch, list[Tensor]]]:
        """Those that have gradients, and these as the rule is to see them."""
        grads = [p.grad for p in self.params]
        if self.batch and not any([g is None or g.is_sparse for g in grads]):
            return [(self.batch, self.batch.gradients(grads))]  # type: ignore[arg-type]
        found: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, grad in zip(self.params, grads, strict=True):
            if grad is not None:
                if grad.is_sparse:
                    raise ValueError(
                        f"{owner}(gradient=sparse): only dense gradients have a "
                        "hypergradient here. Use Embedding(sparse=False)."
                    )
                state = states[p]
                if not state:
                    state["slots"] = self._settled(rule).init(real(p))
                key = state.get("seen"), state["slots"].get("step"), *state["slots"]
                found.setdefault(key, []).append((p, grad))
        return [self._gathered(rule, pairs, states) for pairs in found.values()]

    def _settled(self, rule: Rule) -> Rule:
        return rule.moved({k: self.group[k] for k in rule.names if k != "lr"})

    def _gathered(
        self,
        rule: Rule,
        pairs: list[tuple[Tensor, Tensor]],
        states: MutableMapping[Tensor, State],
    ) -> tuple[Batch, list[Tensor]]:
        batch = Batch.of(self.group, [p for p, _ in pairs], [states[p] for p, _ in pairs])
        if batch.alike and len(pairs) > 1 and self.group["foreach"] and _joins(rule):
            batch.join()
        # Not of complex ones: the real views would stay those of the old memory after `p.data = x`.
        lasting = len(pairs) == len(self.params) and not any(p.is_complex() for p, _ in pairs)
        self.batch = batch if lasting else None
        return batch, batch.gradients([grad for _, grad in pairs])


@dataclass(frozen=True, slots=True)
class Unit:
    """What shares hyperparameters: the place of its tower, and its parameters by group."""

    owner: Group
    index: int
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Layout:
    """The units, and what they were made of: they hold as long as that stays the same."""

    made_of: tuple[Sequence[Any], ...]
    units: list[Unit]

    def holds(self, *made_of: Sequence[Any]) -> bool:
        """Whether it would come out the same."""
        return all(map(_same, made_of, self.made_of))


def divided(groups: Sequence[Group], per: Per) -> list[Unit]:
    """The units of all parameters together, of each group or of each tensor."""
    if per == "all":
        return [Unit(groups[0], 0, [Part(group, list(group["params"])) for group in groups])]
    if per == "group":
        return [Unit(group, 0, [Part(group, list(group["params"]))]) for group in groups]
    return [
        Unit(group, i, [Part(group, [p])])
        for group in groups
        for i, p in enumerate(group["params"])
    ]


def _joins(rule: Rule) -> bool:
    """Many operations on each parameter pay for copying the gradients once."""
    return type(rule) is Adam and rule.hyper is not None and rule.tuned != ("lr",)


def _same(x: Sequence[Any], y: Sequence[Any]) -> bool:
    """By identity: tensors compare by value."""
    return len(x) == len(y) and all(map(is_, x, y))
