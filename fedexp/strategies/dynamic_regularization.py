"""FedDyn's server half: the mean of what the clients add to their losses, taken off the model.

Client ``i`` trains on ``fᵢ(y) - ⟨λᵢ, y⟩ + α/2 ‖y - w‖²`` and then moves ``λᵢ ← λᵢ + α Δᵢ``, which
is the gradient of ``fᵢ`` at an exact solution. Where all clients agree on ``w``, the mean of these
gradients is zero. Acar et al. 2021, arXiv:2111.04263, alg. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedexp import keys
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import (
    Adapted,
    Extension,
    Received,
    RoundInProgress,
    Sent,
    run_number,
)
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.scaffold import Clients, limits

_SUM = "dynamic-regularization"


@dataclass(frozen=True)
@with_kinds
class DynamicRegularization(Extension):
    """Step along ``Δ̄ + h/α`` with ``h = Σ pᵢλᵢ/Σ pᵢ`` over all clients, of this round or not.

    ``Σ pᵢλᵢ`` grows by ``α Σ pᵢΔᵢ``, so clients send no more than FedAvg's do. With ``pᵢ = 1`` and
    a server step of 1 this is ``h ← h - α/m Σ (wᵢ - w)``, ``w ← mean wᵢ - h/α`` of the paper, with
    ``m`` clients in all. The state has ``Σ pᵢλᵢ``, and what is known of each client: one whose
    reply was lost is told so, and returns to its earlier ``λᵢ``.

    Attributes:
        alpha: ``α > 0``, in units of the loss per squared parameter unit.
        bounds: bounds on the weights; None for weights as the clients report them, or all equal.

    Raises:
        ValueError: ``α`` is not positive and finite.

    Example:
        >>> from fedexp.strategies.dynamic_regularization import DynamicRegularization
        >>> DynamicRegularization(0.1).reading({})
        {'step_key': 'control-step'}
    """

    alpha: float
    bounds: MedianBounds | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"FedDyn(proximal_mu={self.alpha}): must be > 0. Use 0.1.")

    def reading(self, state: State) -> Mapping[str, Any]:
        """Only clients that regularise count; they say so by their ``1/α``."""
        return {"step_key": keys.CONTROL_STEP}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """``α``, and what clients need to know to keep their ``λᵢ``."""
        clients, reading = Clients.of(state), round_.reading
        lost = clients.ask(round_.nodes, round_.server_round)
        bounds = limits(reading.max_norm, reading.max_weight, reading.uniform)
        own = {keys.DYNAMIC_ALPHA: self.alpha, "proximal-mu": self.alpha}
        return run_number(state) | Sent({**own, **bounds, **lost}, state=clients.entry())

    def check(self, received: Received, state: State) -> None:
        """In the first round, refuse clients that do not regularise."""
        if _SUM not in state and received.without_step and not received.stats.count:
            raise ValueError(
                f"FedDyn(metrics of node {received.without_step[0]}): no {keys.CONTROL_STEP}, so "
                "its ClientApp does not regularise. Use fedexp.clients.client_app, or another "
                "strategy."
            )

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums with ``h/α`` added to the mean; ``Σ pᵢλᵢ`` for the next round."""
        clients, asked = Clients.of(state), received.round
        weights = received.weights
        if self.bounds and asked.reading.uniform:  # see ServerControlVariate
            weights = self.bounds.bounded(received.claims)
        clients.apply(
            dict(zip(received.nodes, weights, strict=True)), asked.server_round, asked.num_nodes
        )
        old = state.get(_SUM, {})
        # Of the sums as they came: clients move their λᵢ by the same updates.
        new = {k: old.get(k, 0.0) + self.alpha * x for k, x in received.stats.update.items()}
        factor = stats.weight / (clients.total * self.alpha)
        update = {k: x + new[k] * factor for k, x in stats.update.items()}
        entry: State = {_SUM: {**old, **new}}
        return Adapted(replace(stats, update=update), {**entry, **clients.entry()})
