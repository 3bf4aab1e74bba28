"""Any server step as a strategy of Flower's older API, ``flwr.server.strategy``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from logging import WARNING
from typing import Any, ClassVar

from flwr.app import RecordDict
from flwr.common import EvaluateIns, FitIns, Parameters, Scalar, ndarrays_to_parameters
from flwr.common.logger import log
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedAvg as NewFedAvg
from numpy.typing import NDArray

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.strategies import fedopt
from fedexp.strategies.extensions import check_extensions
from fedexp.strategies.legacy.results import (
    Failure,
    Result,
    as_reply,
    decoded_arrays,
    distinct,
    node_of,
    to_parameters,
    with_mean,
)
from fedexp.strategies.privacy import check_mean_is_enough, is_one_for_all
from fedexp.strategies.secure import SecureNorms, secure_norms

Results = list[Result]
Failures = list[Failure]

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

    Example:
        >>> from fedexp.strategies import Adam, Constant, ServerOptimizer, legacy
        >>> rule = ServerOptimizer(Adam(), Constant(0.5))
        >>> strategy = legacy.FedOpt(optimizer=rule, fraction_fit=0.1)
        >>> strategy.fraction_fit, strategy.strategy.optimizer.step_size
        (0.1, Constant(value=0.5))
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
        nodes = [node_of(client) for client, _ in asked]
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
        failures = distinct(failures)
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
        ours.released = released = to_parameters(params)
        metrics: dict[str, Scalar] = {**own}
        if self.fit_metrics_aggregation_fn:
            used = {node for node, _ in usable.metrics}
            sound = [result for client, result in results if node_of(client) in used]
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
        mean, sq_norm = norms.opened(owner, decoded_arrays(results[0][1].parameters), model)
        return with_mean(results, mean, sq_norm)

    def _begin_with_first(self) -> None:
        if self._first is not None:
            self.strategy.begin(self._named(self._first))
            self._first = None

    def _decoded(self, results: Results) -> Iterator[tuple[Any, RecordDict]]:
        for client, result in results:
            try:
                content = as_reply(result, self._known_names(), self.strategy.weighted_by_key)
            except Exception as error:  # whatever bytes a client sends
                log(WARNING, "Result of node %s dropped: %s", node_of(client), error)
            else:
                yield node_of(client), content

    def _known_names(self) -> list[str]:
        known = self.strategy.round.params if self.strategy.round else {}
        return list(known) or list(self.names or ())

    def _named(self, parameters: Parameters) -> Arrays:
        arrays = decoded_arrays(parameters)
        names = self.names or [str(i) for i in range(len(arrays))]
        if len(names) != len(arrays):
            raise ValueError(
                f"legacy.{type(self).__name__}(names={names[:3]}...): {len(names)} names for "
                f"{len(arrays)} arrays. Use list(model.state_dict())."
            )
        return dict(zip(names, arrays, strict=True))
