"""Local optimizers: each method as pure functions, and the forms that a single client steps with.

A group of clients calls ``init`` and ``update``, under ``torch.func.vmap`` where one client's
tensors are wanted. The plain loop calls ``step`` of an object in the form of ``torch.optim``, which
calls the same functions. Towers are the exception: ``HypergradientOptimizer`` writes the steps of
``Tower`` anew, since the pure form takes a third longer on a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import unwrap
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from fedexp.clients.settings import ClientSettings
from fedexp.hypergradients.rules import Rule
from fedexp.hypergradients.tower import Tower

Tensors = dict[str, Tensor]


class FunctionalOptimizer:
    """A local optimizer as pure functions, for one client or, under vmap, for each of many.

    Attributes:
        stacked: whether ``init`` and ``update`` take all clients' tensors, ``[clients, ...]``, at
            once; otherwise they take one client's, and groups call them under vmap.
        same_batch: whether ``state["grads"]`` is to be the gradient of the present minibatch at
            ``state["params"]`` whenever ``update`` is called.
        needs_loss: whether ``state["loss"]`` is to be the loss of the present minibatch, 0-d and
            float64, whenever ``update`` is called.
    """

    stacked: bool = False
    same_batch: bool = False
    needs_loss: bool = False

    def init(self, params: Tensors, lr: Tensor) -> Any:
        """State before the first step, tensors in any nesting; ``lr`` is the client's own, 0-d.

        A dict that holds it as ``lr`` has there what a schedule sets before each ``update``.
        """
        raise NotImplementedError

    def update(self, params: Tensors, grads: Tensors, state: Any) -> tuple[Tensors, Any]:
        """Parameters and state after a step; may reuse the memory of ``params``."""
        raise NotImplementedError

    def learning_rate(self, state: Any) -> Tensor:
        """``η`` now, 0-d; asked only of optimizers that change it."""
        raise NotImplementedError


Functional = Callable[[ClientSettings], FunctionalOptimizer]


@dataclass(frozen=True)
class FunctionalSGD(FunctionalOptimizer):
    """Plain SGD: ``w ← w - η (g + λ w)``.

    Attributes:
        lr: ``η``.
        weight_decay: ``λ``.
    """

    lr: float
    weight_decay: float = 0.0

    stacked = True

    @classmethod
    def of(cls, settings: ClientSettings) -> FunctionalSGD:
        """At the rate and weight decay of a client's settings."""
        return cls(settings.lr, settings.weight_decay)

    def at(self, lr: float) -> FunctionalSGD:
        """The same at another learning rate."""
        return self if lr == self.lr else replace(self, lr=lr)

    def init(self, params: Tensors, lr: Tensor) -> bool:
        """Whether the memory of the parameters may be written to: not before the first step."""
        return False

    def update(self, params: Tensors, grads: Tensors, state: bool) -> tuple[Tensors, bool]:
        """One step, in place but for the first."""
        if decay := self.weight_decay:
            grads = {name: g.add(params[name], alpha=decay) for name, g in grads.items()}
        if not state:
            first = {name: _laid_out(params[name], g) for name, g in grads.items()}
            return {k: torch.add(first[k], g, alpha=-self.lr) for k, g in grads.items()}, True
        torch._foreach_add_(list(params.values()), list(grads.values()), alpha=-self.lr)
        return params, True


def _laid_out(w: Tensor, g: Tensor) -> Tensor:
    """``w``, in the memory layout of ``g`` if it is one copy for all clients of a group.

    Tensors of unlike layouts add several times slower, and one copy is cheap to lay out anew.
    """
    shared = w.dim() > 1 and w.stride(0) == 0
    return torch.empty_like(g[:1]).copy_(w[:1]) if shared else w


@dataclass(frozen=True)
class FunctionalTower(FunctionalOptimizer):
    """A tower that each client begins at its own learning rate.

    Attributes:
        rule: of the weights; rules above it in ``hyper``.
    """

    rule: Rule

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


