"""Delta-SGD: a client's step size from the smoothness it meets, nothing to tune per client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fedexp.clients.optimizers import AdaptiveSGD, FunctionalAdaptiveSGD, Tensors
from fedexp.hypergradients.scales import no_zero, wide


@dataclass(frozen=True)
class FunctionalDeltaSGD(FunctionalAdaptiveSGD):
    """``DeltaSGD`` as pure functions; attributes as there.

    Attributes:
        gamma: ``γ``.
        delta: ``δ``.
        same_batch: take ``g_{k-1}`` on the present minibatch.
    """

    gamma: float = 2.0
    delta: float = 0.02
    same_batch: bool = True

    def init(self, params: Tensors, lr: Tensor) -> dict[str, Any]:
        """``θ = 1``, no iterate yet."""
        begun, old = torch.zeros_like(lr), {"params": params, "grads": params}
        return {"lr": lr, "theta": torch.ones_like(lr), "begun": begun, **old}

    def adapt(self, params: Tensors, grads: Tensors, state: Mapping[str, Any]) -> dict[str, Any]:
        """``η_k`` from the last two iterates and their gradients."""
        last = state["lr"]
        dx, dg = _distance(params, state["params"]), _distance(grads, state["grads"])
        grown = last * (1 + self.delta * state["theta"]) ** 0.5
        # A vanished or non-finite difference says nothing of the smoothness.
        usable = (dx > 0) & (dg > 0) & dx.isfinite() & dg.isfinite()
        smooth = torch.where(usable, self.gamma * dx / (2 * no_zero(dg)), grown)
        lr = torch.where(state["begun"] > 0, torch.minimum(smooth, grown), last)
        begun = torch.ones_like(lr)
        return {"lr": lr, "theta": lr / last, "begun": begun, "params": params, "grads": grads}


class DeltaSGD(AdaptiveSGD):
    """SGD with the locality-adaptive step of Kim et al. 2024, arXiv:2306.11201, algorithm 1.

    ``η_k = min( γ‖x_k - x_{k-1}‖ / (2‖g_k - g_{k-1}‖), √(1 + δθ_{k-1}) η_{k-1} )``,
    ``θ_k = η_k / η_{k-1}``, ``x_{k+1} = x_k - η_k g_k``; norms over all parameters together.

    The paper has ``δ = 1``; its code ``γ = 2``, ``δ = 0.02`` (0.1 for CIFAR-100), which are the
    defaults. A round starts afresh: make the optimizer anew, or call `reset`.

    Args:
        params: Parameters or groups; the method moves all their rates by one factor.
        lr: ``η_0``, the first step of a round.
        gamma: ``γ``.
        delta: ``δ``, how fast the step may grow.
        same_batch: Take ``g_{k-1}`` on the present minibatch, as the paper's code, for one more
            backward pass. `step` then needs a closure, which must give the same loss at the same
            parameters. Otherwise ``g_{k-1}`` is the gradient that the last step had: the noise of
            the minibatches then enters the difference, and the step shrinks towards 0.

    Raises:
        ValueError: For a step, ``γ`` or ``δ`` that is not positive; for `same_batch` without a
            closure; for a sparse gradient.

    Example:
        >>> import torch
        >>> from fedexp.clients import DeltaSGD
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = DeltaSGD([w], lr=0.2, same_batch=False)
        >>> for _ in range(2):
        ...     w.grad = 5 * w.detach()  # of 5/2 w², whose smoothness is 5
        ...     optimizer.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)  # the first step lands on the minimum
        0.2
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
        for name, value in (("gamma", gamma), ("delta", delta)):
            if not 0 < value < float("inf"):
                raise ValueError(f"DeltaSGD({name}={value}): must be positive and finite.")
        super().__init__(params, lr, FunctionalDeltaSGD(gamma, delta, same_batch))


def _distance(a: Tensors, b: Tensors) -> Tensor:
    """``‖a - b‖`` over all parameters together, float64."""
    norms = [torch.linalg.vector_norm(wide(a[k] - b[k])) for k in a]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm.double()
