"""Whether a run did what it was asked to do; if not, what went wrong, in a line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

from fedexp.strategies.attendance import merged

RoundRows = Sequence[Mapping[str, Any]]
"""Of a round: ``failed``, ``num-failures``, and ``failures``, nodes by reason, if there are any."""

_MOST_REASONS = 3


def failed_in_a_row(rows: RoundRows) -> int:
    """The number of failed rounds at the end."""
    return len(list(takewhile(lambda row: row["failed"], reversed(rows))))


def problem(rows: RoundRows, missing: Collection[int], num_rounds: int) -> str | None:
    """What went wrong; None if all clients that were asked contributed and the model has a score.

    Args:
        rows: of all rounds.
        missing: nodes that were asked and have never contributed.
        num_rounds: how many rounds were wanted.
    """
    last = failed_in_a_row(rows)
    if last == len(rows):
        return f"no round of {last} succeeded: {_why(rows)}"
    if len(rows) < num_rounds:
        return f"ended in round {len(rows)}, after {last} failed in a row: {_why(rows[-last:])}"
    if missing:
        return f"{_clients(missing)} never contributed: {_why(rows, missing)}"
    if rows[-1].get("test-loss", 0) is None:
        return "the test loss of the last model is not finite: use a smaller learning rate or step."
    return None


def of_run(rows: RoundRows, missing: Collection[int], num_rounds: int) -> dict[str, Any]:
    """The part of a summary that tells of failures."""
    return {
        "failed-rounds": sum(row["failed"] for row in rows),
        "num-failures": sum(row["num-failures"] for row in rows),
        "missing-nodes": sorted(missing),
        "problem": problem(rows, missing, num_rounds),
    }


def problems(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The problems of a run's strategies, one line for those that have the same."""
    found: dict[str, list[str]] = {}
    for key, summary in summaries.items():
        if text := summary["problem"]:
            found.setdefault(text, []).append(key)
    return [f"{', '.join(keys)}: {text}" for text, keys in found.items()]


def _why(rows: RoundRows, only: Collection[int] | None = None) -> str:
    reasons = {
        reason: chosen
        for reason, nodes in merged(row.get("failures", {}) for row in rows).items()
        if (chosen := [n for n in nodes if only is None or n in only])
    }
    if not reasons:
        return "no reply in time."
    shown = [f"{_clients(nodes)}: {reason.rstrip('.')}" for reason, nodes in reasons.items()]
    return "; ".join(shown[:_MOST_REASONS]) + "."


def _clients(nodes: Collection[int]) -> str:
    return f"{len(nodes)} clients" if len(nodes) > 1 else f"client at node {next(iter(nodes))}"
