"""Lists of what steps alike, gathered once: between steps only the gradients change.

The state of a parameter, in `torch.optim`'s ``state``, is a dict: ``slots`` is the rule's own,
``kept`` and ``weights`` are the derivative of the last step, ``seen`` is when that was. A `Batch`
holds the same memory in lists. The state is the truth: a batch can be made of it at any time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Lists: TypeAlias = dict[str, list[Tensor]]
Weights: TypeAlias = Mapping[str, Mapping[str, float]]
EXACT = frozenset({torch.float32, torch.float64})


@dataclass(slots=True)
class Batch:
    """Parameters of one group that step alike: of one age, and last moved in the same step.

    Joined, the tensors of a name are one vector, of which the states have the parts: an operation
    then starts once and not once for each parameter, but gradients have to be copied together.

    Attributes:
        group: Their group.
        params: Complex ones as pairs of real numbers.
        states: Their states.
        slots: The rule's tensors by name, one per parameter or joined.
        kept: Vectors ``s_j`` by name, likewise; steps write into them.
        weights: Numbers ``c_jh`` with ``∂w/∂h = Σ_j c_jh s_j``, ``s_j`` kept or a slot.
        seen: The count of the group's steps after the last that moved these.
        age: How many did.
        alike: All float32 or all float64, on one device, contiguous: for joining and fused kernels.
        joined: See above.
        matrix: If joined, what is kept, a row for each name in the order of the weights.
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
    joined: bool = False
    matrix: Tensor | None = None
    _views: Lists = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, group: Group, params: Sequence[Tensor], states: list[State]) -> "Batch":
        """Gather from states that agree on everything but tensors."""
        params, first = [real(p) for p in params], states[0]
        names = [k for k in first["slots"] if k != "step"]
        slots = {k: [s["slots"][k] for s in states] for k in names}
        kept = {k: [s["kept"][k] for s in states] for k in first.get("kept", ())}
        tensors = [x for xs in (params, *slots.values(), *kept.values()) for x in xs]
        kinds = {(x.dtype, x.device, x.is_contiguous()) for x in tensors if isinstance(x, Tensor)}
        alike = len(kinds) == 1 and params[0].is_contiguous() and params[0].dtype in EXACT
        weights, seen = first.get("weights", {}), first.get("seen")
        age = first["slots"].get("step", 0.0)
        return cls(group, params, states, slots, kept, weights, seen, age, alike)

    def join(self) -> None:
        """Move the tensors of each name into one vector."""
        self.joined = True
        for name, tensors in self.slots.items():
            self.slots[name] = [_joined(tensors)]
            for state, part in zip(self.states, self.parts(self.slots[name]), strict=True):
                state["slots"][name] = part
        self.kept = {name: [_joined(tensors)] for name, tensors in self.kept.items()}
        if self.kept:
            self._renew()

    def parts(self, vectors: list[Tensor]) -> list[Tensor]:
        """One tensor per parameter, of its shape: views of what is joined."""
        if not self.joined:
            return vectors
        parts = torch.split(vectors[0], [p.numel() for p in self.params])
        return [x.view(p.shape) for x, p in zip(parts, self.params, strict=True)]

    def gradients(self, grads: list[Tensor]) -> list[Tensor]:
        """Gradients as the rule is to see them."""
        if any([g.is_complex() for g in grads]):
            grads = [real(g) for g in grads]
        if self.group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        return [_joined(grads)] if self.joined else grads

    def shaped(self, name: str) -> list[Tensor]:
        """The vectors kept under a name, one per parameter, of its shape."""
        if not self.joined:
            return self.kept[name]
        if name not in self._views:
            self._views[name] = self.parts(self.kept[name])
        return self._views[name]

    def flat(self, name: str) -> list[Tensor]:
        """The vectors of a name, each in one dimension."""
        vectors = self.kept[name] if name in self.kept else self.slots[name]
        if self.joined:
            return vectors
        if name not in self._views:
            if not all(x.is_contiguous() for x in vectors):  # Copies, which no step writes to.
                return [x.reshape(-1) for x in vectors]
            self._views[name] = [x.view(-1) for x in vectors]
        return self._views[name]

    def note(self, weights: Weights) -> None:
        """Write into the states what a step left behind."""
        same = self.weights.keys() == weights.keys() and "kept" in self.states[0]
        self.weights = weights
        for state in self.states:
            state["weights"] = weights
        if not same:
            self._renew()

    def _renew(self) -> None:
        self.kept = {name: self.kept[name] for name in self.weights if name in self.kept}
        if self.joined:
            self._stack()
        self._views.clear()
        shaped = {name: self.shaped(name) for name in self.kept}
        for i, state in enumerate(self.states):
            state["kept"] = {k: x[i] for k, x in shaped.items()}

    def _stack(self) -> None:
        self.matrix = torch.stack([self.kept[name][0] for name in self.weights])
        self.kept = {name: [row] for name, row in zip(self.weights, self.matrix, strict=True)}


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def _joined(tensors: list[Tensor]) -> Tensor:
    return cast(Tensor, _flatten_dense_tensors(tensors))  # type: ignore[no-untyped-call]
