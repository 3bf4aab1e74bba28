"""What is written down of a round whose clients are simulated devices, or fail to order."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedexp.rounds import Round
from fedexp.simulation.conditions import Conditions
from fedexp.simulation.grid import FIRST_NODE_ID


def simulated_row(
    conditions: Conditions | None, round_: Round, *, timed: bool = True
) -> dict[str, Any]:
    """The simulated seconds of a round, and how many clients had a fault of each ordered kind.

    Args:
        conditions: of the clients; None if they are alike and never fail.
        round_: that has ended.
        timed: whether simulated seconds are known.

    Example:
        >>> from fedexp.runs.simulated import simulated_row
        >>> simulated_row(None, None)  # clients that are alike and never fail
        {}
    """
    if conditions is None:
        return {}
    asked = [node - FIRST_NODE_ID for node in round_.training.asked]
    counts = Counter(conditions.fault(round_.server_round, client) for client in asked)
    faults = {f"faults-{kind}": counts[kind] for kind in conditions.faults.ordered()}
    if not timed:
        return faults
    num_bytes = round_.training.bytes_down // max(1, len(asked))
    seconds = conditions.round_seconds(round_.server_round, asked, num_bytes)
    return {"simulated-seconds": round(seconds, 4), **faults}
