"""The named strategies for Flower's older API, ``flwr.server.strategy``.

Each holds its twin of ``fedexp.strategies`` and lets it do the arithmetic. SCAFFOLD has none: a
``NumPyClient`` has no way to receive the server's variate beside the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from logging import WARNING
from typing import Any, ClassVar

import numpy as np
from flwr.app import MetricRecord, RecordDict
from flwr.common import (
    EvaluateIns,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.logger import log
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedAvg as NewFedAvg

from fedexp.arrays import Arrays
from fedexp.records import to_record
from fedexp.strategies import adaptive_presets, fedopt, presets
from fedexp.strategies.privacy import check_untouched
from fedexp.strategies.replies import Replies

Results = list[tuple[ClientProxy, FitRes]]
Failures = list[tuple[ClientProxy, FitRes] | BaseException]

_FLOWERS = inspect.signature(FlowerFedAvg).parameters.keys()
_OTHERS = {*inspect.signature(NewFedAvg).parameters, "seed"}


class FedOpt(FlowerFedAvg):
    """Any server step in Flower's older API.

    Takes the arguments of ``flwr.server.strategy.FedAvg`` and, by keyword, those of
    ``fedexp.strategies.FedOpt`` but ``seed``: here Flower's ClientManager draws the clients.
    Settings for the clients go into the fit config with underscores, ``proximal_mu``. Metrics of
    a round are those of ``fit_metrics_aggregation_fn`` and of ``fedexp.strategies.FedOpt``.

    Args:
        names: of the arrays, in order, e.g. ``list(model.state_dict())``. Without them batch-norm
            statistics cannot be told from weights, and every floating-point array is moved.
        **kwargs: the others.

    Raises:
        ValueError: an argument is out of its range, or belongs to the other API.
    """

    twin: ClassVar[type[fedopt.FedOpt]] = fedopt.FedOpt

    def __init__(self, *, names: Sequence[str] | None = None, **kwargs: Any) -> None:
        if foreign := sorted((_OTHERS & kwargs.keys()) - _FLOWERS):
            raise ValueError(
                f"legacy.{type(self).__name__}({foreign[0]}={kwargs[foreign[0]]!r}): no such "
                "argument in the older API. Use fraction_fit, min_fit_clients and the like."
            )
        super().__init__(**{key: kwargs.pop(key) for key in _FLOWERS & kwargs.keys()})
        self.strategy = self.twin(**kwargs)
        self.names = None if names is None else list(names)
        self._released: Parameters | None = None

    def __repr__(self) -> str:
        return f"legacy.{type(self).__name__}({self.strategy.optimizer})"

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """As Flower's FedAvg."""
        self._check_untouched(parameters)
        return super().evaluate(server_round, parameters)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """FedAvg's instructions; remembers what is broadcast. Round 1 starts afresh."""
        if server_round == 1:
            self.strategy.state, self._released = {}, None
        self._check_untouched(parameters)
        self.strategy.begin(self._named(parameters))
        settings = {k.replace("-", "_"): v for k, v in self.strategy.client_config.items()}
        return [
            (client, FitIns(ins.parameters, {**ins.config, **settings}))
            for client, ins in super().configure_fit(server_round, parameters, client_manager)
        ]

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """As Flower's FedAvg."""
        self._check_untouched(parameters)
        return super().configure_evaluate(server_round, parameters, client_manager)

    def aggregate_fit(
        self, server_round: int, results: Results, failures: Failures
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Fold the results and take the server step.

        A result that cannot be used is logged with its client and left out.
        """
        if failures and not self.accept_failures:
            return None, {}
        bounds = self.strategy.bounds
        folded = Replies(self.strategy.params, self.strategy.reading(), bounds=bounds)
        decoded = self._decoded(results)
        folded.fold(decoded, drop_beyond=self.strategy.drop_beyond)
        if not folded.stats.count:
            log(WARNING, "Round %d: no usable result, the model is unchanged.", server_round)
            return None, {}
        params, metrics = self.strategy.advance(folded.with_loss(), folded.reports)
        self._released = ndarrays_to_parameters([np.asarray(x) for x in params.values()])
        if self.fit_metrics_aggregation_fn:
            used = {node for node, _ in folded.metrics}
            usable = [r for client, r in results if client.node_id in used]
            sizes = [r.num_examples for r in usable]
            sizes = [int(n) for n in bounds.bounded(sizes)] if bounds else sizes
            pairs = [(n, r.metrics) for n, r in zip(sizes, usable, strict=True)]
            metrics = {**self.fit_metrics_aggregation_fn(pairs), **metrics}
        lost = len(results) - folded.stats.count + len(failures)
        return self._released, {**metrics, "num-failures": lost}

    def _decoded(self, results: Results) -> Iterator[tuple[int, RecordDict]]:
        for client, result in results:
            try:
                content = self._content(result)
            except Exception as error:  # whatever bytes a client sends
                log(WARNING, "Result of node %d left out: %s", client.node_id, error)
            else:
                yield client.node_id, content

    def _named(self, parameters: Parameters) -> Arrays:
        arrays = parameters_to_ndarrays(parameters)
        names = self.names or [str(i) for i in range(len(arrays))]
        if len(names) != len(arrays):
            raise ValueError(
                f"legacy.{type(self).__name__}(names={names[:3]}...): {len(names)} names for "
                f"{len(arrays)} arrays. Use list(model.state_dict())."
            )
        return dict(zip(names, arrays, strict=True))

    def _content(self, result: FitRes) -> RecordDict:
        """``result`` as a reply of the newer API."""
        metrics: dict[str, Any] = {
            key.replace("_", "-"): value
            for key, value in result.metrics.items()
            if isinstance(value, int | float)
        }
        metrics[self.strategy.weighted_by_key] = result.num_examples
        arrays = parameters_to_ndarrays(result.parameters)
        names = list(self.strategy.params)
        if len(names) != len(arrays):  # to be refused with a reason
            names = [str(i) for i in range(len(arrays))]
        record = to_record(dict(zip(names, arrays, strict=True)))
        return RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})

    def _check_untouched(self, parameters: Parameters) -> None:
        if type(self).aggregate_fit is FedOpt.aggregate_fit:  # else it knows what it changes
            optimizer, robust = self.strategy.optimizer, self.strategy.bounds is not None
            check_untouched(optimizer, self._released, parameters, self._named, robust=robust)


class FedAvg(FedOpt):
    """``fedexp.strategies.FedAvg`` in the older API."""

    twin = presets.FedAvg


class FedAvgM(FedOpt):
    """``fedexp.strategies.FedAvgM`` in the older API."""

    twin = presets.FedAvgM


class FedAdagrad(FedOpt):
    """``fedexp.strategies.FedAdagrad`` in the older API."""

    twin = presets.FedAdagrad


class FedAdam(FedOpt):
    """``fedexp.strategies.FedAdam`` in the older API."""

    twin = presets.FedAdam


class FedYogi(FedOpt):
    """``fedexp.strategies.FedYogi`` in the older API."""

    twin = presets.FedYogi


class FedProx(FedOpt):
    """``fedexp.strategies.FedProx`` in the older API."""

    twin = presets.FedProx


class FedExP(FedOpt):
    """``fedexp.strategies.FedExP`` in the older API."""

    twin = adaptive_presets.FedExP


class FedExPM(FedOpt):
    """``fedexp.strategies.FedExPM`` in the older API."""

    twin = adaptive_presets.FedExPM


class NesterovExP(FedOpt):
    """``fedexp.strategies.NesterovExP`` in the older API."""

    twin = adaptive_presets.NesterovExP


class FedProxExP(FedOpt):
    """``fedexp.strategies.FedProxExP`` in the older API."""

    twin = adaptive_presets.FedProxExP


class FedExProx(FedOpt):
    """``fedexp.strategies.FedExProx`` in the older API."""

    twin = adaptive_presets.FedExProx


class FedHyper(FedOpt):
    """``fedexp.strategies.FedHyper`` in the older API."""

    twin = adaptive_presets.FedHyper
