"""A Flower ClientApp from a model, data and a local optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.control import STEP, VARIATE, ControlVariates
from fedexp.clients.local_optimizers import OptimizerFn, learning_rate, named
from fedexp.clients.module import load_arrays, module_arrays
from fedexp.clients.training import (
    Examples,
    LocalTraining,
    Loss,
    default_loss,
    evaluate,
    train,
)
from fedexp.clients.tuned_rates import keep, started
from fedexp.records import from_record, records_of, to_record

ModelFn = Callable[[Context], nn.Module]
DataFn = Callable[[Context], tuple[Examples, Examples]]


@dataclass(frozen=True, eq=False)
class Trainer:
    """The parts of a client, and its answers to ``train`` and ``evaluate`` messages.

    Settings are the run config's, overridden by the message's ``config`` record; see
    ``LocalTraining.of`` for their keys. A client is a pure function of the message, its
    partition, the run's ``seed`` and the round, and of what it keeps in ``Context.state``.

    Attributes:
        model: ``context -> module``; called once per process and run config.
        data: ``context -> (train, test)`` examples of ``context.node_config["partition-id"]``.
        optimizer: ``(parameters, settings) -> torch optimizer``, made anew every round; by
            default what ``local-optimizer`` names in ``LOCAL_OPTIMIZERS``.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch.
    """

    model: ModelFn
    data: DataFn
    optimizer: OptimizerFn | None = None
    loss: Loss = default_loss
    _modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def train(self, message: Message, context: Context) -> Message:
        """Take the local steps from the received arrays; reply arrays and ``train-loss``.

        Raises:
            FloatingPointError: the loss is not finite; the server gets this as an error reply.
        """
        config = self.config(message, context)
        settings = started(config, context)
        rng = self.generator(config, context)
        module = self.module(context)
        load_arrays(module, sent(message))
        examples, _ = self.data(context)
        with torch.random.fork_rng(devices=[]):
            # Of dropout and the like; torch.manual_seed would note its caller for a GPU to come.
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            params = [p for p in module.parameters() if p.requires_grad]
            make = self.maker(settings)
            optimizer = make(params, settings)
            control = ControlVariates.of(message, config, context)
            correction = control.correction(module) if control else {}
            loss = train(module, examples, settings, optimizer, self.loss, rng, correction)
        rate = learning_rate(optimizer, settings)
        metrics = {"num-examples": len(examples), "train-loss": loss, "learning-rate": rate}
        if config.get("final-loss"):
            metrics["final-loss"] = evaluate(module, examples, self.loss)["loss"]
        reply = trained(message, context, module_arrays(module), metrics, control, settings)
        if tunes(make):
            keep(config, context, rate)
        return reply

    def evaluate(self, message: Message, context: Context) -> Message:
        """Reply ``eval-loss`` and ``eval-accuracy`` of the received arrays on the test examples."""
        _, examples = self.data(context)
        module = self.module(context)
        load_arrays(module, sent(message))
        values = evaluate(module, examples, self.loss)
        metrics = {f"eval-{name}": value for name, value in values.items()}
        record = MetricRecord({"num-examples": len(examples), **metrics})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    def query(self, message: Message, context: Context) -> Message:
        """Reply the node's ``partition-id`` and ``num-partitions``."""
        keys = "partition-id", "num-partitions"
        record = MetricRecord({key: int(context.node_config[key]) for key in keys})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    def config(self, message: Message, context: Context) -> Mapping[str, Any]:
        """The settings of this message."""
        sent = next(iter(records_of(message.content, ConfigRecord).values()), ConfigRecord())
        return {**context.run_config, **sent}

    def maker(self, settings: LocalTraining) -> OptimizerFn:
        """What makes the local optimizer.

        Raises:
            ValueError: the settings name one that does not exist.
        """
        return self.optimizer or named(settings.optimizer)

    def generator(self, config: Mapping[str, Any], context: Context) -> np.random.Generator:
        """The generator of this client in this round."""
        partition = int(context.node_config.get("partition-id", context.node_id))
        return np.random.default_rng(
            [int(config.get("seed", 0)), int(config.get("server-round", 0)), partition]
        )

    def module(self, context: Context) -> nn.Module:
        """This process's module for the run config; its arrays are whatever it held last."""
        key = repr(sorted(context.run_config.items()))
        if key not in self._modules:
            device = str(context.run_config.get("device") or "cpu")
            self._modules[key] = self.model(context).to(device)
        return self._modules[key]


def tunes(make: OptimizerFn) -> bool:
    """Whether the optimizers that ``make`` makes move their learning rate."""
    return getattr(make, "tunes", False)


def trained(
    message: Message,
    context: Context,
    arrays: Arrays,
    metrics: Mapping[str, int | float],
    control: ControlVariates | None,
    settings: LocalTraining,
) -> Message:
    """The reply of a client that has trained; its control variate goes to ``context.state``.

    Raises:
        FloatingPointError: the loss among ``metrics`` is not finite.
    """
    if not math.isfinite(metrics["train-loss"]):
        raise FloatingPointError(
            f"train loss is {metrics['train-loss']} with learning-rate "
            f"{metrics['learning-rate']}. Use a smaller one."
        )
    if control:
        if name := first_non_finite(arrays):  # else the variate would never be finite again
            raise FloatingPointError(f"array {name!r} holds NaN or infinity after training.")
        step = settings.num_steps * settings.lr
        metrics = {**metrics, STEP: step}
        control.keep(context, sent(message), arrays, step)
    record = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord(dict(metrics))})
    return Message(record, reply_to=message)


def sent(message: Message) -> Arrays:
    """The model in ``message``."""
    records = records_of(message.content, ArrayRecord)
    (record,) = (x for key, x in records.items() if key != VARIATE)
    return from_record(record)


def client_app(
    model: ModelFn,
    data: DataFn,
    optimizer: OptimizerFn | None = None,
    loss: Loss = default_loss,
    **kwargs: Any,
) -> ClientApp:
    """A ClientApp that trains ``model`` on ``data`` for exactly ``local-steps`` steps.

    The same object runs on ``SerialGrid``, ``RayGrid``, under ``flwr run`` and on a SuperNode.

    Args:
        model: ``context -> module``.
        data: ``context -> (train examples, test examples)`` of one client.
        optimizer: ``(parameters, settings) -> torch optimizer``; by default what the setting
            ``local-optimizer`` names, plain SGD if there is none.
        loss: ``(outputs, targets) -> scalar``; cross-entropy or squared error by default.
        **kwargs: ClientApp's, e.g. ``mods``.
    """
    trainer = Trainer(model, data, optimizer, loss)
    app = ClientApp(**kwargs)
    app.train()(trainer.train)
    app.evaluate()(trainer.evaluate)
    app.query()(trainer.query)
    app.trainer = trainer  # type: ignore[attr-defined]  # for grids that run whole cohorts at once
    return app
