"""Named strategies that choose their own step: each is ``FedOpt`` with a rule."""

from __future__ import annotations

from typing import Any

from fedexp import keys
from fedexp.strategies.directions import Momentum
from fedexp.strategies.extrapolation import Extrapolation, RunningExtrapolation
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.optimizer import ServerOptimizer
from fedexp.strategies.presets import proximal, sending
from fedexp.strategies.proximal import GradientDiversity, StochasticPolyak
from fedexp.strategies.running_ratio import RunningRatio
from fedexp.strategies.step_sizes import Constant, HypergradientStep, Relaxed, StepSize
from fedexp.strategies.trust_region import TrustRegion


class FedExP(FedOpt):
    """FedAvg with the FedExP server step: ``w ← w - η Δ̄``, ``η ≥ 1`` from the updates.

    ``η = max(1, Σ pᵢ‖Δᵢ‖²/Σ pᵢ / (2 (‖Δ̄‖² + ε)))``
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604. See ``Extrapolation``. With ``smoothing`` the
    rule uses running means and no ``ε``, see ``RunningRatio``; this is not the paper's rule. The
    paper averages clients uniformly, which is ``weighted=False``; by default clients are weighted
    by their examples, as in Flower's FedAvg.

    Args:
        *args: those of Flower's FedAvg.
        epsilon: ``ε ≥ 0``, in squared parameter units. It bounds the step when ``Δ̄`` is short.
        smoothing: ``b`` in [0, 1), the weight of the past in the running means; 0 is the paper's
            rule.
        factor: ``c`` in (0, 1], in place of the ½ of the formula.
        epsilon_decay: factor per round of the clients' learning rate, squared for ``ε``.
        epsilon_per_client: ``M·ε`` in place of ``ε``, as in the authors' code.
        max_step_size: an upper bound on ``η``; none by default.
        proximal_mu: ``μ ≥ 0`` of the clients' proximal term, see ``FedProx``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        Two clients send ``Δ₁ = (3, 1)`` and ``Δ₂ = (-1, 1)``. The mean of the squared norms is
        ``(10 + 2)/2 = 6`` and ``‖Δ̄‖² = 2``, so ``η = 6/(2 · 2)`` and ``w = 0 - 1.5 · (1, 1)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedExP
        >>> update = {"w": np.array([2.0, 2.0])}  # Δ₁ + Δ₂
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> rule = FedExP(epsilon=0.0).optimizer
        >>> params, _, eta = rule.step({"w": np.zeros(2)}, stats, {})
        >>> eta, params["w"].tolist()
        (1.5, [-1.5, -1.5])
    """

    def __init__(
        self,
        *args: Any,
        epsilon: float = 1e-3,
        epsilon_decay: float = 1.0,
        epsilon_per_client: bool = False,
        smoothing: float = 0.0,
        factor: float = 0.5,
        max_step_size: float | None = None,
        proximal_mu: float = 0.0,
        **kwargs: Any,
    ) -> None:
        step: StepSize = Extrapolation(epsilon, epsilon_decay, epsilon_per_client, factor)
        if smoothing:
            if step != Extrapolation(factor=factor):
                raise ValueError(
                    f"FedExP(smoothing={smoothing}, epsilon={epsilon}): the running ratio has no "
                    "epsilon. Give smoothing, or the settings of epsilon, but not both."
                )
            step = RunningRatio(smoothing, factor)
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

    Raises:
        ValueError: an argument is out of its range.

    Example:
        Two equal rounds have ``Δ̄ = (1, 1)`` and the mean squared norm 6. First ``m = (1, 1)``,
        ``r = 6`` and ``η = 6/(2 · 2)``.
        Then ``m = (1.5, 1.5)``, ``r = 7.5`` and ``η = 7.5/(2 · 4.5)``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedExPM
        >>> update = {"w": np.array([2.0, 2.0])}  # Δ₁ + Δ₂
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> rule = FedExPM(server_momentum=0.5, epsilon=0.0).optimizer
        >>> params, state, first = rule.step({"w": np.zeros(2)}, stats, {})
        >>> params, state, second = rule.step(params, stats, state)
        >>> first, round(second, 4)
        (1.5, 0.8333)
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
    ``‖Δ̄‖²``, see ``RunningRatio``. The combination is our own. Its parts are the outer step of
    DiLoCo (Douillard et al. 2023, arXiv:2311.08105) and the ratio of FedExP (Jhunjhunwala, Wang &
    Joshi 2023, arXiv:2301.09604). The iterates swing around the solution: evaluate an average of
    them, see ``BothIterates``. Like every rule with long steps it can diverge if the clients' own
    learning rate is too large; ``max_relative_step=0.2`` bounds the way of each step, see
    ``TrustRegion``.

    Args:
        *args: those of Flower's FedAvg.
        server_momentum: ``μ``, in [0, 1).
        smoothing: ``b``, in [0, 1), the weight of the past in the running means.
        relaxation: ``κ > 0``, a factor of the step.
        max_relative_step: ``ρ``, the longest step ``‖η d‖/‖w‖`` as a share of the model; 0 for no
            such bound.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        ``Δ̄ = (1, 1)`` gives ``η = 0.5 · 6/(2 · 2)`` along ``Δ̄ + 0.9 · Δ̄``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import NesterovExP
        >>> update = {"w": np.array([2.0, 2.0])}  # Δ₁ + Δ₂
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> params, _, eta = NesterovExP().optimizer.step({"w": np.zeros(2)}, stats, {})
        >>> eta, params["w"].round(6).tolist()
        (0.75, [-1.425, -1.425])
    """

    def __init__(
        self,
        *args: Any,
        server_momentum: float = 0.9,
        smoothing: float = 0.5,
        relaxation: float = 0.5,
        max_relative_step: float = 0.0,
        **kwargs: Any,
    ) -> None:
        step: StepSize = RunningRatio(smoothing)
        if max_relative_step:  # the bound is on the step that is taken, κ included
            step, relaxation = TrustRegion(Relaxed(step, relaxation), max_relative_step), 1.0
        rule = ServerOptimizer(Momentum(server_momentum, nesterov=True), step)
        super().__init__(*args, optimizer=rule, relaxation=relaxation, **kwargs)


class FedProxExP(FedExP):
    """``FedExP`` with ``FedProx``'s clients. Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Args:
        *args: those of Flower's FedAvg.
        proximal_mu: ``μ ≥ 0``.
        **kwargs: those of ``FedExP``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.strategies import FedProxExP
        >>> strategy = FedProxExP(proximal_mu=0.5)
        >>> strategy.client_config, strategy.optimizer.step_size.epsilon
        ({'proximal-mu': 0.5}, 0.001)
    """

    def __init__(self, *args: Any, proximal_mu: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, proximal_mu=proximal_mu, **kwargs)


class ScaffoldExP(FedExP):
    """``FedExP`` with ``Scaffold``'s clients. Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Args:
        *args: those of Flower's FedAvg.
        **kwargs: those of ``FedExP``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.strategies import ScaffoldExP
        >>> strategy = ScaffoldExP(epsilon=0.1)
        >>> strategy.control_variates, strategy.optimizer.step_size.epsilon
        (True, 0.1)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, control_variates=True, **kwargs)


