"""FedHyper's client: a learning rate scheduled by how gradients agree, locally and globally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fedexp.clients.optimizers import AdaptiveSGD, FunctionalAdaptiveSGD, Tensors
from fedexp.hypergradients.scales import no_zero, wide


@dataclass(frozen=True, eq=False)
class FunctionalFedHyperSGD(FunctionalAdaptiveSGD):
    """``FedHyperSGD`` as pure functions; attributes as there.

    Attributes:
        max_growth: ``γ_max``.
        bound: ``b``.
        global_update: ``Δ``, in the order of the parameters; empty in the first round.
        global_weight: ``s``.
        normalised: cosines in place of inner products.
    """

    max_growth: float = 1.1
    bound: float = 10.0
    global_update: Sequence[Tensor] = ()
    global_weight: float = 0.01
    normalised: bool = False

    def init(self, params: Tensors, lr: Tensor) -> dict[str, Any]:
        """``β = 1``, no gradient yet."""
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        begun = torch.zeros_like(lr)
        return {"lr": lr, "beta": torch.ones_like(lr), "begun": begun, "grads": zeros}

    def adapt(self, params: Tensors, grads: Tensors, state: Mapping[str, Any]) -> dict[str, Any]:
        """``η_k = η₀β_k`` from the gradient and the one before."""
        growth = 1 + self._agreement(grads, state["grads"])
        if self.global_update:
            delta = {
                k: x.to(g) for (k, g), x in zip(grads.items(), self.global_update, strict=True)
            }
            growth = growth + self.global_weight * self._agreement(grads, delta)
        grown = state["beta"] * growth.clamp(max=self.max_growth)
        beta = grown.clamp(1 / self.bound, self.bound)
        # The first gradient of a round has none before it to agree with.
        beta = torch.where(growth.isfinite() & (state["begun"] > 0), beta, state["beta"])
        lr = state["lr"] * (beta / state["beta"])
        return {"lr": lr, "beta": beta, "begun": torch.ones_like(lr), "grads": grads}

    def _agreement(self, grads: Tensors, others: Tensors) -> Tensor:
        """``⟨g, x⟩`` over all parameters together, or its cosine; 0-d, float64."""
        pairs = [(wide(g), wide(others[k])) for k, g in grads.items()]
        product = torch.as_tensor(sum((g * x).sum().double() for g, x in pairs))
        if not self.normalised:
            return product
        sides = [torch.cat([x.flatten() for x in side]) for side in zip(*pairs, strict=True)]
        norm = torch.linalg.vector_norm(sides[0]) * torch.linalg.vector_norm(sides[1])
        cosine: Tensor = product / no_zero(norm)
        return cosine


class FedHyperSGD(AdaptiveSGD):
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

    Example:
        >>> import torch
        >>> from fedexp.clients import FedHyperSGD
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = FedHyperSGD([w], lr=0.01)
        >>> for _ in range(3):
        ...     w.grad = torch.ones(1)  # successive gradients agree: the rate grows by γ_max
        ...     optimizer.step()
        >>> round(optimizer.param_groups[0]["lr"], 6)
        0.0121
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
        if bound < 1 or max_growth < 1:
            raise ValueError(
                f"FedHyperSGD(bound={bound}, max_growth={max_growth}): must be at least 1."
            )
        delta = tuple(global_update or ())
        form = FunctionalFedHyperSGD(max_growth, bound, delta, global_weight, normalised)
        super().__init__(params, lr, form)
        shapes = [p.shape for group in self.param_groups for p in group["params"]]
        if global_update is not None and [d.shape for d in delta] != shapes:
            raise ValueError(
                f"FedHyperSGD(global_update={len(delta)} tensors): must have the shapes of the "
                f"{len(shapes)} parameters, in their order."
            )


ScheduledSGD = FedHyperSGD
"""The name of ``FedHyperSGD`` in earlier versions."""
