"""Named strategies with a constant step: each is ``FedOpt`` with a rule.

Every strategy takes the arguments of Flower's FedAvg in their order, then those of ``FedOpt`` by
keyword. A strategy that Flower has too takes Flower's own arguments with Flower's defaults, and has
Flower's attributes; one that is set, as in ``strategy.eta /= 2``, holds from the next step on.
Flower's step moves every array, also batch-norm statistics and counters. Ours sets those to the
clients' mean, unless ``trainable`` names them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from logging import WARNING
from numbers import Real
from typing import Any

from flwr.common.logger import log
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedexp.strategies.attributes import Current, OfRule, OfSettings, OfState
from fedexp.strategies.directions import Adagrad, Adam, AdaptiveDirection, Momentum, Yogi
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.step_sizes import Constant

_NUM_FLOWERS = len(inspect.signature(FlowerFedAvg).parameters)


class FedAvg(FedOpt):
    """Federated averaging with a constant server step: ``w ← w - η Δ̄``.

    McMahan et al. 2017, arXiv:1602.05629. With ``server_learning_rate`` 1 the new model is the
    clients' weighted mean.

    Args:
        *args: those of Flower's FedAvg.
        server_learning_rate: ``η > 0``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        With ``w = 1`` and ``Δ̄ = 2``, half a step ends at ``1 - ½ · 2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedAvg
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([2.0])}, sq_norm=4.0)
        >>> rule = FedAvg(server_learning_rate=0.5).optimizer
        >>> params, _, _ = rule.step({"w": np.array([1.0])}, stats, {})
        >>> params["w"].item()
        0.0
    """

    server_learning_rate = OfRule(Constant, "value")

    def __init__(self, *args: Any, server_learning_rate: float = 1.0, **kwargs: Any) -> None:
        rule = ServerOptimizer(step_size=Constant(server_learning_rate))
        super().__init__(*args, optimizer=rule, **kwargs)


class FedAvgM(FedOpt):
    """Server momentum: ``m ← Δ̄ + β m``, ``w ← w - η m``. Hsu, Qi & Brown 2019, arXiv:1909.06335.

    For floating-point arrays the numbers are those of Flower's FedAvgM.

    Args:
        *args: those of Flower's FedAvg, then ``server_learning_rate`` and ``server_momentum``.
        server_learning_rate: ``η > 0``; ``1 - β`` for steps of FedAvg's length.
        server_momentum: ``β``, in [0, 1). 0, Flower's default, is FedAvg; 0.9 is usual.
        nesterov: whether to step along ``Δ̄ + β m``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        With ``Δ̄ = 2`` twice, ``m`` is 2 and then ``2 + 0.5 · 2``, so ``w`` ends at ``5 - 2 - 3``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedAvgM
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([2.0])}, sq_norm=4.0)
        >>> rule = FedAvgM(server_momentum=0.5).optimizer
        >>> params, state, _ = rule.step({"w": np.array([5.0])}, stats, {})
        >>> params, state, _ = rule.step(params, stats, state)
        >>> params["w"].item()
        0.0
    """

    server_learning_rate = OfRule(Constant, "value")
    server_momentum = OfRule(Momentum, "beta")
    momentum_vector = OfState("momentum", as_list=True)
    current_arrays = Current(as_record=True)

    def __init__(
        self,
        *args: Any,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        nesterov: bool = False,
        **kwargs: Any,
    ) -> None:
        args, (eta, beta) = beyond(args, server_learning_rate, server_momentum)
        rule = ServerOptimizer(Momentum(beta, nesterov), Constant(eta))
        super().__init__(*args, optimizer=rule, **kwargs)

    @property
    def server_opt(self) -> bool:
        """Whether the step differs from FedAvg's."""
        return bool(self.server_momentum != 0.0 or self.server_learning_rate != 1.0)


class _AdaptiveStrategy(FedOpt):
    """``FedOpt`` along an adaptive direction, with the attributes of Flower's FedAdam."""

    eta = OfRule(Constant, "value")
    beta_1 = OfRule(AdaptiveDirection, "beta_1")
    beta_2 = OfRule(AdaptiveDirection, "beta_2")
    tau = OfRule(AdaptiveDirection, "tau")
    m_t = OfState("first-moment", -1.0)  # Flower's moment is that of -Δ̄
    v_t = OfState("second-moment")


class FedAdagrad(_AdaptiveStrategy):
    """``v ← v + Δ̄²``, ``w ← w - η Δ̄/(√v + τ)``. Reddi et al. 2021, arXiv:2003.00295.

    Args:
        *args: those of Flower's FedAvg.
        eta: ``η > 0``.
        eta_l: the clients' learning rate, kept as Flower keeps it and read by nobody.
        tau: ``τ > 0``, in parameter units.
        flower_compatible: ``v₀ = 0`` as Flower has it, in place of ``τ²``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        With ``v₀ = 0``, ``Δ̄ = 3`` steps by ``2 · 3/(3 + 1)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedAdagrad
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([3.0])}, sq_norm=9.0)
        >>> rule = FedAdagrad(eta=2.0, tau=1.0, flower_compatible=True).optimizer
        >>> params, _, _ = rule.step({"w": np.array([0.0])}, stats, {})
        >>> params["w"].item()
        -1.5
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.1,
        eta_l: float = 0.1,
        tau: float = 1e-3,
        flower_compatible: bool = False,
        **kwargs: Any,
    ) -> None:
        direction = Adagrad(beta_2=0.0, tau=tau, initial=0.0 if flower_compatible else None)
        super().__init__(*args, optimizer=ServerOptimizer(direction, Constant(eta)), **kwargs)
        self.eta_l = eta_l


class FedAdam(_AdaptiveStrategy):
    """``v ← β₂v + (1-β₂)Δ̄²``, ``w ← w - η m/(√v + τ)``. Reddi et al. 2021, arXiv:2003.00295.

    Args:
        *args: those of Flower's FedAvg.
        eta: ``η > 0``.
        eta_l: the clients' learning rate, kept as Flower keeps it and read by nobody.
        beta_1: ``β₁`` of ``m ← β₁m + (1-β₁)Δ̄``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units.
        flower_compatible: ``v₀ = 0`` and Flower's bias correction, in place of ``τ²`` and none.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        With ``β₁ = β₂ = 0``, ``m = Δ̄`` and ``v = Δ̄²``: a step of ``2 · 3/(3 + 1)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedAdam
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([3.0])}, sq_norm=9.0)
        >>> rule = FedAdam(eta=2.0, beta_1=0.0, beta_2=0.0, tau=1.0).optimizer
        >>> params, _, _ = rule.step({"w": np.array([0.0])}, stats, {})
        >>> params["w"].item()
        -1.5
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.1,
        eta_l: float = 0.1,
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
        self.eta_l = eta_l


