"""Named strategies with a constant step: ``FedOpt`` with its rule filled in.

Every one takes the arguments of Flower's FedAvg, in their order, then those of ``FedOpt`` by
keyword. Defaults are those of the method's authors, or of Flower where it has the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedexp.strategies.directions import Adagrad, Adam, Momentum, Yogi
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.step_sizes import Constant


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


class FedAvgM(FedOpt):
    """Server momentum: ``m ← Δ̄ + β m``, ``w ← w - η m``. Hsu, Qi & Brown 2019, arXiv:1909.06335.

    The same numbers as Flower's FedAvgM.

    Args:
        *args: those of Flower's FedAvg.
        server_learning_rate: ``η > 0``; ``1 - β`` for steps of FedAvg's length.
        server_momentum: ``β``, in [0, 1).
        nesterov: step along ``Δ̄ + β m``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    def __init__(
        self,
        *args: Any,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.9,
        nesterov: bool = False,
        **kwargs: Any,
    ) -> None:
        rule = ServerOptimizer(Momentum(server_momentum, nesterov), Constant(server_learning_rate))
        super().__init__(*args, optimizer=rule, **kwargs)


class FedAdagrad(FedOpt):
    """``v ← v + Δ̄²``, ``w ← w - η Δ̄/(√v + τ)``. Reddi et al. 2021, arXiv:2003.00295.

    Args:
        *args: those of Flower's FedAvg.
        eta: ``η > 0``.
        tau: ``τ > 0``, in parameter units.
        flower_compatible: ``v₀ = 0`` as Flower has it, in place of ``τ²``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.1,
        tau: float = 1e-3,
        flower_compatible: bool = False,
        **kwargs: Any,
    ) -> None:
        direction = Adagrad(tau=tau, initial=0.0 if flower_compatible else None)
        super().__init__(*args, optimizer=ServerOptimizer(direction, Constant(eta)), **kwargs)


class FedAdam(FedOpt):
    """``v ← β₂v + (1-β₂)Δ̄²``, ``w ← w - η m/(√v + τ)``. Reddi et al. 2021, arXiv:2003.00295.

    Args:
        *args: those of Flower's FedAvg.
        eta: ``η > 0``.
        beta_1: ``β₁`` of ``m ← β₁m + (1-β₁)Δ̄``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units.
        flower_compatible: ``v₀ = 0`` and Flower's bias correction, in place of ``τ²`` and none.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        flower_compatible: bool = False,
        **kwargs: Any,
    ) -> None:
        direction = (
            Adam(beta_1, beta_2, tau, initial=0.0, bias_correction="flower")
            if flower_compatible
            else Adam(beta_1, beta_2, tau)
        )
        super().__init__(*args, optimizer=ServerOptimizer(direction, Constant(eta)), **kwargs)


class FedYogi(FedOpt):
    """``v ← v - (1-β₂)Δ̄² sign(v-Δ̄²)``, ``w ← w - η m/(√v + τ)``. Reddi et al. 2021, 2003.00295.

    Args:
        *args: those of Flower's FedAvg.
        eta: ``η > 0``.
        beta_1: ``β₁`` of ``m ← β₁m + (1-β₁)Δ̄``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units.
        flower_compatible: ``v₀ = 0`` as Flower has it, in place of ``τ²``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        flower_compatible: bool = False,
        **kwargs: Any,
    ) -> None:
        direction = Yogi(beta_1, beta_2, tau, initial=0.0 if flower_compatible else None)
        super().__init__(*args, optimizer=ServerOptimizer(direction, Constant(eta)), **kwargs)


class FedProx(FedAvg):
    """FedAvg whose clients minimise ``fᵢ(y) + μ/2 ‖y - w‖²``. Li et al. 2020, arXiv:1812.06127.

    Sends ``proximal-mu`` in the train config record, as Flower's FedProx does; a client that does
    not read it trains as for FedAvg.

    Args:
        *args: those of Flower's FedAvg.
        proximal_mu: ``μ ≥ 0``.
        **kwargs: those of ``FedAvg``.
    """

    def __init__(self, *args: Any, proximal_mu: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **sending(kwargs, proximal(proximal_mu)))


class Scaffold(FedAvg):
    """FedAvg whose clients correct their drift: ``y ← y - η_l (g - cᵢ + c)``.

    Option II of Karimireddy et al. 2020, arXiv:1910.06378. Clients keep ``cᵢ`` in
    ``Context.state``; ``c`` is in the strategy's ``state``. Clients must take equal steps.

    Args:
        *args: those of Flower's FedAvg.
        **kwargs: those of ``FedAvg``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, control_variates=True, **kwargs)


def sending(kwargs: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``kwargs`` with ``settings`` for the clients, below those that the caller gave."""
    return kwargs | {"client_config": {**settings, **(kwargs.get("client_config") or {})}}


def proximal(mu: float) -> dict[str, float]:
    """The clients' setting for ``μ``, none for 0."""
    if not mu >= 0:
        raise ValueError(f"FedProx(proximal_mu={mu}): must be >= 0. Use 0.0 for none.")
    return {"proximal-mu": mu} if mu else {}
