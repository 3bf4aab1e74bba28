"""Named strategies: ``FedOpt`` with its rule filled in."""

from __future__ import annotations

from typing import Any

from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.rules import Capped, Constant, Extrapolation, ServerOptimizer, StepSize


class FedAvg(FedOpt):
    """Federated averaging with a constant server step: ``w ← w - η Δ̄``.

    McMahan et al. 2017, arXiv:1602.05629. With ``server_learning_rate`` 1 the new model is the
    clients' weighted mean.

    Args:
        *args: those of Flower's FedAvg.
        server_learning_rate: ``η > 0``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    def __init__(self, *args: Any, server_learning_rate: float = 1.0, **kwargs: Any) -> None:
        rule = ServerOptimizer(step_size=Constant(server_learning_rate))
        super().__init__(*args, optimizer=rule, **kwargs)


class FedExP(FedOpt):
    """FedAvg with the FedExP server step: ``w ← w - η Δ̄``, ``η ≥ 1`` from the updates.

    ``η = max(1, Σ pᵢ‖Δᵢ‖²/Σ pᵢ / (2 (‖Δ̄‖² + ε)))``
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604. See ``rules.Extrapolation``.

    Args:
        *args: those of Flower's FedAvg.
        epsilon: ``ε ≥ 0``, in squared parameter units.
        epsilon_decay: factor per round of the clients' learning rate, squared for ``ε``.
        epsilon_per_client: ``M·ε`` in place of ``ε``, as in the authors' code.
        max_step_size: a cap on ``η``; none by default.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.
    """

    mean_of_last_two = True

    def __init__(
        self,
        *args: Any,
        epsilon: float = 1e-3,
        epsilon_decay: float = 1.0,
        epsilon_per_client: bool = False,
        max_step_size: float | None = None,
        **kwargs: Any,
    ) -> None:
        step: StepSize = Extrapolation(epsilon, epsilon_decay, epsilon_per_client)
        if max_step_size is not None:
            step = Capped(step, max_step_size)
        super().__init__(*args, optimizer=ServerOptimizer(step_size=step), **kwargs)


STRATEGIES: dict[str, type[FedOpt]] = {"fedavg": FedAvg, "fedexp": FedExP}
"""Key on the command line to strategy."""
