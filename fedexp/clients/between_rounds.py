"""What a local optimizer starts a round from: one policy for all, ``hyper-between-rounds``.

``fresh`` makes it anew. ``carry`` gives the client back what it kept: the learning rate of an
optimizer that tunes it, the whole state (moments, counters) of any other. ``average`` starts tuned
rates at the server's mean; no server averages moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord

from fedexp import keys
from fedexp.clients.loop import Optimizer
from fedexp.clients.settings import ALSO, ClientSettings
from fedexp.records import from_record, records_of, to_record

Kept = Literal["nothing", "rate", "state"]
"""What an optimizer has that is worth keeping: nothing, its learning rate, or all of its state."""

_RATE, _STATE, _RUN = "tuned-rate", "optimizer-state", "optimizer-run"


def kept_of(make: Any) -> Kept:
    """What is worth keeping of the optimizers that ``make`` makes."""
    found: Kept = getattr(make, "keeps", None) or (
        "rate" if getattr(make, "adapts_lr", False) else "state"
    )
    return found


def starting_settings(config: Mapping[str, Any], context: Context) -> ClientSettings:
    """The settings of a client's round, at the learning rate that it starts from.

    A carried or averaged rate takes the place of ``learning-rate`` and of its decay. Of a tower,
    only the rate of the weights is kept; the levels above start afresh.
    """
    settings = ClientSettings.of(config)
    policy = config.get(keys.BETWEEN_ROUNDS, ALSO[keys.BETWEEN_ROUNDS])
    if policy == "average" and keys.MEAN_LEARNING_RATE in config:
        return replace(settings, lr=float(config[keys.MEAN_LEARNING_RATE]))
    kept = records_of(context.state, MetricRecord).get(_RATE)
    if policy == "carry" and kept and kept["run"] == _run(config):
        return replace(settings, lr=float(kept[keys.LEARNING_RATE]))  # type: ignore[arg-type]
    return settings


def save_rate(config: Mapping[str, Any], context: Context, rate: float) -> None:
    """Store a client's last learning rate for its next round, if rates are carried."""
    if config.get(keys.BETWEEN_ROUNDS) == "carry":
        context.state[_RATE] = MetricRecord({keys.LEARNING_RATE: rate, "run": _run(config)})


def save_state(config: Mapping[str, Any], context: Context, optimizer: Optimizer) -> None:
    """Store the state of a client's optimizer for its next round, if states are carried."""
    if config.get(keys.BETWEEN_ROUNDS) != "carry" or not hasattr(optimizer, "state_dict"):
        return
    buffer = BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    # As an array, since checkpoints and workers take those of any size.
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    context.state[_STATE] = to_record({"state": whole})
    context.state[_RUN] = MetricRecord({"run": _run(config)})


def restore_state(config: Mapping[str, Any], context: Context, optimizer: Optimizer) -> None:
    """Give ``optimizer`` the state that the last round left, at its own learning rate.

    Nothing happens in a client's first round of a run, nor where states are not carried.
    """
    arrays = records_of(context.state, ArrayRecord).get(_STATE)
    kept = records_of(context.state, MetricRecord).get(_RUN)
    if config.get(keys.BETWEEN_ROUNDS) != "carry" or not arrays or not kept:
        return
    if kept["run"] != _run(config) or not hasattr(optimizer, "load_state_dict"):
        return
    rates = [group.get("lr") for group in optimizer.param_groups]
    whole = BytesIO(from_record(arrays)["state"].tobytes())
    optimizer.load_state_dict(torch.load(whole, weights_only=True))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate is not None:  # this round's, of a schedule
            group["lr"] = rate


def _run(config: Mapping[str, Any]) -> float:
    return float(config.get(keys.RUN_ID, 0.0))
