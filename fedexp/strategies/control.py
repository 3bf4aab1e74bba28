"""SCAFFOLD's server half: the mean of the clients' control variates."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedexp.arrays import Arrays, Float64s, cast_like
from fedexp.strategies.directions import State

VARIATE, STEP = "control-variate", "control-step"


def server_variate(params: Arrays, trainable: frozenset[str], state: State) -> Arrays:
    """``c`` as the clients get it: by name, in the dtypes of ``params``; zero in round 1."""
    variate = state.get(VARIATE, {})
    return {
        name: cast_like(variate[name], w) if variate else np.zeros_like(w)
        for name, w in params.items()
        if name in trainable
    }


def next_variate(
    mean_update: Float64s, state: State, *, step: float, share: float
) -> dict[str, Float64s]:
    """``c ← c + (S/N) (Δ̄/(K η_l) - c)``, the state's new entry.

    By option II a client's variate moves by ``cᵢ⁺ - cᵢ = Δᵢ/(K η_l) - c``, so that the mean of
    these follows from the mean update: clients send nothing more than FedAvg's do, and sums of
    replies serve as well as the replies. Karimireddy et al. 2020, arXiv:1910.06378, alg. 1.

    Args:
        mean_update: ``Δ̄``, the clients' mean in the weights of the step.
        state: what the last round left, ``{}`` in round 1.
        step: ``K η_l``, the number of local steps times their size; the same at every client.
        share: ``S/N``, the share of all clients that took part.
    """
    old = state.get(VARIATE, {})
    new = {}
    for name, update in mean_update.items():
        c = old[name] if old else np.zeros_like(update)
        new[name] = np.asarray(c + share * (update / step - c))
    return {VARIATE: new}


def common_step(metrics: Sequence[tuple[int, Mapping[str, Any]]]) -> float | None:
    """``K η_l`` as the clients report it; None if only some do, or one reports no such number.

    Then the server's variate stays as it was: one odd client must not end a run.

    Raises:
        ValueError: no client reports it, or they differ.
    """
    steps = {m.get(STEP): node for node, m in metrics}
    sound = [step for step in steps if isinstance(step, float) and 0 < step < math.inf]
    if sound and len(sound) < len(steps):
        logging.getLogger("flwr").warning(
            "Variate kept: some clients report %s %s.", STEP, list(steps)[:3]
        )
        return None
    if not sound:
        raise ValueError(
            f"Scaffold(metrics of node {next(iter(steps.values()))}): no {STEP}, so its "
            "ClientApp uses no control variates. Use fedexp.clients.client_app, or a strategy "
            "without them."
        )
    if len(steps) > 1:
        raise ValueError(
            f"Scaffold({STEP}={list(steps)[:2]}): must be the same at every client. Give all "
            "the same local-steps and learning-rate."
        )
    return float(sound[0])
