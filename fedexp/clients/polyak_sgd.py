"""SGD with Polyak's step: as long as the loss that is left allows, at most a given bound."""

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
class FunctionalPolyakSGD(FunctionalAdaptiveSGD):
    """``PolyakSGD`` as pure functions; attributes as there.

    Attributes:
        c: ``c``.
        least_loss: ``f*``.
    """

    c: float = 0.5
    least_loss: float = 0.0

    needs_loss = True

    def init(self, params: Tensors, lr: Tensor) -> dict[str, Any]:
        """The bound ``η_max``, which is the client's learning rate."""
        return {"lr": lr, "bound": lr, "loss": torch.zeros_like(lr)}

    def adapt(self, params: Tensors, grads: Tensors, state: Mapping[str, Any]) -> dict[str, Any]:
        """``η_k`` from the loss and the gradient of this minibatch."""
        squares = torch.stack([wide(g).square().sum() for g in grads.values()])
        left = (state["loss"] - self.least_loss).clamp(min=0)
        squared = squares.sum().double()
        step = left / (self.c * no_zero(squared))
        # Without a gradient any step leaves the parameters where they are.
        rate = torch.where(squared > 0, torch.minimum(step, state["bound"]), state["bound"])
        return {**state, "lr": rate}


class PolyakSGD(AdaptiveSGD):
    """SGD with the bounded stochastic Polyak step of Loizou et al. 2021, arXiv:2002.10542, eq. 3.

    ``η_k = min( (f(x_k) - f*) / (c ‖g_k‖²), η_max )``, ``x_{k+1} = x_k - η_k g_k``, where ``f`` is
    the loss of the minibatch and ``g_k`` its gradient over all parameters together.

    The paper has ``c = 1/2`` for convex losses, its experiments on deep networks ``c = 0.2``.

    Args:
        params: Parameters or groups; the method moves all their rates by one factor.
        lr: ``η_max``, which no step exceeds.
        c: ``c > 0``; the larger, the shorter the steps.
        least_loss: ``f*``, the least that the loss of a minibatch can be, in units of the loss;
            0 for a model that can learn its examples by heart.

    Raises:
        ValueError: For a bound or ``c`` that is not positive and finite; for `step` without a
            closure that returns the loss; for a sparse gradient.

    Example:
        >>> import torch
        >>> from fedexp.clients.polyak_sgd import PolyakSGD
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = PolyakSGD([w], lr=10.0)
        >>> def loss():
        ...     w.grad = 5 * w.detach()
        ...     return 5 / 2 * w.detach().square().sum()
        >>> _ = optimizer.step(loss)  # (5/2) / (5²/2) is the step to the minimum
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.2
    """

    def __init__(
        self, params: ParamsT, lr: float = 1.0, *, c: float = 0.5, least_loss: float = 0.0
    ) -> None:
        if not 0 < c < float("inf"):
            raise ValueError(f"PolyakSGD(c={c}): must be positive and finite.")
        if not -float("inf") < least_loss < float("inf"):
            raise ValueError(f"PolyakSGD(least_loss={least_loss}): must be finite.")
        super().__init__(params, lr, FunctionalPolyakSGD(c, least_loss))
