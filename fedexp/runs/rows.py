"""What is written down of a round."""

from __future__ import annotations

import math
from typing import Any

from fedexp.rounds import Exchange, Round
from fedexp.runs.reading import MetricsRow

_SCORES = ("test-loss", "test-accuracy", "mean-test-loss", "mean-test-accuracy")
_METRICS = ("train-loss", *_SCORES, "server-step-size")


def row_of(round_: Round) -> MetricsRow:
    """The line of a round; a value that does not exist or is not finite is null.

    ``train-seconds`` are those of the busiest worker, ``move-seconds`` what its replies took
    besides, ``server-seconds`` the rest of the round. ``bytes-down`` and ``bytes-up`` are what the
    round moves over a network, whatever the engine.
    """
    measured = {**round_.train, **round_.evaluate, **round_.server}
    own: MetricsRow = {"round": round_.server_round, "failed": round_.failed}
    losses = {"test-loss", "mean-test-loss"} - measured.keys()  # nobody evaluated
    row: MetricsRow = own | {name: None for name in _METRICS if name not in losses}
    row |= {"num-clients": 0, "num-failures": 0}
    row |= {name: _finite(value) for name, value in measured.items()}
    return row | own | _costs(round_)  # whatever clients report


def client_rows(evaluation: Exchange, server_round: int, name_of: Any) -> list[MetricsRow]:
    """What each client reported of its evaluation; ``name_of(node)`` is its name."""
    rows = []
    for node, metrics in evaluation.answers:
        values = {k.removeprefix("eval-"): _finite(v) for k, v in metrics.items()}
        examples = values.pop("num-examples", None)
        own = {"round": server_round, "client": name_of(node), "examples": examples}
        rows.append(own | values)
    return rows


def _costs(round_: Round) -> MetricsRow:
    exchanges: list[Exchange] = [round_.training, round_.evaluation]
    waited = sum(x.waited for x in exchanges)
    worked = sum(x.worked or 0.0 for x in exchanges)
    knows = any(x.worked is not None for x in exchanges)
    worked = min(worked, waited) if knows else waited
    return {
        "round-seconds": round(round_.seconds, 4),
        "train-seconds": round(worked, 4),
        "move-seconds": round(waited - worked, 4) if knows else None,
        "server-seconds": round(max(0.0, round_.seconds - waited), 4),
        "bytes-down": sum(x.bytes_down for x in exchanges),
        "bytes-up": sum(x.bytes_up for x in exchanges),
    }


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None
