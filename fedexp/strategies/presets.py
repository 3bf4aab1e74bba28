"""Named strategies: ``FedOpt`` with its rule filled in.

Every one takes the arguments of Flower's FedAvg, in their order, then those of ``FedOpt`` by
keyword. Defaults are those of the method's authors, or of Flower where it has the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedexp.strategies.directions import Adagrad, Adam, Momentum, Yogi
from fedexp.strategies.extrapolation import Diversity, Extrapolation, Polyak, RunningExtrapolation
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.step_sizes import Constant, Hypergradient, StepSize


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
        super().__init__(*args, **_sending(kwargs, _proximal(proximal_mu)))


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


class FedExP(FedOpt):
    """FedAvg with the FedExP server step: ``w ← w - η Δ̄``, ``η ≥ 1`` from the updates.

    ``η = max(1, Σ pᵢ‖Δᵢ‖²/Σ pᵢ / (2 (‖Δ̄‖² + ε)))``
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604. See ``Extrapolation``.

    Args:
        *args: those of Flower's FedAvg.
        epsilon: ``ε ≥ 0``, in squared parameter units.
        epsilon_decay: factor per round of the clients' learning rate, squared for ``ε``.
        epsilon_per_client: ``M·ε`` in place of ``ε``, as in the authors' code.
        max_step_size: a cap on ``η``; none by default.
        proximal_mu: ``μ ≥ 0`` of the clients' proximal term, see ``FedProx``.
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
        proximal_mu: float = 0.0,
        **kwargs: Any,
    ) -> None:
        step = Extrapolation(epsilon, epsilon_decay, epsilon_per_client)
        rule = ServerOptimizer(step_size=step)
        kwargs = _sending(kwargs, _proximal(proximal_mu))
        super().__init__(*args, optimizer=rule, max_step_size=max_step_size, **kwargs)


class FedExPM(FedOpt):
    """FedExP with server momentum: ``m ← Δ̄ + β m``, ``w ← w - η m``.

    ``η = ½ r/(‖m‖² + ε)`` with ``r ← Σ pᵢ‖Δᵢ‖²/Σ pᵢ + ½ β r``.
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604. See ``RunningExtrapolation``.

    Args:
        *args: those of Flower's FedAvg.
        server_momentum: ``β``, in [0, 1).
        epsilon: ``ε ≥ 0``, in squared parameter units.
        epsilon_decay: factor per round of the clients' learning rate, squared for ``ε``.
        epsilon_per_client: ``M·ε`` in place of ``ε``, as in the authors' code.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    mean_of_last_two = True

    def __init__(
        self,
        *args: Any,
        server_momentum: float = 0.9,
        epsilon: float = 1e-3,
        epsilon_decay: float = 1.0,
        epsilon_per_client: bool = False,
        **kwargs: Any,
    ) -> None:
        step = RunningExtrapolation(epsilon, epsilon_decay, epsilon_per_client, server_momentum)
        rule = ServerOptimizer(Momentum(server_momentum), step)
        super().__init__(*args, optimizer=rule, **kwargs)


class FedProxExP(FedExP):
    """``FedExP`` with ``FedProx``'s clients. Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Args:
        *args: those of Flower's FedAvg.
        proximal_mu: ``μ ≥ 0``.
        **kwargs: those of ``FedExP``.
    """

    def __init__(self, *args: Any, proximal_mu: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, proximal_mu=proximal_mu, **kwargs)


class ScaffoldExP(FedExP):
    """``FedExP`` with ``Scaffold``'s clients. Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Args:
        *args: those of Flower's FedAvg.
        **kwargs: those of ``FedExP``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, control_variates=True, **kwargs)


class FedExProx(FedOpt):
    """Extrapolated proximal points: ``w ← w - η Δ̄``, clients return ``prox_{γ fᵢ}(w)``.

    Li, Acharya & Richtárik 2024, arXiv:2405.13766. Our clients approach the proximal point by
    their local steps on ``fᵢ(y) + ‖y - w‖²/(2γ)``.

    Args:
        *args: those of Flower's FedAvg.
        gamma: ``γ > 0``; clients get ``proximal-mu`` ``1/γ``.
        step_size: ``"grads"`` for ``Diversity``, ``"stops"`` for ``Polyak``, or the constant
            ``η``, see ``proximal_step``.
        minimum: ``M*`` of ``Polyak``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *args: Any,
        gamma: float = 10.0,
        step_size: str | float = "grads",
        minimum: float = 0.0,
        **kwargs: Any,
    ) -> None:
        polyak = Polyak(gamma, minimum)
        named: dict[object, StepSize] = {"grads": Diversity(), "stops": polyak}
        if isinstance(step_size, str) and step_size not in named:
            raise ValueError(
                f"FedExProx(step_size={step_size!r}): unknown. Use 'grads', 'stops' or a number."
            )
        step = named[step_size] if isinstance(step_size, str) else Constant(step_size)
        config = {"proximal-mu": 1 / gamma} | ({"final-loss": True} if step is polyak else {})
        rule = ServerOptimizer(step_size=step)
        super().__init__(*args, optimizer=rule, **_sending(kwargs, config))


class FedHyper(FedOpt):
    """A server step that descends on itself: ``w ← w - (1 + a) Δ̄``, ``a ← a + κ⟨Δ̄, Δ̄₋₁⟩``.

    Wang, Wang & Li 2024, arXiv:2310.03156, the global scheduler. See ``Hypergradient``.

    Args:
        *args: those of Flower's FedAvg.
        rate: ``κ > 0``.
        low: lower bound of ``a``.
        high: upper bound of ``a``.
        normalised: the cosine of the two in place of their product, so that neither the model's
            size nor the clients' learning rate matters. The authors' code does without.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.
    """

    def __init__(
        self,
        *args: Any,
        rate: float = 1.0,
        low: float = -0.8,
        high: float = 4.0,
        normalised: bool = False,
        **kwargs: Any,
    ) -> None:
        rule = ServerOptimizer(step_size=Hypergradient(rate, low, high, normalised))
        super().__init__(*args, optimizer=rule, **kwargs)


def _sending(kwargs: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``kwargs`` with ``settings`` for the clients, below those that the caller gave."""
    return kwargs | {"client_config": {**settings, **(kwargs.get("client_config") or {})}}


def _proximal(mu: float) -> dict[str, float]:
    if not mu >= 0:
        raise ValueError(f"FedProx(proximal_mu={mu}): must be >= 0. Use 0.0 for none.")
    return {"proximal-mu": mu} if mu else {}
