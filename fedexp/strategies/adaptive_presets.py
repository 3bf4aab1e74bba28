"""Named strategies that choose their step by themselves: ``FedOpt`` with its rule filled in."""

from __future__ import annotations

from typing import Any

from fedexp.strategies.directions import Momentum
from fedexp.strategies.extrapolation import Extrapolation, RunningExtrapolation
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.presets import proximal, sending
from fedexp.strategies.proximal import Diversity, Polyak
from fedexp.strategies.running_ratio import RunningRatio
from fedexp.strategies.step_sizes import Constant, Hypergradient, StepSize


class FedExP(FedOpt):
    """FedAvg with the FedExP server step: ``w ← w - η Δ̄``, ``η ≥ 1`` from the updates.

    ``η = max(1, Σ pᵢ‖Δᵢ‖²/Σ pᵢ / (2 (‖Δ̄‖² + ε)))``
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604. See ``Extrapolation``. With ``smoothing``
    the sums are running means and there is no ``ε``, see ``RunningRatio``; this is not the
    paper's. The paper averages clients uniformly, ``weighted=False``; by default we weigh them by
    their examples, as Flower's FedAvg does.

    Args:
        *args: those of Flower's FedAvg.
        epsilon: ``ε ≥ 0``, in squared parameter units. It acts as a limit of the step.
        smoothing: ``b`` in [0, 1), the share of the old in the running means; 0 is the paper's
            rule.
        epsilon_decay: factor per round of the clients' learning rate, squared for ``ε``.
        epsilon_per_client: ``M·ε`` in place of ``ε``, as in the authors' code.
        max_step_size: a cap on ``η``; none by default.
        proximal_mu: ``μ ≥ 0`` of the clients' proximal term, see ``FedProx``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *args: Any,
        epsilon: float = 1e-3,
        epsilon_decay: float = 1.0,
        epsilon_per_client: bool = False,
        smoothing: float = 0.0,
        max_step_size: float | None = None,
        proximal_mu: float = 0.0,
        **kwargs: Any,
    ) -> None:
        step: StepSize = Extrapolation(epsilon, epsilon_decay, epsilon_per_client)
        if smoothing:
            if step != Extrapolation():
                raise ValueError(
                    f"FedExP(smoothing={smoothing}, epsilon={epsilon}): the running ratio has no "
                    "epsilon. Leave out smoothing, or all settings of epsilon."
                )
            step = RunningRatio(smoothing)
        rule = ServerOptimizer(step_size=step)
        kwargs = sending(kwargs, proximal(proximal_mu))
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


class NesterovExP(FedOpt):
    """Nesterov's direction with FedExP's step: ``m ← Δ̄ + μ m``, ``w ← w - η (Δ̄ + μ m)``.

    ``η = κ max(1, N/(2Q))`` with ``N`` and ``Q`` the running means of ``Σ pᵢ‖Δᵢ‖²/Σ pᵢ`` and
    ``‖Δ̄‖²``, see ``RunningRatio``. The combination is ours; its parts are the outer step of
    DiLoCo (Douillard et al. 2023, arXiv:2311.08105) and the ratio of FedExP (Jhunjhunwala, Wang &
    Joshi 2023, arXiv:2301.09604). Its last iterate swings: evaluate an average of the iterates,
    see ``BothIterates``. Like every long step it can diverge where the clients' own learning rate
    is too large.

    Args:
        *args: those of Flower's FedAvg.
        server_momentum: ``μ``, in [0, 1).
        smoothing: ``b``, in [0, 1), the share of the old in the running means.
        relaxation: ``κ > 0``, a factor of the step.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *args: Any,
        server_momentum: float = 0.9,
        smoothing: float = 0.5,
        relaxation: float = 0.5,
        **kwargs: Any,
    ) -> None:
        rule = ServerOptimizer(Momentum(server_momentum, nesterov=True), RunningRatio(smoothing))
        super().__init__(*args, optimizer=rule, relaxation=relaxation, **kwargs)


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
        super().__init__(*args, optimizer=rule, **sending(kwargs, config))


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
