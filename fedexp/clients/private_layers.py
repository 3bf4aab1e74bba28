"""Layers that a client keeps: their values before its round, and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.records import from_record, records_of, to_record

_LAYERS, _RUN = keys.PRIVATE_LAYERS, "own-layers-run"


def kept_layers(config: Mapping[str, Any], context: Context) -> Arrays:
    """What the client kept of its layers in this run; ``{}`` if nothing."""
    run = records_of(context.state, MetricRecord).get(_RUN)
    if not run or run["id"] != _run(config):
        return {}
    return from_record(records_of(context.state, ArrayRecord)[_LAYERS])


def keep_layers(
    config: Mapping[str, Any], context: Context, names: Iterable[str], after: Arrays
) -> None:
    """Store the client's layers of these names for its next round."""
    context.state[_LAYERS] = to_record({name: np.array(after[name]) for name in names})
    context.state[_RUN] = MetricRecord({"id": _run(config)})


def _run(config: Mapping[str, Any]) -> float:
    return float(config.get(keys.RUN_ID, 0.0))
