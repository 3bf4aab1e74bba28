"""Clients, their data and the model of a run: from configuration keys, from objects, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.clientapp import ClientApp
from torch import nn

from fedexp import factories
from fedexp.arrays import Arrays
from fedexp.choices import client_config, optimizer_key, schedule_of
from fedexp.clients import (
    ClientSettings,
    Examples,
    client_app,
    default_loss,
    evaluate,
    module_arrays,
)
from fedexp.clients.losses import Loss
from fedexp.clients.metrics import Metrics
from fedexp.clients.named import as_optimizer, named_optimizer
from fedexp.clients.schedules import Schedule
from fedexp.clients.trial import try_model
from fedexp.config import Config
from fedexp.datasets import Dataset, Partition
from fedexp.datasets.partition import names_of
from fedexp.files import fitted
from fedexp.models import build, suited
from fedexp.records import from_record
from fedexp.runs.run import Run, Start, evaluation_on, test_evaluation
from fedexp.simulation.conditions import Conditions
from fedexp.simulation.flower.client_apps import is_of_client_fn
from fedexp.strategies.evaluation import EvaluateFn


@dataclass(frozen=True, eq=False)
class Own:
    """Objects in place of configuration keys; None where the key decides.

    Attributes:
        model: a module, or what makes one: a class, or a function of nothing or of
            ``(input_shape, num_classes)``.
        data: the dataset.
        optimizer: of the clients, see ``client_app``.
        scheduler: of their learning rate over the rounds.
        loss: ``(outputs, targets) -> scalar``.
        metrics: name to ``(outputs, targets) -> number``.
        client_app: in place of all of the above, at the clients.
        num_clients: of ``client_app``.
        arrays: to start from; with ``client_app`` the model may be unknown.
        evaluate: ``(server_round, arrays) -> metrics`` of the server's evaluation.
    """

    model: Any = None
    data: Dataset | None = None
    optimizer: Any = None
    scheduler: Any = None
    loss: Loss | None = None
    metrics: Mapping[str, Any] | None = None
    client_app: ClientApp | None = None
    num_clients: int = 0
    arrays: Arrays | None = None
    evaluate: EvaluateFn | None = None

    def __post_init__(self) -> None:
        for name, is_fit, example in _KINDS:
            value = getattr(self, name)
            if value is not None and not is_fit(value):
                raise ValueError(f"{name}={type(value).__name__}: must be {example}.")
        if is_of_client_fn(self.client_app):
            raise ValueError(
                "client_app: was made of a client_fn, Flower's older API. Register functions of "
                "(message, context) with @app.train() and @app.evaluate()."
            )

    def names(self) -> dict[str, str]:
        """What each object that is there is called, for a folder that cannot hold it."""
        given = {x.name: getattr(self, x.name) for x in fields(self)}
        given |= {"num_clients": self.num_clients or None}
        return {name: _name(value) for name, value in given.items() if value is not None}


_KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("model", callable, "a name, a module, or a class or function of one"),
    ("loss", callable, "a function (outputs, targets) -> scalar"),
    ("evaluate", callable, "a function (server_round, arrays) -> metrics"),
    ("metrics", lambda x: isinstance(x, Mapping), "functions by name, such as {'f1': f1}"),
    ("client_app", lambda x: isinstance(x, ClientApp), "a ClientApp of Flower's"),
)


class Federation:
    """The clients of a run, and what they train.

    Args:
        config: of the run.
        own: objects in place of some of its keys.

    Raises:
        ValueError: what is missing, when it is asked for.
    """

    def __init__(self, config: Config, own: Own | None = None) -> None:
        self.config, self.own = config, own or Own()

    @cached_property
    def dataset(self) -> Dataset:
        """Train and test sets, with inputs of the kind that the model takes."""
        if self.own.data is None and self.own.model is None:
            return factories.dataset_of(self.config)
        data = self.own.data or factories.loaded(self.config)
        return suited(self.own.model or self.config.model, data)

    @cached_property
    def parts(self) -> Partition:
        """Every client's rows."""
        if self.own.data is None:
            return factories.partition_of(self.config)
        return factories.split_among_clients(self.config, self.own.data)

    @cached_property
    def num_clients(self) -> int:
        """How many clients there are."""
        return self.own.num_clients or len(self.parts)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the clients by partition, where they have any."""
        if self.own.client_app or self.partitioner != "natural":
            return ()
        return names_of(self.dataset, self.parts)

    @property
    def partitioner(self) -> str:
        """How the data is split."""
        return factories.partitioner_of(self.config, self.own.data)

    def resolved(self) -> Config:
        """The configuration with what its data decides: how it is split, and among how many."""
        if not self.has_data:
            return self.config
        own = {"partitioner": self.partitioner, "num_clients": self.num_clients}
        return self.config.model_copy(update=own)

    @property
    def has_data(self) -> bool:
        """Whether the data is here, and not only at the clients."""
        return self.own.client_app is None or self.own.data is not None

    @property
    def deals(self) -> bool:
        """Whether the data is split here, among the clients."""
        return self.has_data

    @property
    def needs_everyone(self) -> bool:
        """Whether a run has failed if one of its clients never contributed."""
        return self.conditions is None

    @property
    def simulates(self) -> bool:
        """Whether the clients are no real devices, so that seconds can be simulated ones."""
        return True

    @cached_property
    def conditions(self) -> Conditions | None:
        """Faults, devices and deadline of the clients; None if they are alike and never fail."""
        return Conditions.of(self.config.values()) if self.simulates else None

    @property
    def knows_model(self) -> bool:
        """Whether there is a module, and not only arrays."""
        own = self.own
        return own.client_app is None or own.arrays is None or own.model is not None

    def model(self) -> nn.Module:
        """The model, new, with its seeded initial weights."""
        choice = self.config.model if self.own.model is None else self.own.model
        if not self.has_data:
            return build(choice, None, seed=self.config.seed)
        return build(choice, self.dataset, seed=self.config.seed)

    @cached_property
    def client_app(self) -> ClientApp:
        """What the clients run."""
        own = self.own
        if own.client_app:
            return own.client_app
        if not own.names():
            return factories.client
        return client_app(
            lambda context: self.model(),
            self._examples,
            optimizer=own.optimizer,
            loss=own.loss or default_loss,
            check=factories.check_run_config,
            metrics=own.metrics,
        )

    def run(self, config: Config, strategy: Any = None) -> Run:
        """The run of one strategy on this federation.

        Raises:
            ValueError: it cannot be run here.
        """
        if config.server_step_size and (self.own.names() or not self.deals):
            raise ValueError(
                f"Config(server-step-size={config.server_step_size!r}): is for a simulation of "
                "data and models named by keys. Give a strategy with a LineSearch of your own."
            )
        evaluate = self.evaluation()
        start = self.start()
        if self.simulates:  # the grid has the deadline, and no client runs late in real seconds
            config = config.model_copy(update={"deadline": 0.0})
        return Run(
            config,
            config.strategy,
            self.num_clients,
            strategy=strategy,
            start=start,
            evaluate_fn=evaluate,
            schedule=self._schedule(config),
        )

    def _schedule(self, config: Config) -> Schedule | None:
        return schedule_of(config, config.strategy, self.own.scheduler, self.own.optimizer)

    def start(self) -> Start:
        """The model before the first round."""
        if self.own.arrays is None:
            return Start.of(self.model(), self.config.initial_model)
        if not self.knows_model:
            return Start(self.own.arrays)
        start, given = Start.of(self.model()), self.own.arrays
        if [*given] == [str(i) for i in range(len(start.arrays))]:  # a list, which has no names
            given = dict(zip(start.arrays, given.values(), strict=True))
        dtypes = {name: x.dtype for name, x in start.arrays.items()}
        given = {name: x.astype(dtypes.get(name, x.dtype)) for name, x in given.items()}
        return replace(start, arrays=fitted(given, start.arrays, "initial_model"))

    def evaluation(self) -> EvaluateFn:
        """The server's evaluation of a model: on the test set, or the caller's own."""
        own = self.own
        if own.evaluate:
            return own.evaluate
        if not self.has_data or not self.knows_model:
            return _nothing
        if not own.names():
            return test_evaluation(self.config)
        test, loss = Examples(*self.dataset.test), own.loss or default_loss
        return evaluation_on(self.model(), test, loss, self._metrics())

    def _metrics(self) -> Metrics:
        return Metrics.of(self.config.metrics if self.own.metrics is None else self.own.metrics)

    def check(self, config: Config) -> None:
        """Find out whether clients can train the model on the data; nothing changes.

        Args:
            config: of a run of one strategy.

        Raises:
            ValueError: they cannot.
        """
        self._schedule(config)
        if self.simulates and config.deadline and not (config.faults or config.client_profiles):
            raise ValueError(
                f"Config(deadline={config.deadline:g}): in a simulation, clients that are all "
                "alike are all in time or all late. Give client-profiles, or faults such as "
                "slow=0.1."
            )
        if config.stop_at_target and not self._has_accuracy:
            raise ValueError(
                "Config(stop-at-target=True): a regression has no test accuracy, and no target "
                "would ever be reached. Use patience or max-minutes."
            )
        if self.own.client_app:
            self.start()
            return
        if not self.own.names():
            factories.check_model(config)
            return
        key = config.strategy
        settings = ClientSettings.of({**config.values(), **client_config(config, key)})
        own = as_optimizer(self.own.optimizer)
        optimizer = own or named_optimizer(optimizer_key(config, key))
        examples = Examples(*self.dataset.train)
        factories.check_layers(config, key, self.model())
        name = _name(self.own.model) if self.own.model is not None else config.model
        loss = self.own.loss or default_loss
        try_model(f"model={name}", self.model(), examples, optimizer, settings, loss)
        if metrics := self._metrics():
            evaluate(self.model(), Examples(*self.dataset.test), loss, metrics=metrics.check)

    @property
    def _has_accuracy(self) -> bool:
        """Whether the server may know a test accuracy; metrics of one's own may have that name."""
        return bool(
            self.own.evaluate or self._metrics() or not self.has_data or self.dataset.num_classes
        )

    def about(self) -> dict[str, Any]:
        """What of this is no configuration key."""
        own = self.own.names()
        told: dict[str, Any] = {"model": own["model"]} if "model" in own else {}
        if "data" in own and not self.config.dataset:
            told["dataset"] = "own data"
        if self.own.model is None and self.has_data and self.knows_model:
            told["input-shape"] = list(self.dataset.train[0].shape[1:])
            told["num-outputs"] = self.dataset.num_classes
        return told

    def _examples(self, context: Context) -> tuple[Examples, Examples]:
        partition = int(context.node_config["partition-id"])
        return factories.examples_of(self.dataset, self.parts[partition], self.config, partition)


def arrays_of(value: Any) -> dict[str, Any]:
    """Arrays by name: of a module, a state dict, an ``ArrayRecord``, or a list of arrays.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, nn.Module):
        return dict(module_arrays(value))
    if isinstance(value, list | tuple):
        value = {str(i): x for i, x in enumerate(value)}
    if isinstance(value, ArrayRecord):
        return dict(from_record(value))
    if isinstance(value, Mapping):
        tensors = {k: x for k, x in value.items() if isinstance(x, torch.Tensor)}
        own = {k: x.detach().cpu().numpy() for k, x in tensors.items()}
        return {str(name): np.array(x) for name, x in {**value, **own}.items()}
    raise ValueError(
        f"initial_model={type(value).__name__}: must be a file, a module, its state_dict(), an "
        "ArrayRecord or a list of arrays. Give one of these."
    )


def _nothing(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
    return None


def _name(value: Any) -> str:
    named: Callable[[Any], str] = lambda x: getattr(x, "__name__", type(x).__name__)  # noqa: E731
    return named(value)
