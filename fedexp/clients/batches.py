"""Lists of what steps alike, gathered once: between steps only the gradients change.

The state of a parameter, in `torch.optim`'s ``state``, is a dict: ``slots`` is the rule's own,
``kept`` and ``weights`` are the derivative of the last step, ``seen`` is when that was. A `Batch`
holds the same tensors in lists. The state is the truth: a batch can be made of it at any time.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fedexp.clients.update_rules import Rule

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Lists: TypeAlias = dict[str, list[Tensor]]
Weights: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(slots=True)
class Batch:
    """Parameters of one group that step alike: of one age, and last moved in the same step.

    Attributes:
        group: Their group.
        params: Complex ones as pairs of real numbers.
        states: Their states.
        slots: The rule's tensors by name, one per parameter.
        kept: Vectors ``s_j`` by name, one per parameter; steps write into them.
        weights: Numbers ``c_jh`` with ``∂w/∂h = Σ_j c_jh s_j``, ``s_j`` kept or a slot.
        seen: The count of the group's steps after the last that moved these.
        age: How many did.
        alike: Of one dtype, on one device, contiguous: the fused kernels ask for it.
    """

    group: Group
    params: list[Tensor]
    states: list[State]
    slots: Lists
    kept: Lists
    weights: Weights
    seen: int | None
    age: float
    alike: bool
    flats: Lists = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, group: Group, params: Sequence[Tensor], states: list[State]) -> "Batch":
        """Gather from states that agree on everything but tensors."""
        params, first = [real(p) for p in params], states[0]
        slots = {
            k: [s["slots"][k] for s in states] for k, v in first["slots"].items() if k != "step"
        }
        kept = {k: [s["kept"][k] for s in states] for k in first.get("kept", ())}
        kinds = {(p.dtype, p.device) for p in params}
        alike = len(kinds) == 1 and all(
            isinstance(x, Tensor) and x.is_contiguous() and (x.dtype, x.device) in kinds
            for x in sum([params, *slots.values(), *kept.values()], [])
        )
        weights, seen = first.get("weights", {}), first.get("seen")
        age = first["slots"].get("step", 0.0)
        return cls(group, params, states, slots, kept, weights, seen, age, alike)

    def flat(self, name: str) -> list[Tensor]:
        """The vectors of a name, each in one dimension."""
        if name not in self.flats:
            vectors = self.kept[name] if name in self.kept else self.slots[name]
            if not all(x.is_contiguous() for x in vectors):  # Copies, which no step writes to.
                return [x.reshape(-1) for x in vectors]
            self.flats[name] = [x.view(-1) for x in vectors]
        return self.flats[name]

    def note(self, weights: Weights) -> None:
        """Write into the states what a step left behind."""
        if self.weights.keys() != weights.keys() or "kept" not in self.states[0]:
            self.flats.clear()
            for name in self.kept.keys() - weights.keys():
                del self.kept[name]
            for i, state in enumerate(self.states):
                state["kept"] = {k: x[i] for k, x in self.kept.items()}
        self.weights = weights
        for state in self.states:
            state["weights"] = weights


@dataclass(slots=True)
class Part:
    """The parameters of one group that share a tower, and their batch if all step alike."""

    group: Group
    params: list[Tensor]
    batch: Batch | None = field(default=None, repr=False)

    def batches(
        self, rule: Rule, owner: str, states: MutableMapping[Tensor, State]
    ) -> list[tuple[Batch, list[Tensor]]]:
        """Those with gradients, and these as the rule is to see them."""
        grads = [p.grad for p in self.params]
        if any([g is not None and g.is_sparse for g in grads]):  # A list: short ones are faster so.
            raise ValueError(
                f"{owner}(gradient=sparse): only dense gradients have a "
                "hypergradient here. Use Embedding(sparse=False)."
            )
        if self.batch and not any([g is None for g in grads]):
            return [(self.batch, self._seen(grads))]
        found: dict[tuple[Any, ...], list[int]] = {}
        for i, (p, grad) in enumerate(zip(self.params, grads, strict=True)):
            if grad is not None:
                state = states[p]
                if not state:
                    state["slots"] = self._settled(rule).init(real(p))
                slots = state["slots"]
                found.setdefault((state.get("seen"), slots.get("step"), *slots), []).append(i)
        return [self._gathered(at, grads, states) for at in found.values()]

    def _settled(self, rule: Rule) -> Rule:
        return rule.moved({k: self.group[k] for k in rule.names if k != "lr"})

    def _gathered(
        self,
        at: list[int],
        grads: list[Tensor | None],
        states: MutableMapping[Tensor, State],
    ) -> tuple[Batch, list[Tensor]]:
        some = [self.params[i] for i in at]
        batch = Batch.of(self.group, some, [states[p] for p in some])
        self.batch = batch if len(some) == len(self.params) else None
        return batch, self._seen([grads[i] for i in at])

    def _seen(self, grads: list[Tensor | None]) -> list[Tensor]:
        seen = cast(list[Tensor], grads)
        if any([g.is_complex() for g in seen]):
            seen = [real(g) for g in seen]
        return list(torch._foreach_neg(seen)) if self.group["maximize"] else seen


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x
