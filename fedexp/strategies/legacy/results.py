"""What Flower's older API hands to a strategy, read as the newer API has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Error, MetricRecord, RecordDict
from flwr.common import FitRes, Parameters, Scalar, ndarrays_to_parameters
from flwr.server.client_proxy import ClientProxy
from numpy.typing import NDArray

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.records import decoded, to_record

Result = tuple[ClientProxy, FitRes]
Failure = Result | BaseException


def distinct(failures: Sequence[Failure]) -> list[Failure]:
    """``failures`` once each: Flower's secure aggregation notes the error of a message twice."""
    causes: dict[int, Failure] = {}
    for failure in failures:
        args = failure.args if isinstance(failure, BaseException) else ()
        causes[id(args[0]) if args and isinstance(args[0], Error) else id(failure)] = failure
    return list(causes.values())


def decoded_arrays(parameters: Parameters) -> list[NDArray[Any]]:
    """As Flower's ``parameters_to_ndarrays``, which takes as much memory as a header claims."""
    return [decoded(str(i), data) for i, data in enumerate(parameters.tensors)]


def to_parameters(params: Arrays) -> Parameters:
    """Arrays by name as the older API sends them: in order, without their names."""
    return ndarrays_to_parameters([np.asarray(x) for x in params.values()])


def node_of(client: ClientProxy) -> Any:
    """Its id; the clients of ``start_server`` have a ``cid`` alone."""
    return getattr(client, "node_id", client.cid)


def as_reply(result: FitRes, names: Sequence[str], count_key: str) -> RecordDict:
    """``result`` as a reply of the newer API.

    Args:
        result: of one client.
        names: of the model's arrays, in order; empty where nobody knows them.
        count_key: of the metric that holds the number of examples.
    """
    metrics: dict[str, Any] = {
        key.replace("_", "-"): float(value)
        for key, value in (result.metrics or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    metrics[count_key] = np.asarray(result.num_examples).item()  # NumPy's counts are counts too
    arrays = decoded_arrays(result.parameters)
    names = names or [str(i) for i in range(len(arrays))]
    if len(names) != len(arrays):  # to be refused: who knows which are missing
        names = [f"array {i} of {len(arrays)}" for i in range(len(arrays))]
    record = to_record(dict(zip(names, arrays, strict=True)))
    return RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})


def with_mean(results: Sequence[Result], mean: Sequence[Any], sq_norm: float) -> list[Result]:
    """``results`` with the mean of the models as everyone's, and the squared norm as a metric."""
    parameters = ndarrays_to_parameters(list(mean))

    def metrics(result: FitRes) -> dict[str, Scalar]:
        own: Mapping[str, Scalar] = result.metrics or {}
        return {**own, keys.MEAN_SQ_NORM: sq_norm}

    return [
        (client, replace(result, parameters=parameters, metrics=metrics(result)))
        for client, result in results
    ]
