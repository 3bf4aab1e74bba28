"""SCAFFOLD's server half: the mean of the clients' control variates, and whose are in it.

Every client ``i`` keeps a control variate ``cᵢ``, an estimate of its own gradient, and the server
keeps their mean ``c``. A local step along ``g - cᵢ + c`` then follows the gradient of all clients,
however far client ``i`` has gone. Karimireddy et al. 2020, arXiv:1910.06378.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.arrays import Arrays, Float64s, cast_like
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
from fedexp.strategies.medians import MedianBounds

_CLIENTS = "control-clients"


@dataclass(frozen=True)
class ServerControlVariate(Extension):
    """Send the server's control variate to the clients, and move it by their replies.

    The state has two entries: ``control-variate``, and ``control-clients``, what is known of each.

    Attributes:
        bounds: bounds on the weights; None for weights as the clients report them, or all equal.

    Example:
        In round 1 the server's control variate is zero, and no client has lost a reply:

        >>> import numpy as np
        >>> from fedexp.strategies import Scaffold
        >>> strategy = Scaffold()
        >>> strategy.begin({"w": np.ones(2)}, server_round=1)
        >>> sent = strategy.ask([7, 8], num_nodes=5)
        >>> sent.arrays, sorted(sent.settings)
        ({'control-variate': {'w': array([0., 0.])}}, ['run-id'])
    """

    keeps_mean = True

    bounds: MedianBounds | None = None

    def reading(self, state: State) -> Mapping[str, Any]:
        """Only clients of equal ``K η_l`` add up, see ``next_control``."""
        return {"step_key": keys.CONTROL_STEP}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """The server's control variate, and what clients need to know to keep their own."""
        clients, reading = Clients.of(state), round_.reading
        lost = clients.ask(round_.nodes, round_.server_round)
        bounds = limits(reading.max_norm, reading.max_weight, reading.uniform)
        control = server_control(round_.params, reading.trainable, state)
        return run_number(state) | Sent(
            {**bounds, **lost}, {keys.CONTROL_VARIATE: control}, clients.entry()
        )

    def check(self, received: Received, state: State) -> None:
        """In the first round, refuse clients that are not made for control variates."""
        if keys.CONTROL_VARIATE not in state:
            check_steps(received.stats.count, received.unlike, received.without_step)

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums as they are; the control variate for the next round."""
        clients = Clients.of(state)
        before = clients.total
        weights = dict(zip(received.nodes, self._weights(received), strict=True))
        clients.apply(weights, received.round.server_round, received.round.num_nodes)
        # Of the sums as they came: clients know the bounds that they were read with, and move their
        # own control variates by the same updates.
        moved = next_control(
            received.stats, state, step=received.step, before=before, total=clients.total
        )
        return Adapted(stats, {**moved, **clients.entry()})

    def _weights(self, received: Received) -> list[float]:
        if self.bounds and received.round.reading.uniform:
            # The first round of the bounds, in which all count alike. What is remembered of the
            # clients is what they will weigh later.
            return self.bounds.bounded(received.claims)
        return received.weights


@dataclass
class Clients:
    """What the server knows of the clients and their control variates, by node.

    Attributes:
        weight: ``pᵢ`` as last reported.
        applied: the last round whose reply is in the server's control variate.
        asked: the last round in which the client was asked to train.
        total: ``Σ pᵢ`` over all clients, for which the server's control variate was computed.
    """

    weight: dict[int, float] = field(default_factory=dict)
    applied: dict[int, int] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    total: float = 0.0

    @classmethod
    def of(cls, state: State) -> Clients:
        """As ``entry`` put it into a strategy's state; nobody is known in round 1."""
        if _CLIENTS not in state:
            return cls()
        known = state[_CLIENTS]
        nodes = known["nodes"].tolist()
        weight, applied, asked = (
            {node: x for node, x in zip(nodes, known[column].tolist(), strict=True) if x}
            for column in ("weight", "applied", "asked")
        )
        return cls(weight, applied, asked, float(known["total"]))

    def entry(self) -> dict[str, Arrays]:
        """As an entry of the state, arrays by node."""
        arrays: dict[str, Arrays] = {
            _CLIENTS: {
                "nodes": np.array(list(self.asked), np.uint64),
                "weight": np.array([self.weight.get(i, 0.0) for i in self.asked]),
                "applied": np.array([self.applied.get(i, 0) for i in self.asked], np.int64),
                "asked": np.array(list(self.asked.values()), np.int64),
                "total": np.asarray(self.total),
            }
        }
        return arrays

    def ask(self, nodes: Sequence[int], server_round: int) -> dict[str, list[int]]:
        """Note that ``nodes`` are asked to train; settings that say whose last reply was lost.

        A client keeps the control variate of its last reply only if the server applied that reply.
        """
        lost = [i for i in nodes if self.asked.get(i, 0) != self.applied.get(i, 0)]
        self.asked |= dict.fromkeys(nodes, server_round)
        rounds = [self.applied.get(i, 0) for i in lost]
        return {keys.CONTROL_NODES: lost, keys.CONTROL_ROUNDS: rounds} if lost else {}

    def apply(self, weights: Mapping[int, float], server_round: int, num_nodes: int) -> None:
        """Note whose replies are applied.

        Args:
            weights: ``pᵢ`` by node.
            server_round: the round.
            num_nodes: how many clients there are. One that has never taken part counts with the
                mean weight of the others; its own control variate is zero.
        """
        self.weight |= weights
        self.asked |= dict.fromkeys(weights, server_round)
        self.applied |= dict.fromkeys(weights, server_round)
        self.total = math.fsum(self.weight.values()) * max(1.0, num_nodes / len(self.weight))


