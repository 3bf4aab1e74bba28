"""The clients' metrics of a round as one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import MetricRecord


def weighted_means(rows: Sequence[Mapping[str, Any]], weighted_by: str) -> MetricRecord:
    """The weighted mean of every metric, over the clients that report it: ``Σ pᵢxᵢ / Σ pᵢ``.

    A value that is not finite, or that has another length than most clients' lists, does not
    count; no client decides for the others. With the same metrics at all clients these are the
    means of Flower's ``aggregate_metricrecords``.

    Args:
        rows: the metrics of each client.
        weighted_by: key of ``pᵢ``; not among the means.
    """
    names = dict.fromkeys(name for row in rows for name in row if name != weighted_by)
    means = {name: _mean(rows, name, weighted_by) for name in names}
    return MetricRecord({name: mean for name, mean in means.items() if mean is not None})


def _mean(rows: Sequence[Mapping[str, Any]], name: str, weighted_by: str) -> Any:
    found = [(row[name], row[weighted_by]) for row in rows if name in row and _sound(row[name])]
    if not found:
        return None
    (most, _), *_ = Counter(_length(value) for value, _ in found).most_common(1)
    values, weights = zip(*(pair for pair in found if _length(pair[0]) == most), strict=True)
    shares = np.array(weights, np.float64)
    return (shares / shares.sum() @ np.array(values, np.float64)).tolist()


def _sound(value: Any) -> bool:
    """Whether all numbers are finite, as float64."""
    try:
        return all(map(math.isfinite, value if isinstance(value, list) else [value]))
    except OverflowError:  # an integer that is too long
        return False


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None
