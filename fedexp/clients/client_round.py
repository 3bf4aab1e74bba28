"""One client in one round: what it starts from, and what becomes of the model that it trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from torch import nn

from fedexp import keys
from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.between_rounds import (
    kept_of,
    restore_state,
    save_rate,
    save_state,
    starting_settings,
)
from fedexp.clients.causes import cause
from fedexp.clients.known import has_plain_forward
from fedexp.clients.local_optimizers import mean_rate
from fedexp.clients.local_privacy import hidden
from fedexp.clients.loop import evaluate, train
from fedexp.clients.losses import is_known
from fedexp.clients.module import lend, load_arrays, module_arrays
from fedexp.clients.private_layers import keep_layers
from fedexp.clients.private_training import PrivateSGD
from fedexp.clients.state import ControlVariates
from fedexp.clients.step_tuning import StepTuning
from fedexp.wire import ClientResult

if TYPE_CHECKING:
    from fedexp.clients.client import Client


class ClientRound:
    """One client in one round, before it trains.

    The plain loop, a group and the single step differ only in how they train; all of them begin
    with this object and end with its ``result``.

    Args:
        client: its model, data, loss and optimizer.
        module: of ``client``; clients that run in one process share it.
        config: the settings by key.
        before: the model that was sent; in the attribute of this name with the client's own
            layers, if it has any.
        content: of the message, for control variates.
        context: of the client.

    Attributes:
        settings: those of ``config``, with the learning rate that this client starts from.
        make: makes the local optimizer.
        keeps: what of it may be kept for the next round.
        rng: draws the batches.
        torch_seed: of PyTorch's generator, for dropout and the like.
        examples: that it trains on.
        control: SCAFFOLD's control variates, if the server sends them.
        tuning: what tunes the step size in some rounds, see ``LocalOptimizer``; mostly None.
        private: what takes the steps under differential privacy; None if they are not private.
        sent: the model as the server sent it.
        layers: arrays that the client has of its own, before its steps; mostly ``{}``.
        found: metrics of the tuning of this round; ``{}`` where there was none.
    """

    def __init__(
        self,
        client: Client,
        module: nn.Module,
        config: Mapping[str, Any],
        before: Arrays,
        content: RecordDict,
        context: Context,
    ) -> None:
        self.client, self.module, self.config = client, module, config
        self.layers = client.own_layers(module, config, before, context)
        self.sent, self.context = before, context
        self.before = {**before, **self.layers} if self.layers else before
        settings = starting_settings(config, context)
        self.make = client.maker(settings)
        self.keeps = kept_of(self.make)
        self.tuning: StepTuning | None = _asked(self.make, "tuning")
        self.private: PrivateSGD | None = _asked(self.make, "private")
        self.found: dict[str, float] = {}
        if self.tuning:
            settings = self.tuning.starting(settings, config)
        settings.check_optimizer(self.make)
        self.rng = client.generator(config, context)
        # Drawn before the batches, by whoever trains: groups and the plain loop draw alike.
        self.torch_seed = int(self.rng.integers(2**63))
        self.examples, _ = client.data(context)
        num_examples, self.buffers = len(self.examples), client.buffers(module)
        self._first_rate = settings.rates()[0] if settings.lr_exponent else settings.lr
        self.settings = settings.for_examples(num_examples)
        self.control = ControlVariates.of(
            content, config, context, num_examples, self.buffers, lambda: _zeros(module, before)
        )
        self._check_together()

    def _check_together(self) -> None:
        """What cannot be had together, in every round and not only where a client tunes."""
        if self.private and self.layers:
            raise ValueError(
                f"{self.private.name}: private layers do not go with it. Leave them out, or +sgd."
            )
        if self.control and self.tuning:
            raise ValueError(
                "learned-step: control variates need one learning rate at all clients, fixed "
                "throughout. Use +sgd."
            )

    def train(self) -> ClientResult:
        """Take the local steps in the plain loop, after tuning their size where that is due.

        Private steps are taken elsewhere.

        Raises:
            FloatingPointError: the loss is not finite.
            ValueError: the step size cannot be tuned.
        """
        if self.private:
            return self._train_privately(self.private)
        module, loss_fn = self.module, self.client.loss
        # Clients may start from one copy of the model, if nothing writes to it.
        if (
            getattr(self.make, "shares_memory", False)
            and is_known(loss_fn)
            and has_plain_forward(module)
        ):
            lend(module, self.client.broadcast(module, self.before))
        else:
            load_arrays(module, self.before)
        if self.tuning and self.tuning.is_due(self.config):
            self._tune(self.tuning)
        settings = self.settings
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would note its caller for a GPU to come.
            torch.default_generator.manual_seed(self.torch_seed)
            optimizer = self.make([p for p in module.parameters() if p.requires_grad], settings)
            if self.keeps == "state":
                restore_state(self.config, self.context, optimizer)
            correction = self.control.correction(module) if self.control else {}
            loss = train(module, self.examples, settings, optimizer, loss_fn, self.rng, correction)
        result = self.result(module_arrays(module), loss, mean_rate(optimizer, settings))
        if self.keeps == "state" and math.isfinite(loss):
            save_state(self.config, self.context, optimizer)
        return result

    def _train_privately(self, private: PrivateSGD) -> ClientResult:
        """What private steps release, and nothing else of the examples but their number.

        Raises:
            ValueError: the server wants what would tell more.
        """
        if self.control or self.config.get(keys.FINAL_LOSS):
            raise ValueError(
                f"{private.name}: this strategy wants control variates or the loss after training, "
                "which are not private. Use another strategy, or +sgd."
            )
        load_arrays(self.module, self.before)
        done = private.train(
            self.module, self.examples, self.settings, self.client.loss, self.context
        )
        metrics = {
            keys.NUM_EXAMPLES: len(self.examples),
            keys.LEARNING_RATE: done.rate,
            **done.metrics(),
        }
        return self._sent(module_arrays(self.module), metrics)

    def _tune(self, tuning: StepTuning) -> None:
        """Find the step size of this round; the batches that follow are what they would be anyway.

        All rows train afterwards, those that were set aside too, as the final run of the paper's
        experiments does.
        """
        first_round = {**self.config, keys.SERVER_ROUND: 0}  # the same rows are always set aside
        tuned = tuning.tune(
            self.module,
            self.examples,
            self.settings,
            self.client.loss,
            rng=self.rng.spawn(1)[0],  # which draws nothing from ``rng`` itself
            split=self.client.generator(first_round, self.context),
        )
        self.settings = replace(self.settings, lr=tuned.step_size)
        self.found = {
            keys.LEARNED_STEP_SIZE: tuned.step_size,
            keys.TUNING_FAILED: float(tuned.failed),
        }

    def result(self, after: Arrays, loss: float, rate: float) -> ClientResult:
        """What the client reports; what it keeps for its next round goes to ``context.state``.

        Args:
            after: the trained model.
            loss: the mean of the minibatch losses.
            rate: the learning rate of the last step.

        Raises:
            FloatingPointError: the loss is not finite, or with control variates any array.
        """
        # Under local privacy an error would tell of the data: the client sends noise in its place.
        if not (is_finite := math.isfinite(loss)) and keys.LOCAL_NOISE not in self.config:
            why = cause(self.module, self.before, self.examples, self.client.loss)
            raise FloatingPointError(f"train loss is {loss} with learning-rate {rate}: {why}")
        metrics = {
            keys.NUM_EXAMPLES: len(self.examples),
            keys.TRAIN_LOSS: loss,
            keys.LEARNING_RATE: rate,
            **self.found,
            **self._asked_for(after),
        }
        if self.control:
            metrics[keys.CONTROL_STEP] = self._keep_control(self.control, after)
        if self.keeps == "rate" and is_finite:
            save_rate(self.config, self.context, rate)
        if self.layers and is_finite:
            keep_layers(self.config, self.context, self.layers, after)
        return self._sent(after, metrics)

    def _asked_for(self, after: Arrays) -> dict[str, float]:
        """Metrics that only some strategies ask for."""
        found: dict[str, float] = {}
        if self.config.get(keys.FINAL_LOSS):
            load_arrays(self.module, after)
            loss = evaluate(self.module, self.examples, self.client.loss)["loss"]
            found[keys.FINAL_LOSS] = loss
        if self.config.get(keys.LOCAL_WORK):
            plain = getattr(self.make, "is_plain", False)  # of others, steps count alike
            own = self.settings.local_work(self._first_rate) if plain else self.settings.num_steps
            found[keys.LOCAL_WORK] = float(own)
        return found

    def _keep_control(self, control: ControlVariates, after: Arrays) -> float:
        """Keep the client's next control variate; the length of the path that it was made with."""
        if name := first_non_finite(after):  # the control variate would stay non-finite
            raise FloatingPointError(f"array {name!r} holds NaN or infinity after training.")
        step = control.step or self.settings.path_length
        control.keep(self.context, self.before, after, step)
        return step

    def _sent(self, after: Arrays, metrics: Mapping[str, Any]) -> ClientResult:
        """What goes to the server: hidden first, where it asks for local privacy."""
        after = {name: x for name, x in after.items() if name not in self.layers}
        sent = ClientResult(self.context.node_id, after, metrics, self.buffers)
        partition = int(self.context.node_config.get(keys.PARTITION_ID, self.context.node_id))
        return hidden(sent, self.sent, self.config, partition)


def _asked(make: Any, name: str) -> Any:
    """What a local optimizer makes under ``name``, for this round; None if it does not."""
    made = getattr(make, name, None)
    return made() if made else None


def _zeros(module: nn.Module, before: Arrays) -> Arrays:
    """A zero for every parameter that is sent and trained, without memory."""
    trained = [name for name, p in module.named_parameters() if p.requires_grad and name in before]
    return {k: np.broadcast_to(np.zeros((), before[k].dtype), before[k].shape) for k in trained}
