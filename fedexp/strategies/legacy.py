"""The named strategies for Flower's older API, ``flwr.server.strategy``.

Each holds its twin of ``fedexp.strategies`` and lets it do the arithmetic. SCAFFOLD, FedDyn
and FedNova have none: a ``NumPyClient`` has no way to receive the server's control variate beside
the model, keeps nothing, and does not report its local work.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from logging import WARNING
from typing import Any, ClassVar

import numpy as np
from flwr.app import Error, MetricRecord, RecordDict
from flwr.common import (
    EvaluateIns,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
)
from flwr.common.logger import log
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedAvg as NewFedAvg
from numpy.typing import NDArray

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.records import decoded, to_record
from fedexp.strategies import adaptive_presets, fedopt, optimization_presets, presets
from fedexp.strategies.extensions import check_extensions
from fedexp.strategies.privacy import check_mean_is_enough, is_one_for_all
from fedexp.strategies.secure import SecureNorms, secure_norms

Results = list[tuple[ClientProxy, FitRes]]
Failures = list[tuple[ClientProxy, FitRes] | BaseException]

_FLOWERS = inspect.signature(FlowerFedAvg).parameters.keys()
_OTHERS = {*inspect.signature(NewFedAvg).parameters, "seed", "private_layers"}


class FedOpt(FlowerFedAvg):
    """Any server step in Flower's older API.

    Takes the arguments of ``flwr.server.strategy.FedAvg`` and, by keyword, those of
    ``fedexp.strategies.FedOpt`` but ``seed`` and ``private_layers``: here Flower's
    ClientManager draws the clients, and arrays have no names.
    Settings for the clients go into the fit config with underscores, ``proximal_mu``. Metrics of
    a round are those of ``fit_metrics_aggregation_fn`` and of ``fedexp.strategies.FedOpt``.

    Args:
        names: of the arrays, in order, e.g. ``list(model.state_dict())``. Without them batch-norm
            statistics cannot be told from weights, and every floating-point array is moved.
        secure: take the clients' squared norms from under the mask of Flower's SecAgg+, see
            ``SecureNorms``; ``clients.secure.squared_norm_mod`` puts them there. Then a step that
            depends on them is taken; without secure aggregation no step is.
        **kwargs: the others.

    Raises:
        ValueError: an argument is out of its range, or belongs to the other API.
    """

    twin: ClassVar[type[fedopt.FedOpt]] = fedopt.FedOpt
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Of arguments that default to something else in the newer API."""

    def __init__(
        self,
        *,
        names: Sequence[str] | None = None,
        secure: bool | SecureNorms = False,
        **kwargs: Any,
    ) -> None:
        if foreign := sorted((_OTHERS & kwargs.keys()) - _FLOWERS):
            raise ValueError(
                f"legacy.{type(self).__name__}({foreign[0]}={kwargs[foreign[0]]!r}): no such "
                "argument in the older API. Use fraction_fit, min_fit_clients and the like."
            )
        super().__init__(**{key: kwargs.pop(key) for key in _FLOWERS & kwargs.keys()})
        if added := secure_norms(secure):
            kwargs["extensions"] = [*check_extensions(kwargs.get("extensions")), *added]
        self.strategy = self.twin(**{**self.defaults, **kwargs})
        self.names = None if names is None else list(names)
        self._first = self.initial_parameters  # for a round that configure_fit did not begin
        self._waits_for = 0  # the number of a round that has begun and not ended

    def __repr__(self) -> str:
        return f"legacy.{type(self).__name__}({self.strategy.optimizer})"

    @property
    def current_weights(self) -> list[NDArray[Any]] | None:
        """The model that a round starts from, None as long as it is not known."""
        self._begin_with_first()
        return list(self.strategy.round.params.values()) if self.strategy.round else None

    @current_weights.setter
    def current_weights(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take ``arrays`` as the model that the next round starts from."""
        self.strategy.begin(self._named(ndarrays_to_parameters(list(arrays))))

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """As Flower's FedAvg."""
        self.strategy.check_untouched(parameters, self._named)
        return super().evaluate(server_round, parameters)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """FedAvg's instructions; remembers what is broadcast. Round 1 starts afresh."""
        if server_round == 1:
            self.strategy.restart()
        elif self._waits_for:  # Flower asks for no step where too few clients come through
            log(WARNING, "Round %d took no step, the model is unchanged.", self._waits_for)
        self._waits_for = server_round
        self.strategy.check_untouched(parameters, self._named)
        self._first = None
        self.strategy.begin(self._named(parameters), server_round)
        asked = super().configure_fit(server_round, parameters, client_manager)
        nodes = [_node(client) for client, _ in asked]
        sent = self.strategy.ask(nodes, client_manager.num_available())
        if sent.arrays:
            raise ValueError(
                f"legacy.{type(self).__name__}: clients of the older API get the model alone, and "
                f"no {min(sent.arrays)} beside it. Use fedexp.strategies and a ClientApp."
            )
        settings = {**self.strategy.client_config, **sent.settings}
        own: dict[str, Any] = {key.replace("-", "_"): value for key, value in settings.items()}
        return [(client, FitIns(ins.parameters, {**ins.config, **own})) for client, ins in asked]

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """As Flower's FedAvg."""
        self.strategy.check_untouched(parameters, self._named)
        return super().configure_evaluate(server_round, parameters, client_manager)

    def aggregate_fit(
        self, server_round: int, results: Results, failures: Failures
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Add up the results and take the server step.

        A result that cannot be used is logged with its client and dropped.

        Raises:
            ValueError: the step needs more than a mean of the results, which is all there is.
            AggregationError: the step needs the model that was sent, which is not known.
        """
        self._waits_for = 0
        failures = _distinct(failures)
        if not results or (failures and not self.accept_failures):
            return None, {}
        ours = self.strategy
        self._begin_with_first()
        opened = self._opened(results, failures)
        usable = ours.replies()
        usable.aggregate(self._decoded(opened), ours.extensions.drop)
        step = ours.finish(server_round, usable)
        if step is None:
            log(WARNING, "Round %d: no usable result, the model is unchanged.", server_round)
            return None, {}
        params, own = step
        ours.released = released = ndarrays_to_parameters([np.asarray(x) for x in params.values()])
        metrics: dict[str, Scalar] = {**own}
        if self.fit_metrics_aggregation_fn:
            used = {node for node, _ in usable.metrics}
            sound = [result for client, result in results if _node(client) in used]
            sizes = [result.num_examples for result in sound]
            if ours.bounds:
                sizes = [int(n) for n in ours.bounds.bounded(sizes)]
            pairs = [(n, result.metrics) for n, result in zip(sizes, sound, strict=True)]
            metrics = {**(self.fit_metrics_aggregation_fn(pairs) or {}), **metrics}
        lost = len(results) - usable.stats.count + len(failures)
        return released, {**metrics, keys.NUM_FAILURES: lost}

    def _opened(self, results: Results, failures: Failures) -> Results:
        """``results`` without what clients under secure aggregation add; that becomes a metric.

        Raises:
            ValueError: the step needs more than a mean of the results, which is all there is; or
                ``secure`` was asked for, and the results are not that mean.
        """
        ours, owner = self.strategy, f"legacy.{type(self).__name__}"
        norms = ours.extensions.find(SecureNorms)
        if is_one_for_all([result.parameters for _, result in results]):
            check_mean_is_enough(
                owner,
                ours.optimizer.step_size,
                ours.extensions,
                weighted=ours.weighted,
                has_norms=norms is not None,
            )
        elif norms:
            raise ValueError(
                f"{owner}(secure={norms}): the results are those of single clients, so nothing is "
                "hidden. Use DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(...)), or drop secure."
            )
        if not norms:
            return results
        for failure in failures:
            log(WARNING, "A client did not come through the secure aggregation: %s", failure)
        model = ours.round.params if ours.round else {}
        mean, sq_norm = norms.opened(owner, _arrays(results[0][1].parameters), model)
        parameters = ndarrays_to_parameters(mean)
        return [
            (
                client,
                replace(
                    result,
                    parameters=parameters,
                    metrics={**(result.metrics or {}), keys.MEAN_SQ_NORM: sq_norm},
                ),
            )
            for client, result in results
        ]

    def _begin_with_first(self) -> None:
        if self._first is not None:
            self.strategy.begin(self._named(self._first))
            self._first = None

    def _decoded(self, results: Results) -> Iterator[tuple[Any, RecordDict]]:
        for client, result in results:
            try:
                content = self._content(result)
            except Exception as error:  # whatever bytes a client sends
                log(WARNING, "Result of node %s dropped: %s", _node(client), error)
            else:
                yield _node(client), content

    def _named(self, parameters: Parameters) -> Arrays:
        arrays = _arrays(parameters)
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
            key.replace("_", "-"): float(value)
            for key, value in (result.metrics or {}).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        number = np.asarray(result.num_examples).item()  # a count of NumPy's is one as well
        metrics[self.strategy.weighted_by_key] = number
        arrays = _arrays(result.parameters)
        known = self.strategy.round.params if self.strategy.round else {}
        names = list(known) or self.names or [str(i) for i in range(len(arrays))]
        if len(names) != len(arrays):  # to be refused: who knows which are missing
            names = [f"array {i} of {len(arrays)}" for i in range(len(arrays))]
        record = to_record(dict(zip(names, arrays, strict=True)))
        return RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})


def _distinct(failures: Failures) -> Failures:
    """``failures`` once each: Flower's secure aggregation notes the error of a message twice."""
    causes: dict[int, tuple[ClientProxy, FitRes] | BaseException] = {}
    for failure in failures:
        args = failure.args if isinstance(failure, BaseException) else ()
        causes[id(args[0]) if args and isinstance(args[0], Error) else id(failure)] = failure
    return list(causes.values())


def _arrays(parameters: Parameters) -> list[NDArray[Any]]:
    """As Flower's ``parameters_to_ndarrays``, which takes as much memory as a header claims."""
    return [decoded(str(i), data) for i, data in enumerate(parameters.tensors)]


def _node(client: ClientProxy) -> Any:
    """Its id; the clients of ``start_server`` have a ``cid`` alone."""
    return getattr(client, "node_id", client.cid)


class _OfTwin:
    """An attribute of the twin; arrays by name are a list here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        if strategy is None:
            return self
        value = getattr(strategy.strategy, self.name)
        return list(value.values()) if isinstance(value, dict) else value

    def __set__(self, strategy: Any, value: Any) -> None:
        setattr(strategy.strategy, self.name, value)


class FedAvg(FedOpt):
    """``fedexp.strategies.FedAvg`` in the older API."""

    twin = presets.FedAvg
    server_learning_rate = _OfTwin()


class FedAvgM(FedOpt):
    """``fedexp.strategies.FedAvgM`` in the older API."""

    twin = presets.FedAvgM
    server_learning_rate, server_momentum = _OfTwin(), _OfTwin()
    server_opt, momentum_vector = _OfTwin(), _OfTwin()


_ADAPTIVE = {"tau": 1e-9, "flower_compatible": True}


class FedAdagrad(FedOpt):
    """``fedexp.strategies.FedAdagrad`` in the older API, by default with Flower's numbers.

    ``flower_compatible=False`` gives those of the paper.
    """

    twin = presets.FedAdagrad
    defaults = _ADAPTIVE
    eta, eta_l, beta_1, beta_2, tau = (_OfTwin() for _ in range(5))
    m_t, v_t = _OfTwin(), _OfTwin()


class FedAdam(FedOpt):
    """``fedexp.strategies.FedAdam`` in the older API, by default with Flower's numbers.

    ``flower_compatible=False`` gives those of the paper.
    """

    twin = presets.FedAdam
    defaults = _ADAPTIVE
    eta, eta_l, beta_1, beta_2, tau = (_OfTwin() for _ in range(5))
    m_t, v_t = _OfTwin(), _OfTwin()


class FedYogi(FedOpt):
    """``fedexp.strategies.FedYogi`` in the older API, by default with Flower's numbers.

    ``flower_compatible=False`` gives those of the paper.
    """

    twin = presets.FedYogi
    defaults: ClassVar[Mapping[str, Any]] = {"flower_compatible": True}
    eta, eta_l, beta_1, beta_2, tau = (_OfTwin() for _ in range(5))
    m_t, v_t = _OfTwin(), _OfTwin()


class FedProx(FedOpt):
    """``fedexp.strategies.FedProx`` in the older API."""

    twin = presets.FedProx
    proximal_mu = _OfTwin()


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


class FedBB(FedOpt):
    """``fedexp.strategies.FedBB`` in the older API."""

    twin = optimization_presets.FedBB


class FedAnderson(FedOpt):
    """``fedexp.strategies.FedAnderson`` in the older API."""

    twin = optimization_presets.FedAnderson


class FedDoG(FedOpt):
    """``fedexp.strategies.FedDoG`` in the older API."""

    twin = optimization_presets.FedDoG


class FedDoWG(FedOpt):
    """``fedexp.strategies.FedDoWG`` in the older API."""

    twin = optimization_presets.FedDoWG


class FedScheduleFree(FedOpt):
    """``fedexp.strategies.FedScheduleFree`` in the older API."""

    twin = optimization_presets.FedScheduleFree
