"""Plain SGD without the bookkeeping of `torch.optim`: what most clients run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class PlainSGD:
    """``w ← w - η (g + λ w)``, with the attributes of a `torch.optim.Optimizer` that a client uses.

    The first step leaves the memory of ``w`` as it is and gives the parameter its own, so all
    clients of a process may start from one copy of the model. ``torch.optim.SGD`` takes the same
    steps; it spends 20 µs more on each, and imports PyTorch's compiler.

    Attributes:
        lr: ``η``.
        decay: ``λ``, the weight decay.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0
    ) -> None:
        self._params = list(params)
        self.lr, self.decay = lr, weight_decay
        self._begun = False
        self.param_groups: list[dict[str, Any]] = [{"params": self._params, "lr": lr}]

    @torch.no_grad()
    def step(self) -> None:
        """One step along ``p.grad``; parameters without one stay."""
        pairs = [(p, p.grad) for p in self._params if p.grad is not None]
        if not pairs:
            return
        if self.decay:
            pairs = [(p, g.add(p, alpha=self.decay)) for p, g in pairs]
        if self._begun:
            params, moves = map(list, zip(*pairs, strict=True))
            torch._foreach_add_(params, moves, alpha=-self.lr)
            return
        self._begun = len(pairs) == len(self._params)
        for p, g in pairs:
            p.data = torch.add(p, g, alpha=-self.lr)
