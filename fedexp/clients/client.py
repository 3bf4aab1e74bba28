"""A client as Flower sees it: its answers to the server's messages, and the app around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.clients.client_round import ClientRound
from fedexp.clients.data import Examples
from fedexp.clients.extra_optimizers import EXTRA_OPTIMIZERS
from fedexp.clients.local_optimizers import OptimizerFn
from fedexp.clients.loop import evaluate
from fedexp.clients.losses import Loss, default_loss
from fedexp.clients.metrics import Metric, Metrics
from fedexp.clients.module import copies, load_arrays, module_arrays, unnamed_buffers, unsent
from fedexp.clients.named import as_optimizer, named_optimizer, told
from fedexp.clients.private_layers import kept_layers
from fedexp.clients.settings import ALSO, ClientSettings
from fedexp.records import from_record, records_of, to_record
from fedexp.simulation.conditions import Conditions, Fate
from fedexp.simulation.flower.client_apps import has_mods
from fedexp.simulation.profiles import ClientProfiles
from fedexp.wire import ClientResult

ModelFn = Callable[[Context], nn.Module]
DataFn = Callable[[Context], tuple[Examples, Examples]]


@dataclass(eq=False)
class Client:
    """The parts of a client, and its answers to ``train`` and ``evaluate`` messages.

    Settings are the run config's, overridden by the message's ``config`` record; see
    ``ClientSettings.of`` for their keys. A client is a pure function of the message, its
    partition, the run's ``seed`` and the round, and of what it keeps in ``Context.state``.

    Attributes:
        model: ``context -> module``; called once per process and run config.
        data: ``context -> (train, test)`` examples of ``context.node_config["partition-id"]``.
        optimizer: ``(parameters, settings) -> torch optimizer``, made anew every round; by
            default what ``local-optimizer`` names.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch.
        check: raises ValueError for a run config that the app cannot take; grids ask it.
        metrics: reported by ``evaluate`` besides; by default what the setting ``metrics`` names.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from flwr.app import Context, RecordDict
        >>> from torch import nn
        >>> from fedexp.clients import Client, Examples
        >>> mine = Examples(torch.eye(3), torch.arange(3))
        >>> client = Client(lambda context: nn.Linear(3, 3), lambda context: (mine, mine))
        >>> context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
        >>> start = {"weight": np.zeros((3, 3), "f"), "bias": np.zeros(3, "f")}
        >>> settings = {"local-steps": 1, "batch-size": 3}
        >>> result = client.fit(settings, start, RecordDict(), context)
        >>> round(result.metrics["train-loss"], 4)  # log 3: all classes score alike
        1.0986
    """

    model: ModelFn
    data: DataFn
    optimizer: OptimizerFn | None = None
    loss: Loss = default_loss
    check: Callable[[Mapping[str, Any]], object] = ClientSettings.of
    metrics: Metrics = field(default_factory=Metrics)
    _modules: dict[str, tuple[nn.Module, dict[str, Tensor]]] = field(
        default_factory=dict, repr=False
    )
    _buffers: dict[nn.Module, frozenset[str]] = field(default_factory=dict, repr=False)
    _firsts: dict[str, Arrays] = field(default_factory=dict, repr=False)
    _broadcast: tuple[Arrays, dict[str, Tensor]] | None = field(default=None, repr=False)

    def train(self, message: Message, context: Context) -> Message:
        """Take the local steps from the received arrays; reply arrays and ``train-loss``.

        Raises:
            FloatingPointError: the loss is not finite; the server gets this as an error reply.
            RuntimeError: the client crashes or its reply gets lost, as the run's faults order.
        """
        fate = _fate(message.content, context)
        fate.begin()
        config = self.config(message.content, context)
        result = self.fit(config, model_in(message.content), message.content, context)
        arrays, metrics = to_record(result.arrays), MetricRecord(dict(result.metrics))
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        if result.buffers:
            content[keys.BUFFERS] = ConfigRecord({"names": sorted(result.buffers)})
        return Message(fate.reply(content, message.content), reply_to=message)

    def fit(
        self, config: Mapping[str, Any], arrays: Arrays, content: RecordDict, context: Context
    ) -> ClientResult:
        """One client's round without its message, in the plain loop.

        Args:
            config: the settings, see ``config``.
            arrays: the model that was sent. Calls with the same object share one copy of it.
            content: of the message, for control variates.
            context: of the client.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        return self.begin(config, arrays, content, context).train()

    def begin(
        self, config: Mapping[str, Any], arrays: Arrays, content: RecordDict, context: Context
    ) -> ClientRound:
        """The client's round before it trains; arguments as of ``fit``."""
        return ClientRound(self, self.module(context), config, arrays, content, context)

    def broadcast(self, module: nn.Module, arrays: Arrays) -> dict[str, Tensor]:
        """``arrays`` as tensors that nobody may write to; made once for calls in a row."""
        if self._broadcast is None or self._broadcast[0] is not arrays:
            self._broadcast = arrays, copies(module, arrays)
        return self._broadcast[1]

    def evaluate(self, message: Message, context: Context) -> Message:
        """Reply ``eval-loss``, ``eval-accuracy`` and own metrics on the test examples."""
        _, examples = self.data(context)
        module = self.module(context)
        config, arrays = self.config(message.content, context), model_in(message.content)
        load_arrays(module, {**arrays, **self.own_layers(module, config, arrays, context)})
        text = str(config.get("metrics", ""))
        own = self.metrics or Metrics.of(text)
        values = evaluate(module, examples, self.loss, metrics=own)
        metrics = {f"eval-{name}": value for name, value in values.items()}
        record = MetricRecord({keys.NUM_EXAMPLES: len(examples), **metrics})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    def query(self, message: Message, context: Context) -> Message:
        """Reply the node's ``partition-id`` and ``num-partitions``."""
        told = keys.PARTITION_ID, keys.NUM_PARTITIONS
        record = MetricRecord({key: int(context.node_config[key]) for key in told})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    def config(self, content: RecordDict, context: Context) -> Mapping[str, Any]:
        """The settings of a message of this content."""
        sent = next(iter(records_of(content, ConfigRecord).values()), ConfigRecord())
        config = {**context.run_config, **sent}
        if profiles := str(config.get("client-profiles") or ""):
            usual, seed = ClientSettings.of(config).num_steps, int(config.get("seed", ALSO["seed"]))
            own = ClientProfiles.of(profiles).steps_of(seed, client_number(context), usual)
            config["local-steps"] = own
        name = str(config.get("local-optimizer", ""))
        if self.optimizer is None:
            if name in EXTRA_OPTIMIZERS and keys.LEARNING_RATE not in sent:
                return {**config, **EXTRA_OPTIMIZERS[name].given}
            return config | told(name) if "(" in name else config
        given = dict(getattr(self.optimizer, "given", {}))
        if keys.LEARNING_RATE in sent:  # of a schedule, which begins with the given one
            given.pop(keys.LEARNING_RATE, None)
        return config | given

    def maker(self, settings: ClientSettings) -> OptimizerFn:
        """What makes the local optimizer.

        Raises:
            ValueError: the settings name one that does not exist.
        """
        return self.optimizer or named_optimizer(settings.optimizer)

    def generator(self, config: Mapping[str, Any], context: Context) -> np.random.Generator:
        """The generator of this client in this round."""
        return np.random.default_rng(
            [
                int(config.get("seed", ALSO["seed"])),
                int(config.get(keys.SERVER_ROUND, 0)),
                client_number(context),
            ]
        )

    def module(self, context: Context) -> nn.Module:
        """This process's module for the run config.

        Its arrays are whatever it held last. Buffers that no message brings are as they were
        made: otherwise a client would depend on those that ran here before.
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

    def own_layers(
        self, module: nn.Module, config: Mapping[str, Any], arrays: Arrays, context: Context
    ) -> Arrays:
        """Values of the layers that stay at this client and are not in the message's ``arrays``.

        Those that it kept, or those of the model function if it has not trained in this run.
        """
        if not config.get(keys.PRIVATE_LAYERS):
            return {}
        missing = [name for name in module_arrays(module) if name not in arrays]
        kept = kept_layers(config, context)
        if missing and not kept.keys() >= set(missing):
            kept = {**self._first_arrays(context), **kept}
        return {name: kept[name] for name in missing}

    def _first_arrays(self, context: Context) -> Arrays:
        """The model as the model function makes it, once for a process and run config."""
        key = repr(sorted(context.run_config.items()))
        if key not in self._firsts:
            with torch.random.fork_rng(devices=[]):
                self._firsts[key] = module_arrays(self.model(context))
        return self._firsts[key]

    def buffers(self, module: nn.Module) -> frozenset[str]:
        """``unnamed_buffers`` of a module of this process."""
        if module not in self._buffers:
            self._buffers[module] = unnamed_buffers(module)
        return self._buffers[module]


Trainer = Client
"""The name of ``Client`` in earlier versions."""


def client_number(context: Context) -> int:
    """The partition of a client, or its node's id where nobody divided the data."""
    return int(context.node_config.get(keys.PARTITION_ID, context.node_id))


