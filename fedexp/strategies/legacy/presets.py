"""The named strategies in Flower's older API: each is ``FedOpt`` with its twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedexp.strategies import adaptive_presets, optimization_presets, presets
from fedexp.strategies.legacy.fedopt import FedOpt


class _OfTwin:
    """An attribute of the twin; arrays by name are a list here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        if strategy is None:
            return self
        value = getattr(strategy.strategy, self.name)
        return list(value.values()) if isinstance(value, dict) else value

    def __set__(self, strategy: Any, value: Any) -> None:
        setattr(strategy.strategy, self.name, value)


class FedAvg(FedOpt):
    """``fedexp.strategies.FedAvg`` in the older API."""

    twin = presets.FedAvg
    server_learning_rate = _OfTwin()


class FedAvgM(FedOpt):
    """``fedexp.strategies.FedAvgM`` in the older API."""

    twin = presets.FedAvgM
    server_learning_rate, server_momentum = _OfTwin(), _OfTwin()
    server_opt, momentum_vector = _OfTwin(), _OfTwin()


_ADAPTIVE = {"tau": 1e-9, "flower_compatible": True}


class FedAdagrad(FedOpt):
    """``fedexp.strategies.FedAdagrad`` in the older API, by default with Flower's numbers.

    ``flower_compatible=False`` gives those of the paper.
    """

    twin = presets.FedAdagrad
    defaults = _ADAPTIVE
    eta, eta_l, beta_1, beta_2, tau = (_OfTwin() for _ in range(5))
    m_t, v_t = _OfTwin(), _OfTwin()


class FedAdam(FedOpt):
    """``fedexp.strategies.FedAdam`` in the older API, by default with Flower's numbers.

    ``flower_compatible=False`` gives those of the paper.
    """

    twin = presets.FedAdam
    defaults = _ADAPTIVE
    eta, eta_l, beta_1, beta_2, tau = (_OfTwin() for _ in range(5))
    m_t, v_t = _OfTwin(), _OfTwin()


class FedYogi(FedOpt):
    """``fedexp.strategies.FedYogi`` in the older API, by default with Flower's numbers.

    ``flower_compatible=False`` gives those of the paper.
    """

    twin = presets.FedYogi
    defaults: ClassVar[Mapping[str, Any]] = {"flower_compatible": True}
    eta, eta_l, beta_1, beta_2, tau = (_OfTwin() for _ in range(5))
    m_t, v_t = _OfTwin(), _OfTwin()


class FedProx(FedOpt):
    """``fedexp.strategies.FedProx`` in the older API."""

    twin = presets.FedProx
    proximal_mu = _OfTwin()


class FedExP(FedOpt):
    """``fedexp.strategies.FedExP`` in the older API."""

    twin = adaptive_presets.FedExP


class FedExPM(FedOpt):
    """``fedexp.strategies.FedExPM`` in the older API."""

    twin = adaptive_presets.FedExPM


class NesterovExP(FedOpt):
    """``fedexp.strategies.NesterovExP`` in the older API."""

    twin = adaptive_presets.NesterovExP


class FedProxExP(FedOpt):
    """``fedexp.strategies.FedProxExP`` in the older API."""

    twin = adaptive_presets.FedProxExP


class FedExProx(FedOpt):
    """``fedexp.strategies.FedExProx`` in the older API."""

    twin = adaptive_presets.FedExProx


class FedHyper(FedOpt):
    """``fedexp.strategies.FedHyper`` in the older API."""

    twin = adaptive_presets.FedHyper


class FedBB(FedOpt):
    """``fedexp.strategies.FedBB`` in the older API."""

    twin = optimization_presets.FedBB


class FedAnderson(FedOpt):
    """``fedexp.strategies.FedAnderson`` in the older API."""

    twin = optimization_presets.FedAnderson


class FedDoG(FedOpt):
    """``fedexp.strategies.FedDoG`` in the older API."""

    twin = optimization_presets.FedDoG


class FedDoWG(FedOpt):
    """``fedexp.strategies.FedDoWG`` in the older API."""

    twin = optimization_presets.FedDoWG


class FedScheduleFree(FedOpt):
    """``fedexp.strategies.FedScheduleFree`` in the older API."""

    twin = optimization_presets.FedScheduleFree