class FunctionalAdaptiveSGD(FunctionalOptimizer):
    """SGD at a rate that each step sets first, in ``adapt``: ``w ← w - η_k g_k``.

    The state is a dict with ``lr``, ``η_{k-1}``, and ``grads``, by name of parameter.
    """

    def adapt(self, params: Tensors, grads: Tensors, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state with ``η_k`` for this step; it keeps what the next step needs."""
        raise NotImplementedError

    def update(self, params: Tensors, grads: Tensors, state: Any) -> tuple[Tensors, Any]:
        """Set the rate, then step."""
        state = self.adapt(params, grads, state)
        lr = state["lr"]
        return {k: (w - lr * grads[k]).to(w.dtype) for k, w in params.items()}, state

    def learning_rate(self, state: dict[str, Any]) -> Tensor:
        """``η_k``."""
        rate: Tensor = state["lr"]
        return rate


class PlainSGD:
    """``FunctionalSGD`` with the attributes of a `torch.optim.Optimizer` that a client uses.

    The first step leaves the memory of ``w`` as it is and gives the parameter its own, so all
    clients of a process may start from one copy of the model. ``torch.optim.SGD`` takes the same
    steps; it spends 20 µs more on each, and imports PyTorch's compiler.

    Args:
        params: are stepped.
        lr: ``η``.
        weight_decay: ``λ``.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0
    ) -> None:
        self._params = {str(i): p for i, p in enumerate(params)}
        self._form, self._owned = FunctionalSGD(lr, weight_decay), False
        self.param_groups: list[dict[str, Any]] = [{"params": [*self._params.values()], "lr": lr}]

    @torch.no_grad()
    def step(self) -> None:
        """One step along ``p.grad``; parameters without one stay."""
        grads = {name: p.grad for name, p in self._params.items() if p.grad is not None}
        if not grads:
            return
        params = {name: self._params[name].data for name in grads}
        form = self._form.at(self.param_groups[0]["lr"])  # which a schedule may have set
        new, _ = form.update(params, grads, self._owned)
        if not self._owned:
            for name, x in new.items():
                self._params[name].data = x
            self._owned = len(grads) == len(self._params)


