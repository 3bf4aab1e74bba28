"""The mean of the clients' metrics of a round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from flwr.common.logger import log

from fedexp import keys

Row = Mapping[str, Any]
"""The metrics of one client."""


def weighted_means(
    rows: Sequence[Row], weighted_by: str, nodes: Sequence[int] | None = None
) -> MetricRecord:
    """The weighted mean of every metric, over the clients that report it: ``Σ pᵢxᵢ / Σ pᵢ``.

    A value that is not finite does not count, and neither does a list whose length differs from
    that of most clients, so that no client can spoil the mean of the others. If all clients report
    the same metrics, these are the means of Flower's ``aggregate_metricrecords``.

    Args:
        rows: the metrics of each client.
        weighted_by: key of ``pᵢ``, which is not among the means.
        nodes: ids of the clients; the log names those whose value does not count.

    Example:
        ``(1 · 4 + 3 · 8)/(1 + 3) = 7``; the third client has no usable loss.

        >>> from fedexp.strategies.client_metrics import weighted_means
        >>> rows = [{"n": 1, "loss": 4.0}, {"n": 3, "loss": 8.0}, {"n": 9, "loss": float("nan")}]
        >>> dict(weighted_means(rows, weighted_by="n"))
        {'loss': 7.0}
    """
    names = dict.fromkeys(name for row in rows for name in row if name != weighted_by)
    means = {}
    for name in names:
        try:  # the usual case, all clients at once: no loop over clients
            used, values = rows, np.array([row[name] for row in rows], np.float64)
        except (KeyError, ValueError, TypeError, OverflowError):
            used, values = [], np.array(np.nan)
        if not np.isfinite(values).all():
            used = _sound(name, rows, nodes or [0] * len(rows))
            values = np.array([row[name] for row in used], np.float64)
        if used:
            weights = np.array([row[weighted_by] for row in used], np.float64)
            means[name] = (weights / weights.sum() @ values).tolist()
    return MetricRecord(means)


def _sound(name: str, rows: Sequence[Row], nodes: Sequence[int]) -> list[Row]:
    """The rows whose value for ``name`` counts."""
    told = [(node, row) for node, row in zip(nodes, rows, strict=True) if name in row]
    lengths = Counter(_length(row[name]) for _, row in told if _is_finite(row[name]))
    most = max(lengths, key=lambda length: lengths[length], default=None)
    good = [(_is_finite(row[name]) and _length(row[name]) == most) for _, row in told]
    for (node, row), is_good in zip(told, good, strict=True):
        if not is_good:
            log(WARNING, "Metric %r of node %s dropped: %.60s.", name, node, row[name])
    return [row for (_, row), is_good in zip(told, good, strict=True) if is_good]


def largest_spent(rows: Sequence[Row]) -> dict[str, float]:
    """The largest ``epsilon-spent`` of the clients that train privately; ``{}`` if none does.

    A mean would promise each of them what only some have.

    Example:
        >>> from fedexp.strategies.client_metrics import largest_spent
        >>> largest_spent([{"epsilon-spent": 0.5}, {"epsilon-spent": 2.0}, {}])
        {'largest-epsilon-spent': 2.0}
    """
    told = [row[keys.EPSILON_SPENT] for row in rows if keys.EPSILON_SPENT in row]
    found = [float(value) for value in told if is_number(value)]
    return {keys.LARGEST_EPSILON_SPENT: max(found)} if found else {}


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer that is too long for a float
        return False


def _is_finite(value: Any) -> bool:
    return all(map(is_number, value)) if isinstance(value, list) else is_number(value)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None
