"""What a mean over clients hides: the worst clients, and how much the clients differ."""

from __future__ import annotations

import numpy as np
from flwr.app import MetricRecord, RecordDict

from fedexp.records import records_of
from fedexp.strategies.client_metrics import is_number, weighted_means


def per_client(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """The weighted means, and for each accuracy ``a`` its distribution over the clients.

    ``a-worst-tenth`` is the mean of the lowest tenth of the clients (at least one), ``a-std`` the
    standard deviation; both count each client once. Use it as ``evaluate_metrics_aggr_fn``.

    Args:
        records: one MetricRecord per client.
        weighted_by_key: key of the weight, Flower's ``num-examples``.

    Example:
        >>> from flwr.app import MetricRecord, RecordDict
        >>> from fedexp.strategies.per_client import per_client
        >>> clients = [{"num-examples": 1, "accuracy": 0.5}, {"num-examples": 3, "accuracy": 1.0}]
        >>> records = [RecordDict({"metrics": MetricRecord(client)}) for client in clients]
        >>> dict(per_client(records, "num-examples"))
        {'accuracy': 0.875, 'accuracy-worst-tenth': 0.5, 'accuracy-std': 0.25}
    """
    metrics = [next(iter(records_of(record, MetricRecord).values())) for record in records]
    result = weighted_means(metrics, weighted_by_key)
    for key in [key for key in result if key.endswith("accuracy") and is_number(result[key])]:
        values = np.sort([m[key] for m in metrics if is_number(m.get(key))])
        # -(-n // 10) is n/10 rounded up.
        result[f"{key}-worst-tenth"] = float(values[: -(-len(values) // 10)].mean())
        result[f"{key}-std"] = float(values.std())
    return result