class AdaptiveSGD(torch.optim.Optimizer):
    """The pure functions of a method in torch's form.

    They are those of a ``FunctionalAdaptiveSGD``, or any others whose state is a dict with ``lr``.
    ``group["lr"]`` is the rate of the last step; groups with other rates keep their ratio to the
    first, if the method sets its rate. A parameter without a gradient counts as one with gradient
    0, and stays.

    Args:
        params: parameters or groups.
        lr: ``η_0``.
        form: the method.

    Raises:
        ValueError: for a rate that is not positive and finite; in `step` for a sparse gradient,
            and without a closure if the method needs one.
    """

    def __init__(self, params: ParamsT, lr: float, form: FunctionalOptimizer) -> None:
        if not 0 < lr < float("inf"):
            raise ValueError(f"{type(self).__name__}(lr={lr}): must be positive and finite.")
        self.form = form
        super().__init__(params, {"lr": lr})

    @property
    def same_batch(self) -> bool:
        """Whether `step` needs a closure."""
        return self.form.same_batch

    @property
    def needs_loss(self) -> bool:
        """Whether `step` needs a closure that returns the loss."""
        return self.form.needs_loss

    def reset(self) -> None:
        """Begin a round: the first step size, no past."""
        self.state.clear()
        for group in self.param_groups:
            group["lr"] = group["first_lr"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; the next step has no past."""
        # torch's wrapper around its own imports PyTorch's compiler, which takes a second.
        above: Any = super().add_param_group
        unwrap(above.__func__)(self, param_group)
        self.state.clear()
        self.param_groups[-1].setdefault("first_lr", self.param_groups[-1]["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Set the rate, then move the parameters."""
        self._check_closure(closure)
        evaluate = torch.enable_grad()(closure) if closure else None
        loss = evaluate() if evaluate else None
        if self.needs_loss and loss is None:
            raise ValueError(
                f"{type(self).__name__}: `step` needs a closure that returns the loss. Pass one."
            )
        params = [p for group in self.param_groups for p in group["params"]]
        if self._has_gradients(params):
            self._take(params, evaluate, loss)
        return loss

    def _check_closure(self, closure: Callable[[], Any] | None) -> None:
        if self.same_batch and closure is None:
            raise ValueError(
                f"{type(self).__name__}(same_batch=True): `step` needs a closure. Pass one, or "
                "same_batch=False for gradients of all examples."
            )

    def _has_gradients(self, params: Iterable[Tensor]) -> bool:
        grads = [p.grad for p in params if p.grad is not None]
        if any(g.is_sparse for g in grads):
            owner = f"{type(self).__name__}(gradient=sparse)"
            raise ValueError(f"{owner}: only dense gradients. Use sparse=False.")
        return bool(grads)

    def _check_one_rate(self) -> None:
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise ValueError(
                f"{type(self).__name__}(lr): {type(self.form).__name__} steps at one rate. Give "
                "all groups the same."
            )

    def _take(self, params: list[Tensor], evaluate: Callable[[], Any] | None, loss: Any) -> None:
        """Take a step of the method; its state is kept for the next."""
        grads, here = _grads(params), _named(params)
        rate = torch.tensor(self.param_groups[0]["lr"], dtype=torch.float64)
        memory = cast(dict[str, Any], self.state)  # torch saves and loads what is no parameter's
        state = {**(memory.get("form") or self.form.init(here, rate)), "lr": rate}
        if "params" in state:
            # The method keeps where it was. ``here`` has the memory of the parameters, which the
            # step is about to write to; so it is copied.
            here = {name: p.clone() for name, p in here.items()}
        if evaluate and self.same_batch and memory:
            state["grads"] = _grads_at(state["params"], params, evaluate)
        if self.needs_loss:
            state["loss"] = torch.as_tensor(loss, dtype=torch.float64).detach().squeeze()
        if isinstance(self.form, FunctionalAdaptiveSGD):
            memory["form"] = state = self.form.adapt(here, grads, state)
            self._move(float(state["lr"]))
        else:
            self._check_one_rate()
            new, memory["form"] = self.form.update(here, grads, state)
            for name, p in zip(here, params, strict=True):
                if p.grad is not None:
                    p.copy_(new[name])

    def _move(self, rate: float) -> None:
        """``w ← w - η_k g_k``; groups keep their ratio to the rate of the first."""
        old = self.param_groups[0]["lr"]
        for group in self.param_groups:
            # Equal rates stay equal: the quotient would round.
            group["lr"] = rate if group["lr"] == old else group["lr"] * (rate / old)
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                torch._foreach_add_(moved, [p.grad for p in moved], alpha=-group["lr"])


def _named(params: Iterable[Tensor]) -> Tensors:
    return {str(i): p.detach() for i, p in enumerate(params)}


def _grads(params: Iterable[Tensor]) -> Tensors:
    """Copies of the gradients, zeros where there are none."""
    return {
        str(i): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for i, p in enumerate(params)
    }


def _grads_at(there: Tensors, params: list[Tensor], evaluate: Callable[[], Any]) -> Tensors:
    """The gradients of this minibatch at ``there``; parameters and gradients stay as they are.

    A method that compares two gradients wants them of one minibatch: else their difference is
    mostly the noise of drawing another.
    """
    here, present = [p.clone() for p in params], [p.grad for p in params]
    torch._foreach_copy_(params, list(there.values()))
    for p in params:
        p.grad = None  # A closure that sets gradients to 0, or adds to them, writes to others.
    try:
        evaluate()
        return _grads(params)
    finally:
        torch._foreach_copy_(params, here)
        for p, g in zip(params, present, strict=True):
            p.grad = g
