"""Named strategies whose step comes from optimization at large: each is ``FedOpt`` with a rule."""

from __future__ import annotations

from typing import Any

from fedexp.strategies.barzilai_borwein import BarzilaiBorwein
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer


class FedBB(FedOpt):
    """Barzilai and Borwein's step: ``η = ⟨s, y⟩/‖y‖²``, ``w ← w - η Δ̄``, for all clients.

    ``s = w - w₋₁`` and ``y = Δ̄ - Δ̄₋₁``; in round 1, and when ``⟨s, y⟩ ≤ 0``, the step is that of
    FedExP (Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604) with ``ε = 0``. Barzilai & Borwein
    1988; its use for federations is our own. See ``BarzilaiBorwein``.

    Args:
        *args: those of Flower's FedAvg.
        sampled: whether only some of the clients may train in a round. The rule compares two
            rounds, and of two sets of clients it measures little but their difference.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: in round 1, if only some of the clients are to train.

    Example:
        >>> from fedexp.strategies import FedBB
        >>> FedBB().optimizer.needs_all_clients, FedBB(sampled=True).optimizer.needs_all_clients
        (True, False)
    """

    def __init__(self, *args: Any, sampled: bool = False, **kwargs: Any) -> None:
        rule = ServerOptimizer(step_size=BarzilaiBorwein(sampled))
        super().__init__(*args, optimizer=rule, **kwargs)
