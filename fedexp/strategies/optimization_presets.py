"""Named strategies whose step comes from optimization at large: each is ``FedOpt`` with a rule."""

from __future__ import annotations

from typing import Any

from fedexp.strategies.anderson import Anderson
from fedexp.strategies.barzilai_borwein import BarzilaiBorwein
from fedexp.strategies.distance_over_gradients import (
    DistanceOverGradients,
    DistanceOverWeightedGradients,
)
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.running_ratio import RunningRatio
from fedexp.strategies.schedule_free import ScheduleFree
from fedexp.strategies.step_sizes import Constant


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


class FedAnderson(FedOpt):
    """Anderson acceleration for all clients: ``w ← w - W γ - η (Δ̄ - D γ)``.

    ``γ = argmin ‖Δ̄ - D γ‖``; ``W`` and ``D`` hold what changed from round to round, and
    ``η`` is FedExP's step (Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604) with ``ε = 0``.
    Anderson 1965; the use for federations is our own. See ``Anderson`` and ``RunningRatio``.

    Args:
        *args: those of Flower's FedAvg.
        window: ``m``, how many rounds back ``W`` and ``D`` go; the server holds ``2m + 2`` models.
        smoothing: of ``η``, see ``RunningRatio``.
        sampled: whether only some of the clients may train in a round. The rule compares rounds,
            and of unlike sets of clients it measures little but their difference.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range; or in round 1, if only some of the clients are
            to train.

    Example:
        >>> from fedexp.strategies import FedAnderson
        >>> FedAnderson(window=3).optimizer.direction
        Anderson(window=3, sampled=False)
    """

    def __init__(
        self,
        *args: Any,
        window: int = 5,
        smoothing: float = 0.0,
        sampled: bool = False,
        **kwargs: Any,
    ) -> None:
        rule = ServerOptimizer(Anderson(window, sampled), RunningRatio(smoothing))
        super().__init__(*args, optimizer=rule, **kwargs)


class FedDoG(FedOpt):
    """DoG at the server: ``η = max ‖wᵢ - w₀‖/√(Σ‖Δ̄ᵢ‖²)``, ``w ← w - η Δ̄``.

    Ivgi, Hinder & Carmon 2023, arXiv:2302.12022. See ``DistanceOverGradients``. Evaluate
    ``PolynomialAverage``, which is part of the method.

    Args:
        *args: those of Flower's FedAvg.
        radius: the first distance, as a share of ``1 + ‖w₀‖``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.strategies import FedDoG
        >>> FedDoG(radius=1e-6).optimizer.step_size
        DistanceOverGradients(radius=1e-06)
    """

    def __init__(self, *args: Any, radius: float = 1e-2, **kwargs: Any) -> None:
        rule = ServerOptimizer(step_size=DistanceOverGradients(radius))
        super().__init__(*args, optimizer=rule, **kwargs)


class FedDoWG(FedOpt):
    """DoWG at the server: ``η = r²/√(Σ rᵢ²‖Δ̄ᵢ‖²)`` with ``r = max ‖wᵢ - w₀‖``.

    Khaled, Mishchenko & Jin 2023, arXiv:2305.16284. See ``DistanceOverWeightedGradients``. Evaluate
    an average of the iterates, such as ``PolynomialAverage``; the paper weighs them by ``rᵢ²``.

    Args:
        *args: those of Flower's FedAvg.
        radius: the first distance, as a share of ``1 + ‖w₀‖``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.strategies import FedDoWG
        >>> FedDoWG().optimizer.step_size
        DistanceOverWeightedGradients(radius=0.01)
    """

    def __init__(self, *args: Any, radius: float = 1e-2, **kwargs: Any) -> None:
        rule = ServerOptimizer(step_size=DistanceOverWeightedGradients(radius))
        super().__init__(*args, optimizer=rule, **kwargs)


class FedScheduleFree(FedOpt):
    """Schedule-free descent at the server: ``z ← z - η Δ̄(y)``, ``y ← β x + (1 - β) z``.

    ``x ← (1 - 1/t) x + z/t``. Clients start from ``y``, and the result is ``x``: evaluate
    ``PolynomialAverage(β/(1 - β))``, ``--average poly-9``. Defazio et al. 2024, arXiv:2405.15682.
    See ``ScheduleFree``.

    Args:
        *args: those of Flower's FedAvg.
        server_learning_rate: ``η > 0``. ``y`` moves by little more than ``(1 - β) η Δ̄`` in later
            rounds, hence a large one.
        beta: ``β``, in [0, 1).
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.strategies import FedScheduleFree
        >>> FedScheduleFree(server_learning_rate=2.0).optimizer
        ServerOptimizer(direction=ScheduleFree(beta=0.9), step_size=Constant(value=2.0))
    """

    def __init__(
        self, *args: Any, server_learning_rate: float = 3.0, beta: float = 0.9, **kwargs: Any
    ) -> None:
        rule = ServerOptimizer(ScheduleFree(beta), Constant(server_learning_rate))
        super().__init__(*args, optimizer=rule, **kwargs)