class FedYogi(_AdaptiveStrategy):
    """``v ← v - (1-β₂)Δ̄² sign(v-Δ̄²)``, ``w ← w - η m/(√v + τ)``. Reddi et al. 2021, 2003.00295.

    Args:
        *args: those of Flower's FedAvg.
        eta: ``η > 0``.
        eta_l: the clients' learning rate, kept as Flower keeps it and read by nobody.
        beta_1: ``β₁`` of ``m ← β₁m + (1-β₁)Δ̄``, in [0, 1).
        beta_2: ``β₂``, in [0, 1).
        tau: ``τ > 0``, in parameter units.
        flower_compatible: ``v₀ = 0`` as Flower has it, in place of ``τ²``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        With ``v₀ = 0`` and ``β₁ = β₂ = 0``, ``v = Δ̄²``: a step of ``2 · 3/(3 + 1)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedYogi
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([3.0])}, sq_norm=9.0)
        >>> strategy = FedYogi(eta=2.0, beta_1=0.0, beta_2=0.0, tau=1.0, flower_compatible=True)
        >>> params, _, _ = strategy.optimizer.step({"w": np.array([0.0])}, stats, {})
        >>> params["w"].item()
        -1.5
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.01,
        eta_l: float = 0.0316,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        flower_compatible: bool = False,
        **kwargs: Any,
    ) -> None:
        direction = Yogi(beta_1, beta_2, tau, initial=0.0 if flower_compatible else None)
        super().__init__(*args, optimizer=ServerOptimizer(direction, Constant(eta)), **kwargs)
        self.eta_l = eta_l


class FedProx(FedAvg):
    """FedAvg whose clients minimise ``fᵢ(y) + μ/2 ‖y - w‖²``. Li et al. 2020, arXiv:1812.06127.

    Sends ``proximal-mu`` in the train config record, as Flower's FedProx does; a client that does
    not read it trains as for FedAvg.

    Args:
        *args: those of Flower's FedAvg, then ``proximal_mu``.
        proximal_mu: ``μ ≥ 0``; 0, Flower's default, is FedAvg.
        **kwargs: those of ``FedAvg``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.strategies import FedProx
        >>> FedProx(proximal_mu=0.1).client_config
        {'proximal-mu': 0.1}
    """

    proximal_mu = OfSettings("proximal-mu")

    def __init__(self, *args: Any, proximal_mu: float = 0.0, **kwargs: Any) -> None:
        args, (mu,) = beyond(args, proximal_mu)
        if mu == 0:
            log(WARNING, "FedProx(proximal_mu=0.0) is FedAvg. Use 0.1, say.")
        super().__init__(*args, **sending(kwargs, {"proximal-mu": 0.0, **proximal(mu)}))


class Scaffold(FedAvg):
    """FedAvg whose clients correct their drift: ``y ← y - η_l (g - cᵢ + c)``.

    Option II of Karimireddy et al. 2020, arXiv:1910.06378. Clients keep their control variate
    ``cᵢ`` in ``Context.state``. They keep the previous one too, and return to it when a reply is
    lost, dropped or refused. The server's ``c = Σ pᵢcᵢ / Σ pᵢ`` over all clients is in the
    strategy's ``state``; the paper has ``pᵢ = 1``. Clients must take equally many equal steps.

    Args:
        *args: those of Flower's FedAvg.
        **kwargs: those of ``FedAvg``.

    Example:
        The server's step is FedAvg's; the correction is at the clients.

        >>> from fedexp.strategies import Scaffold
        >>> strategy = Scaffold()
        >>> strategy.control_variates, strategy.optimizer.is_mean
        (True, True)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, control_variates=True, **kwargs)


def beyond(args: tuple[Any, ...], *own: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split ``args`` into those of Flower's FedAvg and the values of ``own`` arguments.

    Flower's strategies take their own arguments by position after FedAvg's. An argument of ``own``
    that ``args`` does not reach keeps its default.
    """
    end = _NUM_FLOWERS + len(own)
    given = args[_NUM_FLOWERS:end]
    return args[:_NUM_FLOWERS] + args[end:], (*given, *own[len(given) :])


def sending(kwargs: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``kwargs`` with ``settings`` for the clients; settings that the caller gave win."""
    return kwargs | {"client_config": {**settings, **(kwargs.get("client_config") or {})}}


def proximal(mu: float) -> dict[str, float]:
    """The clients' setting for ``μ``, none for 0."""
    if not (isinstance(mu, Real) and 0 <= mu < float("inf")):
        raise ValueError(f"FedProx(proximal_mu={mu!r}): must be >= 0 and finite. Use 0.0 for none.")
    return {"proximal-mu": mu} if mu else {}
