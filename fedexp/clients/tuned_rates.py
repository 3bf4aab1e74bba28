"""What becomes of a tuned learning rate between the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Context, MetricRecord

from fedexp.clients.control import RUN
from fedexp.clients.training import LocalTraining
from fedexp.records import records_of

BETWEEN = "hyper-between-rounds"
"""Setting: ``fresh``, ``carry`` (kept in ``Context.state``) or ``average`` (the server's mean)."""

MEAN = "mean-learning-rate"
"""Setting by which the server sends back the mean of the rates that clients reported."""

_KEPT = "tuned-rate"


def started(config: Mapping[str, Any], context: Context) -> LocalTraining:
    """The settings of a client's round, at the learning rate that it starts from.

    A carried or averaged rate takes the place of ``learning-rate`` and of its decay. Of a tower,
    only the rate of the weights goes on; the levels above start afresh.
    """
    settings = LocalTraining.of(config)
    policy = config.get(BETWEEN, "fresh")
    if policy == "average" and MEAN in config:
        return replace(settings, lr=float(config[MEAN]))
    kept = records_of(context.state, MetricRecord).get(_KEPT)
    if policy == "carry" and kept and kept["run"] == _run(config):
        return replace(settings, lr=float(kept["learning-rate"]))  # type: ignore[arg-type]
    return settings


def keep(config: Mapping[str, Any], context: Context, rate: float) -> None:
    """Store a client's last learning rate for its next round, if rates are carried."""
    if config.get(BETWEEN) == "carry":
        context.state[_KEPT] = MetricRecord({"learning-rate": rate, "run": _run(config)})


def _run(config: Mapping[str, Any]) -> float:
    return float(config.get(RUN, 0.0))
