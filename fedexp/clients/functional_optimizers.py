"""Local optimizers as pure functions, for many clients at once under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedexp.clients.settings import ClientSettings
from fedexp.hypergradients.rules import Rule
from fedexp.hypergradients.scales import no_zero, wide
from fedexp.hypergradients.tower import Tower

Tensors = dict[str, Tensor]


class FunctionalOptimizer(Protocol):
    """What a group of clients needs of its optimizer.

    Attributes:
        stacked: whether ``init`` and ``update`` take all clients' tensors, ``[clients, ...]``, at
            once; else they take one client's, and run under vmap.
        same_batch: whether ``state["grads"]`` is to be the gradient of the present minibatch at
            ``state["params"]`` whenever ``update`` is called.
    """

    @property
    def stacked(self) -> bool:
        """See above."""
        ...

    @property
    def same_batch(self) -> bool:
        """See above."""
        ...

    def init(self, params: Tensors, lr: Tensor) -> Any:
        """State before the first step, tensors in any nesting; ``lr`` is the client's own, 0-d."""
        ...

    def update(self, params: Tensors, grads: Tensors, state: Any) -> tuple[Tensors, Any]:
        """Parameters and state after a step; may reuse the memory of ``params``."""
        ...

    def learning_rate(self, state: Any) -> Tensor:
        """``η`` now, 0-d; asked only of optimizers that tune it."""
        ...


@dataclass(frozen=True)
class FunctionalSGD:
    """Plain SGD; all clients have one learning rate.

    Attributes:
        settings: its learning rate and weight decay.
    """

    settings: ClientSettings

    stacked = True
    same_batch = False

    def init(self, params: Tensors, lr: Tensor) -> bool:
        """Whether a step has been taken."""
        return False

    def update(self, params: Tensors, grads: Tensors, state: bool) -> tuple[Tensors, bool]:
        """``w ← w - η_l (g + weight_decay · w)``; in place but for the first step."""
        lr = self.settings.lr
        if decay := self.settings.weight_decay:
            grads = {name: g.add(params[name], alpha=decay) for name, g in grads.items()}
        if state:
            torch._foreach_add_(list(params.values()), list(grads.values()), alpha=-lr)
            return params, True
        # Before the first step all clients have the same; it is laid out in memory as the
        # gradients are, since unlike layouts add several times slower.
        same = {name: torch.empty_like(g[:1]).copy_(params[name][:1]) for name, g in grads.items()}
        return {name: torch.add(same[name], g, alpha=-lr) for name, g in grads.items()}, True

    def learning_rate(self, state: bool) -> Tensor:
        """``η_l``."""
        return torch.tensor(self.settings.lr)


@dataclass(frozen=True)
class FunctionalTower:
    """A tower that each client begins at its own learning rate.

    Attributes:
        rule: of the weights; rules above it in ``hyper``.
    """

    rule: Rule

    stacked = False
    same_batch = False

    def init(self, params: Tensors, lr: Tensor) -> Any:
        """The state of `Tower` at ``lr``."""
        return Tower(self.rule).init(params, lr=lr)

    def update(self, params: Tensors, grads: Tensors, state: Any) -> tuple[Tensors, Any]:
        """One step of the tower."""
        new, state = Tower(self.rule).update(params, grads, state)
        return dict(new), state

    def learning_rate(self, state: Any) -> Tensor:
        """``η``."""
        return Tower(self.rule).learning_rate(state)


@dataclass(frozen=True)
class FunctionalDeltaSGD:
    """``DeltaSGD`` as pure functions.

    Attributes:
        gamma: ``γ``.
        delta: ``δ``.
    """

    gamma: float = 2.0
    delta: float = 0.02

    stacked = False
    same_batch = True

    def init(self, params: Tensors, lr: Tensor) -> dict[str, Any]:
        """``θ = 1``, no iterate yet."""
        one, old = torch.ones_like(lr), {"params": params, "grads": params}
        return {"lr": lr, "theta": one, "begun": torch.zeros_like(lr), **old}

    def update(
        self, params: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        """Set the step size from the last two iterates, and step."""
        dx, dg = _distance(params, state["params"]), _distance(grads, state["grads"])
        grown = state["lr"] * (1 + self.delta * state["theta"]) ** 0.5
        usable = (dx > 0) & (dg > 0) & dx.isfinite() & dg.isfinite()
        smooth = torch.where(usable, self.gamma * dx / (2 * no_zero(dg)), grown)
        lr = torch.where(state["begun"] > 0, torch.minimum(smooth, grown), state["lr"])
        state = {"lr": lr, "theta": lr / state["lr"], "begun": torch.ones_like(lr)}
        return _moved(params, grads, lr), {**state, "params": params, "grads": grads}

    def learning_rate(self, state: dict[str, Any]) -> Tensor:
        """``η_k``."""
        return _rate(state)


@dataclass(frozen=True)
class FunctionalFedHyperSGD:
    """``FedHyperSGD`` without a global update, as pure functions.

    Attributes:
        max_growth: ``γ_max``.
        bound: ``b``.
    """

    max_growth: float = 1.1
    bound: float = 10.0

    stacked = False
    same_batch = False

    def init(self, params: Tensors, lr: Tensor) -> dict[str, Any]:
        """``β = 1``; a first gradient of 0 agrees with any."""
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        return {"lr": lr, "beta": torch.ones_like(lr), "grads": zeros}

    def update(
        self, params: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        """Move the rate, then the weights."""
        products = [(wide(g) * wide(state["grads"][k])).sum().double() for k, g in grads.items()]
        growth = 1 + torch.stack(products).sum()
        grown = state["beta"] * growth.clamp(max=self.max_growth)
        beta = grown.clamp(1 / self.bound, self.bound)
        beta = torch.where(growth.isfinite(), beta, state["beta"])
        lr = state["lr"] * beta / state["beta"]
        return _moved(params, grads, lr), {"lr": lr, "beta": beta, "grads": grads}

    def learning_rate(self, state: dict[str, Any]) -> Tensor:
        """``η₀β``."""
        return _rate(state)


Functional = Callable[[ClientSettings], FunctionalOptimizer]


def _rate(state: dict[str, Any]) -> Tensor:
    rate: Tensor = state["lr"]
    return rate


def _distance(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([wide(a[k] - b[k]).square().sum().double() for k in a]).sum().sqrt()


def _moved(params: Tensors, grads: Tensors, lr: Tensor) -> Tensors:
    return {k: (w - lr * grads[k]).to(w.dtype) for k, w in params.items()}
