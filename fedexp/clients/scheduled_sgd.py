"""FedHyper's client: a learning rate scheduled by how gradients agree, locally and globally."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fedexp.hypergradients.scales import wide


class FedHyperSGD(torch.optim.Optimizer):
    """SGD with FedHyper's client-side scheduler (FedHyper-CL).

    From a round's second step on, ``γ_k = min(γ_max, 1 + ⟨g_k, g_{k-1}⟩ + s⟨g_k, Δ⟩)``,
    ``β_k = clip(β_{k-1} γ_k, 1/b, b)``, ``w ← w - η₀β_k g_k``, with ``Δ`` the last global
    pseudo-gradient (``w`` before minus after the last round, which points like a gradient).
    Wang, Wang & Li 2024, arXiv:2310.03156, eq. 20; ``γ_max``, ``b`` from the authors' code.
    Inner products there scale as the squared gradient; `normalised` takes cosines instead.

    Args:
        params: Parameters or groups.
        lr: ``η₀``; ``group["lr"]`` is the live rate ``η₀β``.
        global_update: ``Δ``, a tensor for each parameter in order; none in the first round.
        global_weight: ``s``; in the authors' code ``0.1 / number of clients in a round``.
        max_growth: ``γ_max``.
        bound: ``b``, how far the rate may leave ``η₀`` either way.
        normalised: Cosines in place of inner products.

    Raises:
        ValueError: For a rate or bound out of range, for a `global_update` of other shapes, for
            sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        *,
        global_update: Sequence[Tensor] | None = None,
        global_weight: float = 0.01,
        max_growth: float = 1.1,
        bound: float = 10.0,
        normalised: bool = False,
    ) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"FedHyperSGD(lr={lr}): must be positive and finite.")
        if bound < 1 or max_growth < 1:
            raise ValueError(
                f"FedHyperSGD(bound={bound}, max_growth={max_growth}): must be at least 1."
            )
        knobs = {"weight": global_weight, "max_growth": max_growth, "bound": bound}
        super().__init__(params, {"lr": lr, "beta": 1.0, "normalised": normalised, **knobs})
        wanted = [p for group in self.param_groups for p in group["params"]]
        shapes = [p.shape for p in wanted]
        if global_update is not None and [d.shape for d in global_update] != shapes:
            raise ValueError(
                f"FedHyperSGD(global_update={len(global_update)} tensors): must have the shapes "
                f"of the {len(wanted)} parameters, in their order."
            )
        for p, delta in zip(wanted, global_update or (), strict=False):
            self.state[p]["global"] = delta.to(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the rate, then the weights."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = self.param_groups
        params = [p for group in groups for p in group["params"] if p.grad is not None]
        if any(cast(Tensor, p.grad).is_sparse for p in params):
            raise ValueError("FedHyperSGD(gradient=sparse): only dense. Use sparse=False.")
        knobs = self.defaults
        agreement = self._agreement(params, "grad")
        globally = self._agreement(params, "global") or 0.0
        growth = 1.0 if agreement is None else 1 + agreement + knobs["weight"] * globally
        for group in groups:
            if math.isfinite(growth):
                grown = group["beta"] * min(growth, knobs["max_growth"])
                beta = min(max(grown, 1 / knobs["bound"]), knobs["bound"])
                group["lr"] *= beta / group["beta"]
                group["beta"] = beta
        for group in groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["grad"] = p.grad.clone()
                    p.add_(p.grad, alpha=-group["lr"])
        return loss

    def _agreement(self, params: list[Tensor], other: str) -> float | None:
        """``⟨g, x⟩`` over the parameters whose state holds ``x``, or its cosine."""
        pairs = [
            (wide(cast(Tensor, p.grad)), wide(self.state[p][other]))
            for p in params
            if other in self.state[p]
        ]
        if not pairs:
            return None
        product = sum(float((g * x).sum()) for g, x in pairs)
        if not self.defaults["normalised"]:
            return product
        norms = [
            torch.cat([x.reshape(-1) for x in side]).norm() for side in zip(*pairs, strict=True)
        ]
        norm = float(norms[0] * norms[1])
        return product / norm if norm else 0.0


ScheduledSGD = FedHyperSGD
"""The name of ``FedHyperSGD`` in earlier versions."""
