"""Delta-SGD: a client's step size from the smoothness it meets, nothing to tune per client."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fedexp.hypergradients.scales import wide


class DeltaSGD(torch.optim.Optimizer):
    """SGD with the locality-adaptive step of Kim et al. 2024, arXiv:2306.11201, algorithm 1.

    ``η_k = min( γ‖x_k - x_{k-1}‖ / (2‖g_k - g_{k-1}‖), √(1 + δθ_{k-1}) η_{k-1} )``,
    ``θ_k = η_k / η_{k-1}``, ``x_{k+1} = x_k - η_k g_k``; norms over all parameters together.

    The paper has ``δ = 1``; its code ``γ = 2``, ``δ = 0.02`` (0.1 for CIFAR-100), which are the
    defaults. A round starts afresh: make the optimizer anew, or call `reset`.

    Args:
        params: Parameters or groups; all share the step size.
        lr: ``η_0``, the first step of a round.
        gamma: ``γ``.
        delta: ``δ``, how fast the step may grow.
        same_batch: Take ``g_{k-1}`` on the present minibatch, as the paper's code, for one more
            backward pass. `step` then needs a closure, which must give the same loss at the same
            parameters. Else it is the gradient that the last step had: with minibatches, their
            noise then enters the difference, and the step shrinks until nothing moves.

    Raises:
        ValueError: For a step, ``γ`` or ``δ`` that is not positive; for `same_batch` without a
            closure; for a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.2,
        *,
        gamma: float = 2.0,
        delta: float = 0.02,
        same_batch: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("gamma", gamma), ("delta", delta)):
            if not 0 < value < float("inf"):
                raise ValueError(f"DeltaSGD({name}={value}): must be positive and finite.")
        rates = {"lr": lr, "first_lr": lr, "theta": 1.0, "gamma": gamma, "delta": delta}
        super().__init__(params, {**rates, "same_batch": same_batch})

    @property
    def same_batch(self) -> bool:
        """Whether `step` needs a closure."""
        return bool(self.defaults["same_batch"])

    def reset(self) -> None:
        """Begin a round: the first step size, no past."""
        self.state.clear()
        for group in self.param_groups:
            group["lr"], group["theta"] = group["first_lr"], 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Set the step size from the last two iterates, and step."""
        same_batch = self.same_batch
        if same_batch and closure is None:
            raise ValueError(
                "DeltaSGD(same_batch=True): `step` needs a closure. Pass one, or same_batch=False "
                "for gradients of all examples."
            )
        evaluate = torch.enable_grad()(closure) if closure else None
        loss = evaluate() if evaluate else None
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad.clone() for p in params]
        if any(g.is_sparse for g in grads):
            raise ValueError("DeltaSGD(gradient=sparse): only dense gradients. Use sparse=False.")
        if params and all(self.state[p] for p in params):
            before = [self.state[p]["param"] for p in params]
            dx = torch._foreach_sub(params, before)
            if same_batch and evaluate:
                self._at(before, params, evaluate)
                old = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            else:
                old = [self.state[p]["grad"] for p in params]
            self._resize(norm(dx), norm(torch._foreach_sub(grads, old)))
        for p, g in zip(params, grads, strict=True):
            self.state[p] = {"param": p.clone(), "grad": g}
            if same_batch:
                p.grad = g.clone()
        if params:
            torch._foreach_add_(params, grads, alpha=-self.param_groups[0]["lr"])
        return loss

    def _at(self, before: list[Tensor], params: list[Tensor], evaluate: Callable[[], Any]) -> None:
        """Gradients of the present batch at the last iterate."""
        here = [p.clone() for p in params]
        torch._foreach_copy_(params, before)
        evaluate()
        torch._foreach_copy_(params, here)

    def _resize(self, dx: float, dg: float) -> None:
        first = self.param_groups[0]
        lr, gamma = first["lr"], first["gamma"]
        grown = lr * (1 + first["delta"] * first["theta"]) ** 0.5
        # A vanished or non-finite difference says nothing of the smoothness.
        smooth = gamma * dx / (2 * dg) if 0 < dx < float("inf") and 0 < dg < float("inf") else grown
        new = min(smooth, grown)
        for group in self.param_groups:
            group["lr"], group["theta"] = new, new / lr


def norm(tensors: Any) -> float:
    """Euclidean norm of all together."""
    return float(torch.stack(torch._foreach_norm([wide(x) for x in tensors])).norm())