def _fate(content: RecordDict, context: Context) -> Fate:
    """What the run's faults make of a client; nothing on our grids, which apply them themselves."""
    conditions = Conditions.of(context.run_config) if context.run_config.get("faults") else None
    return conditions.fate_of(content, client_number(context)) if conditions else Fate()


def model_in(content: RecordDict) -> Arrays:
    """The model in a message of this content."""
    records = records_of(content, ArrayRecord)
    (record,) = (x for key, x in records.items() if key != keys.CONTROL_VARIATE)
    return from_record(record)


def client_app(
    model: ModelFn,
    data: DataFn,
    optimizer: OptimizerFn | Callable[..., Any] | str | None = None,
    loss: Loss = default_loss,
    check: Callable[[Mapping[str, Any]], object] = ClientSettings.of,
    metrics: Mapping[str, Metric] | str | None = None,
    **kwargs: Any,
) -> ClientApp:
    """A ClientApp that trains ``model`` on ``data`` for exactly ``local-steps`` steps.

    The same object runs on ``SerialGrid``, ``RayGrid``, under ``flwr run`` and on a SuperNode.

    Args:
        model: ``context -> module``.
        data: ``context -> (train examples, test examples)`` of one client.
        optimizer: an optimizer class such as ``torch.optim.AdamW``, text such as
            ``adamw(weight-decay=0.01)``, or ``(parameters, settings) -> torch optimizer``, see
            ``as_optimizer``; by default what the setting ``local-optimizer`` names, plain SGD if
            there is none.
        loss: ``(outputs, targets) -> scalar``; cross-entropy or squared error by default.
        check: our grids call it with their run config when they are made. It raises ValueError if
            the app cannot take it; by default if a key looks like a slip for a setting.
        metrics: ``(outputs, targets) -> number`` by name, of all outputs for the test examples at
            once; reported as ``eval-NAME``. One that fails is not reported. Or text, see
            ``named_metrics``; by default what the setting ``metrics`` names.
        **kwargs: ClientApp's, e.g. ``mods``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fedexp.clients import Examples, client_app
        >>> from fedexp.simulation import SerialGrid
        >>> x = torch.eye(3)
        >>> mine = Examples(x, torch.arange(3))
        >>> app = client_app(lambda context: nn.Linear(3, 3), lambda context: (mine, mine))
        >>> len(list(SerialGrid(app, num_nodes=2).get_node_ids()))
        2
    """
    client = Client(model, data, as_optimizer(optimizer), loss, check, Metrics.of(metrics))
    app = ClientApp(**kwargs)
    app.train()(client.train)
    app.evaluate()(client.evaluate)
    app.query()(client.query)
    app.trainer = client  # type: ignore[attr-defined]  # for grids that train groups at once
    return app


def client_of(app: ClientApp) -> Client | None:
    """The client of an app of ``client_app`` that no mod stands around."""
    return None if has_mods(app) else getattr(app, "trainer", None)