def limits(max_norm: float, max_weight: float, uniform: bool) -> dict[str, float]:
    """Settings that say to what the server bounds a client's update and weight.

    A client's own control variate has to be what the server makes of its reply. Weights are all 1
    if ``uniform``: a client has at least one example.
    """
    bounds = {keys.MAX_UPDATE_NORM: max_norm, keys.MAX_WEIGHT: 1.0 if uniform else max_weight}
    return {name: bound for name, bound in bounds.items() if math.isfinite(bound)}


def server_control(params: Arrays, trainable: frozenset[str], state: State) -> Arrays:
    """``c`` as the clients get it: by name, in the dtypes of ``params``; zero in round 1."""
    control = state.get(keys.CONTROL_VARIATE, {})
    return {
        name: cast_like(control[name], w) if name in control else np.zeros_like(w)
        for name, w in params.items()
        if name in trainable
    }


def next_control(
    stats: PseudoGradientStats, state: State, *, step: float, before: float, total: float
) -> dict[str, Float64s]:
    """``c = Σ pᵢ cᵢ / Σ pᵢ`` over all clients after a round, the state's new entry.

    By option II a client's control variate moves by ``cᵢ⁺ - cᵢ = Δᵢ/(K η_l) - c``. With the sums
    over the round, ``c ← (P c + Σ pᵢ (Δᵢ/(K η_l) - c)) / P⁺``: clients send nothing more than
    FedAvg's do, and sums of replies serve as well as the replies. Karimireddy et al. 2020,
    arXiv:1910.06378, alg. 1, where ``pᵢ = 1``. A clipped update counts with what is left of it.

    Args:
        stats: of the round.
        state: what the last round left, ``{}`` in round 1.
        step: ``K η_l``, the sum of the learning rates of all local steps; the same at every client.
        before: ``P``, the weight of all clients as the last round knew it.
        total: ``P⁺``, as this round knows it.

    Example:
        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies.scaffold import next_control
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([0.5])})
        >>> next_control(stats, {}, step=0.25, before=0.0, total=4.0)  # one of four clients
        {'control-variate': {'w': array([0.5])}}
    """
    old = state.get(keys.CONTROL_VARIATE, {})
    new = dict(old)
    for name, update in stats.update.items():
        # The two terms with c are one: (P c - Σ pᵢ c) / P⁺ = c (P - Σ pᵢ) / P⁺.
        c = np.asarray(update / (step * total))
        if name in old:
            c += old[name] * ((before - stats.weight) / total)
        new[name] = c
    return {keys.CONTROL_VARIATE: new}


def check_steps(num_alike: int, unlike: Sequence[int], without: Sequence[int]) -> None:
    """Find out in the first round whether the clients are made for control variates.

    Later, and here if most of them are, those that are not count as failures.

    Args:
        num_alike: how many report the commonest ``K η_l``.
        unlike: nodes that report another.
        without: nodes that report none.

    Raises:
        ValueError: they are not.
    """
    if len(unlike) > num_alike > 0:
        raise ValueError(
            f"Scaffold({keys.CONTROL_STEP}): must be the same at every client, {len(unlike)} "
            f"differ from {num_alike}. Give all the same local-steps and learning-rate."
        )
    if without and not num_alike:
        raise ValueError(
            f"Scaffold(metrics of node {without[0]}): no {keys.CONTROL_STEP}, so its ClientApp "
            "uses no control variates. Use fedexp.clients.client_app, or a strategy without them."
        )
