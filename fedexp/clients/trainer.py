"""A client: its model, data and local optimizer, and its answers to the server's messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from fedexp.arrays import Arrays
from fedexp.clients.causes import cause
from fedexp.clients.control import VARIATE, ControlVariates
from fedexp.clients.known import is_plain
from fedexp.clients.local_optimizers import OptimizerFn, learning_rate, named, told
from fedexp.clients.losses import Loss, default_loss, is_known
from fedexp.clients.metrics import Metrics
from fedexp.clients.module import copies, lend, load_arrays, module_arrays, unnamed_buffers, unsent
from fedexp.clients.one_step import one_step, single
from fedexp.clients.training import (
    Examples,
    LocalTraining,
    batches_of,
    evaluate,
    plain_descent,
    train,
)
from fedexp.clients.tuned_rates import keep, started
from fedexp.clients.usable import usable
from fedexp.records import from_record, records_of, to_record
from fedexp.wire import BUFFERS, ClientResult

ModelFn = Callable[[Context], nn.Module]
DataFn = Callable[[Context], tuple[Examples, Examples]]


@dataclass(eq=False)
class Trainer:
    """The parts of a client, and its answers to ``train`` and ``evaluate`` messages.

    Settings are the run config's, overridden by the message's ``config`` record; see
    ``LocalTraining.of`` for their keys. A client is a pure function of the message, its
    partition, the run's ``seed`` and the round, and of what it keeps in ``Context.state``.

    Attributes:
        model: ``context -> module``; called once per process and run config.
        data: ``context -> (train, test)`` examples of ``context.node_config["partition-id"]``.
        optimizer: ``(parameters, settings) -> torch optimizer``, made anew every round; by
            default what ``local-optimizer`` names.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch.
        check: raises ValueError for a run config that the app cannot take; grids ask it.
        metrics: reported by ``evaluate`` besides; by default what the setting ``metrics`` names.
    """

    model: ModelFn
    data: DataFn
    optimizer: OptimizerFn | None = None
    loss: Loss = default_loss
    check: Callable[[Mapping[str, Any]], object] = LocalTraining.of
    metrics: Metrics = field(default_factory=Metrics)
    _modules: dict[str, tuple[nn.Module, dict[str, Tensor]]] = field(
        default_factory=dict, repr=False
    )
    _buffers: dict[nn.Module, frozenset[str]] = field(default_factory=dict, repr=False)
    _lent: tuple[Arrays, dict[str, Tensor]] | None = field(default=None, repr=False)

    def train(self, message: Message, context: Context) -> Message:
        """Take the local steps from the received arrays; reply arrays and ``train-loss``.

        Raises:
            FloatingPointError: the loss is not finite; the server gets this as an error reply.
        """
        config = self.config(message.content, context)
        result = self.fit(config, sent(message.content), message.content, context)
        arrays, metrics = to_record(result.arrays), MetricRecord(dict(result.metrics))
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        if result.buffers:
            content[BUFFERS] = ConfigRecord({"names": sorted(result.buffers)})
        return Message(content, reply_to=message)

    def fit(
        self, config: Mapping[str, Any], arrays: Arrays, content: RecordDict, context: Context
    ) -> ClientResult:
        """One client's round without its message.

        Args:
            config: the settings, see ``config``.
            arrays: the model that was sent. Calls with the same object share one copy of it.
            content: of the message, for control variates.
            context: of the client.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        settings = started(config, context)
        rng = self.generator(config, context)
        module = self.module(context)
        make = self.maker(settings)
        self._load(module, arrays, borrowed=getattr(make, "borrows", False))
        examples, _ = self.data(context)
        with torch.random.fork_rng(devices=[]):
            # Of dropout and the like; torch.manual_seed would note its caller for a GPU to come.
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            params = [p for p in module.parameters() if p.requires_grad]
            optimizer = make(params, settings)
            buffers = self.buffers(module)
            control = ControlVariates.of(content, config, context, len(examples), buffers)
            correction = control.correction(module) if control else {}
            descent = plain_descent(optimizer, settings, correction)
            chain = (
                None if config.get("final-loss") else single(module, self.loss, descent, settings)
            )
            if descent and chain:
                (batch,) = batches_of(module, examples, settings, rng)
                loss, after = one_step(chain, module, arrays, batch, descent.lr)
            else:
                loss = train(module, examples, settings, optimizer, self.loss, rng, correction)
                after = module_arrays(module)
        rate = learning_rate(optimizer, settings)
        metrics = {"num-examples": len(examples), "train-loss": loss, "learning-rate": rate}
        if config.get("final-loss"):
            metrics["final-loss"] = evaluate(module, examples, self.loss)["loss"]
        result = ClientResult(context.node_id, after, metrics, buffers)
        why = partial(cause, module, arrays, examples, self.loss)
        result = usable(result, arrays, context, control, settings, why)
        if tunes(make):
            keep(config, context, rate)
        return result

    def _load(self, module: nn.Module, arrays: Arrays, *, borrowed: bool) -> None:
        if not (borrowed and is_known(self.loss) and is_plain(module)):
            load_arrays(module, arrays)
            return
        if self._lent is None or self._lent[0] is not arrays:
            self._lent = arrays, copies(module, arrays)
        lend(module, self._lent[1])

    def evaluate(self, message: Message, context: Context) -> Message:
        """Reply ``eval-loss``, ``eval-accuracy`` and own metrics on the test examples."""
        _, examples = self.data(context)
        module = self.module(context)
        load_arrays(module, sent(message.content))
        text = str(self.config(message.content, context).get("metrics", ""))
        own = self.metrics or Metrics.of(text)
        values = evaluate(module, examples, self.loss, metrics=own)
        metrics = {f"eval-{name}": value for name, value in values.items()}
        record = MetricRecord({"num-examples": len(examples), **metrics})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    def query(self, message: Message, context: Context) -> Message:
        """Reply the node's ``partition-id`` and ``num-partitions``."""
        keys = "partition-id", "num-partitions"
        record = MetricRecord({key: int(context.node_config[key]) for key in keys})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    def config(self, content: RecordDict, context: Context) -> Mapping[str, Any]:
        """The settings of a message of this content."""
        sent = next(iter(records_of(content, ConfigRecord).values()), ConfigRecord())
        config = {**context.run_config, **sent}
        name = str(config.get("local-optimizer", ""))
        if self.optimizer is None:
            return config | told(name) if "(" in name else config
        given = dict(getattr(self.optimizer, "given", {}))
        if "learning-rate" in sent:  # of a schedule, which begins with the given one
            given.pop("learning-rate", None)
        return config | given

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
        """This process's module for the run config.

        Its arrays are whatever it held last, but what no message brings is as it was made: else
        a client would depend on those that ran here before.
        """
        key = repr(sorted(context.run_config.items()))
        if key not in self._modules:
            device = str(context.run_config.get("device") or "cpu")
            made = self.model(context).to(device)
            self._modules[key] = made, {name: x.clone() for name, x in unsent(made)}
        module, first = self._modules[key]
        for name, x in first.items():
            module.get_buffer(name).data = x.clone()
        return module

    def buffers(self, module: nn.Module) -> frozenset[str]:
        """``unnamed_buffers`` of a module of this process."""
        if module not in self._buffers:
            self._buffers[module] = unnamed_buffers(module)
        return self._buffers[module]


def tunes(make: OptimizerFn) -> bool:
    """Whether the optimizers that ``make`` makes move their learning rate."""
    return getattr(make, "tunes", False)


def sent(content: RecordDict) -> Arrays:
    """The model in a message of this content."""
    records = records_of(content, ArrayRecord)
    (record,) = (x for key, x in records.items() if key != VARIATE)
    return from_record(record)
