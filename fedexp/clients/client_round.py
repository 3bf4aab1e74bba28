"""One client in one round: what it starts from, and what becomes of the model that it trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from flwr.app import Context, RecordDict
from torch import nn

from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.causes import cause
from fedexp.clients.data import Examples
from fedexp.clients.known import is_plain
from fedexp.clients.local_optimizers import OptimizerFn, learning_rate
from fedexp.clients.loop import evaluate, train
from fedexp.clients.losses import is_known
from fedexp.clients.module import lend, load_arrays, module_arrays
from fedexp.clients.settings import ClientSettings
from fedexp.clients.state import STEP, ControlVariates, save_rate, starting_settings
from fedexp.wire import ClientResult

if TYPE_CHECKING:
    from fedexp.clients.client import Client


@dataclass(frozen=True, eq=False)
class ClientRound:
    """One client in one round, before it trains.

    The plain loop, a group and the single step differ only in how they train; all of them begin
    with this object and end with its ``result``.

    Attributes:
        client: its model, data, loss and optimizer.
        module: of ``client``; clients that run in one process share it.
        config: the settings by key.
        settings: the same, with the learning rate that this client starts from.
        before: the model that was sent.
        context: of the client.
        examples: that it trains on.
        rng: draws its batches.
        torch_seed: of PyTorch's generator, for dropout and the like.
        control: SCAFFOLD's control variates, if the server sends them.
    """

    client: Client
    module: nn.Module
    config: Mapping[str, Any]
    settings: ClientSettings
    before: Arrays
    context: Context
    examples: Examples
    rng: np.random.Generator
    torch_seed: int
    control: ControlVariates | None

    @classmethod
    def of(
        cls,
        client: Client,
        module: nn.Module,
        config: Mapping[str, Any],
        before: Arrays,
        content: RecordDict,
        context: Context,
    ) -> Self:
        """The round of the client of ``context``; ``content`` is that of the message."""
        settings = starting_settings(config, context)
        rng = client.generator(config, context)
        torch_seed = int(rng.integers(2**63))  # before the batches, whoever trains
        examples, _ = client.data(context)
        buffers = client.buffers(module)
        control = ControlVariates.of(content, config, context, len(examples), buffers)
        return cls(
            client,
            module,
            config,
            settings,
            before,
            context,
            examples,
            rng,
            torch_seed,
            control,
        )

    def train(self) -> ClientResult:
        """Take the local steps in the plain loop.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        module, settings, loss_fn = self.module, self.settings, self.client.loss
        make = self.make
        # Clients may start from one copy of the model, if nothing writes to it.
        if getattr(make, "shares_memory", False) and is_known(loss_fn) and is_plain(module):
            lend(module, self.client.broadcast(module, self.before))
        else:
            load_arrays(module, self.before)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would note its caller for a GPU to come.
            torch.default_generator.manual_seed(self.torch_seed)
            optimizer = make([p for p in module.parameters() if p.requires_grad], settings)
            correction = self.control.correction(module) if self.control else {}
            loss = train(module, self.examples, settings, optimizer, loss_fn, self.rng, correction)
        return self.result(module_arrays(module), loss, learning_rate(optimizer, settings))

    def result(self, after: Arrays, loss: float, rate: float) -> ClientResult:
        """What the client reports; what it keeps for its next round goes to ``context.state``.

        Args:
            after: the trained model.
            loss: the mean of the minibatch losses.
            rate: the learning rate of the last step.

        Raises:
            FloatingPointError: the loss is not finite, or with control variates any array.
        """
        loss_fn = self.client.loss
        if not math.isfinite(loss):
            why = cause(self.module, self.before, self.examples, loss_fn)
            raise FloatingPointError(f"train loss is {loss} with learning-rate {rate}: {why}")
        metrics = {"num-examples": len(self.examples), "train-loss": loss, "learning-rate": rate}
        if self.config.get("final-loss"):
            load_arrays(self.module, after)
            metrics["final-loss"] = evaluate(self.module, self.examples, loss_fn)["loss"]
        if self.control:
            if name := first_non_finite(after):  # the control variate would stay non-finite
                raise FloatingPointError(f"array {name!r} holds NaN or infinity after training.")
            metrics[STEP] = step = self.settings.num_steps * self.settings.lr
            self.control.keep(self.context, self.before, after, step)
        if adapts_lr(self.make):
            save_rate(self.config, self.context, rate)
        buffers = self.client.buffers(self.module)
        return ClientResult(self.context.node_id, after, metrics, buffers)

    @property
    def make(self) -> OptimizerFn:
        """What makes the local optimizer."""
        return self.client.maker(self.settings)


def adapts_lr(make: OptimizerFn) -> bool:
    """Whether the optimizers that ``make`` makes change their learning rate."""
    return getattr(make, "adapts_lr", False)
