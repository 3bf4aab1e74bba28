"""Parameters that step together, and what their states hold between two steps.

The state of a parameter, in ``optimizer.state``, is a dict:

- ``slots`` is the state of the rule.
- ``kept`` and ``weights`` are the derivative of the last step, ``∂u/∂h = Σ_j weights[j][h] · s_j``,
  where the vector ``s_j`` is ``kept[j]``, or ``slots[j]`` if nothing is kept under ``j``. In this
  form the hyperparameters share vectors. That of the learning rate is the direction of the step,
  which the step needs anyway.
- ``root`` is empty, or the numbers ``eps`` and ``kappa``. With these, the vectors ``m``, ``grad``
  and ``curve`` are made when they are needed; see `fedexp.hypergradients.inner_products`.
- ``seen`` is the count of the group's steps after the last one that moved this parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.joined import Tensors, joined_copies, runs

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Weights: TypeAlias = Mapping[str, Mapping[str, float]]
Root: TypeAlias = Mapping[str, float]


class Derivative(NamedTuple):
    """The numbers of ``∂u/∂h``, as the top of this file has them."""

    weights: Weights
    root: Root


NOTHING, DESCENT = Derivative({}, {}), Derivative({"direction": {"lr": -1.0}}, {})
"""No derivative; and ``∂u/∂η = -d``, where the direction ``d`` is kept."""


@dataclass(slots=True)
class ParamBatch:
    """Parameters of one group that step together: equally old, and last moved in the same step.

    Attributes:
        group: The group in ``optimizer.param_groups``.
        params: The parameters; a complex one as a view of pairs of real numbers.
        grads: Their gradients, in the same order and form.
        states: Their states, in the same order.
        owns_grads: Whether ``grads`` are copies that no backward pass writes to.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.batches import ParamBatch
        >>> batch = ParamBatch({}, [torch.ones(2)], [torch.ones(2)], [{"slots": {}}])
        >>> batch.copy("direction", batch.grads)
        [tensor([1., 1.])]
        >>> batch.states
        [{'slots': {}, 'kept': {'direction': tensor([1., 1.])}}]
    """

    group: Group
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    owns_grads: bool = False

    def slots(self, name: str) -> list[Tensor]:
        """The tensors of the rule's state under a name."""
        return [state["slots"][name] for state in self.states]

    def vectors(self, name: str) -> list[Tensor]:
        """The vectors ``s_j`` of the last derivative under a name."""
        return [state["kept" if name in state["kept"] else "slots"][name] for state in self.states]

    def memory(self, name: str) -> list[Tensor]:
        """Where to keep the vectors of a name; if there are some of the last step, over these."""
        if name not in self.states[0].get("kept", ()):  # All have the same names.
            self.keep(name, [torch.empty_like(param) for param in self.params])
        return [state["kept"][name] for state in self.states]

    def keep(self, name: str, tensors: Tensors) -> None:
        """Keep the tensors themselves under a name."""
        for state, tensor in zip(self.states, tensors, strict=True):
            state.setdefault("kept", {})[name] = tensor

    def copy(self, name: str, tensors: Tensors) -> list[Tensor]:
        """Keep copies of tensors under a name."""
        memory = self.memory(name)
        torch._foreach_copy_(memory, tensors)
        return memory

    def write(self, name: str, op: str, *lists: Tensors, **options: float) -> list[Tensor]:
        """Keep what an operation of torch makes of the lists, tensor by tensor, under a name.

        A list may be the one that is written to.
        """
        memory = self.memory(name)
        if memory[0].is_cpu:  # Lists are no faster there, and have no `out`.
            single = getattr(torch, op)
            for out, tensors in zip(memory, zip(*lists, strict=True), strict=True):
                single(*tensors, **options, out=out)
        else:
            torch._foreach_copy_(memory, getattr(torch, f"_foreach_{op}")(*lists, **options))
        return memory

    def own_grads(self) -> list[Tensor]:
        """Make ``grads`` copies, one after another in memory."""
        if not self.owns_grads:
            self.grads, self.owns_grads = self._joined(self.grads), True
        return self.grads

    def decayed_grads(self, decay: float) -> Tensors:
        """The gradients with those of an L2 penalty, ``g + λw``; in place if they are own."""
        if not decay:
            return self.grads
        if not self.owns_grads:
            return torch._foreach_add(self.grads, self.params, alpha=decay)
        torch._foreach_add_(self.grads, self.params, alpha=decay)
        return self.grads

    def join_slots(self, *names: str) -> None:
        """Put the tensors of the rule's state one after another in memory, name by name."""
        for name in names:
            for state, tensor in zip(self.states, self._joined(self.slots(name)), strict=True):
                state["slots"][name] = tensor

    def _joined(self, tensors: Tensors) -> list[Tensor]:
        return [x for run in runs(self.params) for x in joined_copies(tensors[run])]

    @property
    def root(self) -> Root:
        """The numbers ``eps`` and ``kappa``; empty if the last step kept its vectors ready."""
        root: Root = self.states[0].get("root", {})
        return root

    @property
    def weights(self) -> Weights:
        """The weights of the last derivative; empty before the first step."""
        weights: Weights = self.states[0].get("weights", {})
        return weights
