"""Muon for matrices and AdamW for the rest, since Muon takes matrices alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from logging import WARNING
from typing import Any, Literal

import torch
from flwr.common.logger import log
from torch import nn

from fedexp.clients.ranges import SHARE, Range


class MuonAdamW:
    """Muon for the matrices of a model, AdamW for its other parameters, at one learning rate.

    Muon replaces the momentum of a matrix by the nearest orthogonal one, so that all directions
    move alike: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. By default its steps
    have AdamW's length, as Liu et al. 2025, arXiv:2502.16982, scale them; so one rate serves both.
    Biases, norms and the kernels of convolutions are no matrices. A warning says so once for a
    model. The authors give embeddings and the last layer to AdamW as well; here these matrices get
    Muon.

    Args:
        params: parameters.
        lr: ``η``.
        weight_decay: ``λ`` of both, decoupled: ``w ← (1 - ηλ) w``.
        momentum: of Muon.
        nesterov: whether Muon looks ahead.
        ns_steps: how often Muon iterates towards the orthogonal matrix.
        adjust_lr_fn: how Muon scales its steps, see ``torch.optim.Muon``.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: no parameter is a matrix, a momentum or a number of iterations is out of its
            range, or whatever torch's optimizers raise.

    Example:
        >>> from torch import nn
        >>> from fedexp.clients.muon_adamw import MuonAdamW
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> len(MuonAdamW(layer.parameters(), lr=0.1).param_groups)
        1
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        _check("momentum", momentum, SHARE)
        _check("ns_steps", ns_steps, Range(1, 100, "[)", whole=True))  # as torch, at its first step
        given = list(params)
        matrices = [p for p in given if p.dim() == 2]
        others = [p for p in given if p.dim() != 2]
        if not matrices:
            raise ValueError("MuonAdamW(params): none is a matrix. Use adamw.")
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        muon = torch.optim.Muon(matrices, **shared, **own, adjust_lr_fn=adjust_lr_fn)
        self._parts: list[torch.optim.Optimizer] = [muon]
        if others:
            _warn(len(others), len(given))
            beta1, beta2 = betas  # which text gives as a list
            adamw = torch.optim.AdamW(others, **shared, betas=(beta1, beta2), eps=eps)
            self._parts.append(adamw)
        self.param_groups = self._groups()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = torch.enable_grad()(closure)() if closure else None
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        for part, own in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(own)
        self.param_groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]


def _check(name: str, value: Any, allowed: Range) -> None:
    if why := allowed.fault(value):
        raise ValueError(f"MuonAdamW({name}={value!r}): {why}.")


@lru_cache(maxsize=64)  # not at every client and round
def _warn(num_others: int, num_all: int) -> None:
    log(
        WARNING,
        "muon: %d of %d parameters are no matrices and get AdamW's steps instead.",
        num_others,
        num_all,
    )