class FedExProx(FedOpt):
    """Extrapolated proximal points: ``w ← w - η Δ̄``, clients return ``prox_{γ fᵢ}(w)``.

    Li, Acharya & Richtárik 2024, arXiv:2405.13766. Our clients approximate the proximal point by
    their local steps on ``fᵢ(y) + ‖y - w‖²/(2γ)``.

    Args:
        *args: those of Flower's FedAvg.
        gamma: ``γ > 0``; clients get ``proximal-mu`` ``1/γ``.
        step_size: ``"grads"`` for ``GradientDiversity``, ``"stops"`` for ``StochasticPolyak``, or a
            number, the constant ``η``; ``proximal_step`` computes one.
        minimum: ``M*`` of ``StochasticPolyak``.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        The clients get ``1/γ``. Updates with the mean squared norm 6 and ``‖Δ̄‖² = 2`` give 6/2.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedExProx
        >>> update = {"w": np.array([2.0, 2.0])}  # Δ₁ + Δ₂
        >>> stats = PseudoGradientStats(count=2, weight=2.0, update=update, sq_norm=12.0)
        >>> strategy = FedExProx(gamma=4.0)
        >>> _, _, eta = strategy.optimizer.step({"w": np.zeros(2)}, stats, {})
        >>> strategy.client_config, eta
        ({'proximal-mu': 0.25}, 3.0)
    """

    def __init__(
        self,
        *args: Any,
        gamma: float = 10.0,
        step_size: str | float = "grads",
        minimum: float = 0.0,
        **kwargs: Any,
    ) -> None:
        polyak = StochasticPolyak(gamma, minimum)
        named: dict[object, StepSize] = {"grads": GradientDiversity(), "stops": polyak}
        if isinstance(step_size, str) and step_size not in named:
            raise ValueError(
                f"FedExProx(step_size={step_size!r}): unknown. Use 'grads', 'stops' or a number."
            )
        step = named[step_size] if isinstance(step_size, str) else Constant(step_size)
        config = {"proximal-mu": 1 / gamma} | ({keys.FINAL_LOSS: True} if step is polyak else {})
        rule = ServerOptimizer(step_size=step)
        super().__init__(*args, optimizer=rule, **sending(kwargs, config))


class FedHyper(FedOpt):
    """A server step that gradient descent adapts: ``w ← w - (1 + a) Δ̄``, ``a ← a + κ⟨Δ̄, Δ̄₋₁⟩``.

    This is the global scheduler of Wang, Wang & Li 2024, arXiv:2310.03156. See
    ``HypergradientStep``.

    Args:
        *args: those of Flower's FedAvg.
        rate: ``κ > 0``.
        low: lower bound of ``a``.
        high: upper bound of ``a``.
        normalised: whether to use the cosine of the two updates in place of their product, so that
            neither the model's size nor the clients' learning rate matters. The authors' code uses
            the product.
        **kwargs: those of Flower's FedAvg and of ``FedOpt``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        Two rounds with ``Δ̄ = 2``: the second step is ``1 + 0.1 · 2 · 2``.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import FedHyper
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([2.0])}, sq_norm=4.0)
        >>> rule = FedHyper(rate=0.1).optimizer
        >>> params, state, first = rule.step({"w": np.array([0.0])}, stats, {})
        >>> params, state, second = rule.step(params, stats, state)
        >>> first, second
        (1.0, 1.4)
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
        rule = ServerOptimizer(step_size=HypergradientStep(rate, low, high, normalised))
        super().__init__(*args, optimizer=rule, **kwargs)
