"""A group of clients trained at once: the local loop under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedexp.arrays import Arrays
from fedexp.clients.client_app import Trainer, sent, trained, tunes
from fedexp.clients.control import ControlVariates
from fedexp.clients.functional_optimizers import FunctionalOptimizer, Tensors
from fedexp.clients.local_optimizers import LocalOptimizer
from fedexp.clients.module import load_arrays
from fedexp.clients.training import Examples, LocalTraining, evaluate
from fedexp.clients.tuned_rates import keep, started

GROUP = 32  # clients trained together; a constant, so that no result depends on the workers
_TINY = 200_000  # parameters; measured: below it, without convolutions, vmap wins on a CPU
_MODES = ("auto", "on", "off")
_RAISED = 2  # Flower's error code for a ClientApp that raised


@dataclass(frozen=True, eq=False)
class Cohort:
    """Trains groups of clients of one ``Trainer`` in one go.

    Each client takes the same batches as alone; results agree to float tolerance.

    Attributes:
        trainer: the clients' model, data, optimizer and loss.
    """

    trainer: Trainer

    @classmethod
    def of(cls, app: ClientApp, mode: str, context: Context) -> Cohort | None:
        """The cohort of ``app``, or None where clients run one by one.

        Args:
            app: any ClientApp; only those of ``client_app`` can be vectorised.
            mode: ``off``; ``on``; or ``auto``, which takes tiny models without convolutions on
                a CPU and every model that can on a GPU.
            context: of any node.

        Raises:
            ValueError: unknown mode, or ``on`` for clients that cannot be vectorised.
        """
        check_mode(mode)
        if mode == "off":
            return None
        trainer = getattr(app, "trainer", None)
        obstacle = "the ClientApp has mods" if _mods(app) else _obstacle(trainer, context)
        if mode == "on" and obstacle:
            raise ValueError(f"vectorize='on': {obstacle}. Use auto.")
        if trainer is None or obstacle or (mode == "auto" and not _pays(trainer, context)):
            return None
        return cls(trainer)

    def train(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Replies to ``train`` messages that share one content."""
        config = self.trainer.config(messages[0], contexts[0])
        settings = [started(config, context) for context in contexts]
        module = self.trainer.module(contexts[0])
        examples = [self.trainer.data(context)[0] for context in contexts]
        data, offsets = _one_dataset(examples)
        rows = torch.stack(
            [
                _rows(e, settings[0], self.trainer.generator(config, c)) + offset
                for e, c, offset in zip(examples, contexts, offsets, strict=True)
            ]
        )  # (clients, steps, batch)
        device = next(module.parameters()).device
        start = {k: torch.tensor(v, device=device) for k, v in sent(messages[0]).items()}
        controls = [
            ControlVariates.of(m, config, c) for m, c in zip(messages, contexts, strict=True)
        ]
        corrections = [c.correction(module) for c in controls if c]
        correction = {k: torch.stack([c[k] for c in corrections]) for k in (*corrections, {})[0]}
        params, losses, rates = self._loop(module, start, data, rows, settings, correction)
        arrays = {name: p.cpu().numpy() for name, p in params.items()}
        replies = []
        for i, (message, context) in enumerate(zip(messages, contexts, strict=True)):
            after = {k: v[i] for k, v in arrays.items()}
            metrics = {
                "num-examples": len(examples[i]),
                "train-loss": float(losses[i]),
                "learning-rate": float(rates[i]),
            }
            if config.get("final-loss"):
                load_arrays(module, after)
                metrics["final-loss"] = evaluate(module, examples[i], self.trainer.loss)["loss"]
            replies.append(_reply(message, context, after, metrics, controls[i], settings[i]))
            if replies[-1].has_content() and tunes(self.trainer.maker(settings[i])):
                keep(config, context, float(rates[i]))
        return replies

    def _loop(
        self,
        module: nn.Module,
        start: Tensors,
        data: Examples,
        rows: Tensor,
        clients: Sequence[LocalTraining],
        correction: Tensors,
    ) -> tuple[Tensors, Tensor, Tensor]:
        """Parameters, mean losses and last learning rates, each with a client dimension."""
        module.train()
        settings = clients[0]  # they differ in the learning rate alone
        optimizer = self._functional(settings)
        device = next(iter(start.values())).device

        def loss_of(params: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
            return self.trainer.loss(functional_call(module, params, (inputs,)), targets)

        def step(
            params: Tensors, state: object, inputs: Tensor, targets: Tensor, correction: Tensors
        ) -> tuple[Tensors, object, Tensor]:
            grads, loss = grad_and_value(loss_of)(params, inputs, targets)
            grads = grads | {name: grads[name] + term for name, term in correction.items()}
            if mu := settings.proximal_mu:
                grads = {name: g + mu * (params[name] - start[name]) for name, g in grads.items()}
            if settings.max_grad_norm:
                grads = _clipped(grads, settings.max_grad_norm)
            params, state = optimizer.update(params, grads, state)
            return params, state, loss

        count, steps, _ = rows.shape
        params = {name: w.expand(count, *w.shape).clone() for name, w in start.items()}
        rates = torch.tensor([client.lr for client in clients], dtype=torch.float64, device=device)
        state = vmap(optimizer.init)(params, rates)
        total = torch.zeros(count, dtype=torch.float64, device=device)
        for at in range(steps):
            inputs, targets = data.inputs[rows[:, at]], data.targets[rows[:, at]]
            batch = inputs.to(device), targets.to(device)
            params, state, loss = vmap(step)(params, state, *batch, correction)
            total += loss.detach()
        if tunes(self.trainer.maker(settings)):
            rates = vmap(optimizer.learning_rate)(state)
        return params, total / steps, rates

    def _functional(self, settings: LocalTraining) -> FunctionalOptimizer:
        make = self.trainer.maker(settings)
        assert isinstance(make, LocalOptimizer)
        assert make.functional
        return make.functional(settings)


def _one_dataset(examples: Sequence[Examples]) -> tuple[Examples, list[int]]:
    """A dataset with the rows of all clients, and where those of each begin in it."""
    first = examples[0]
    if all(e.inputs is first.inputs and e.targets is first.targets for e in examples):
        return first, [0] * len(examples)
    sizes = [len(e.inputs) for e in examples]
    joined = (torch.cat([e.inputs for e in examples]), torch.cat([e.targets for e in examples]))
    return Examples(*joined), [sum(sizes[:i]) for i in range(len(sizes))]


def _rows(examples: Examples, settings: LocalTraining, rng: np.random.Generator) -> Tensor:
    rng.integers(2**63)  # the single client's draw for dropout
    return examples.at(torch.from_numpy(settings.batches(len(examples), rng)))


def _clipped(grads: Tensors, max_norm: float) -> Tensors:
    norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    return {name: g * factor for name, g in grads.items()}


def _reply(
    message: Message,
    context: Context,
    arrays: Arrays,
    metrics: dict[str, int | float],
    control: ControlVariates | None,
    settings: LocalTraining,
) -> Message:
    try:
        return trained(message, context, arrays, metrics, control, settings)
    except FloatingPointError as error:
        return Message(Error(_RAISED, str(error)), reply_to=message)


def check_mode(mode: str) -> None:
    """Raise ``ValueError`` unless ``mode`` is one that ``Cohort.of`` knows."""
    if mode not in _MODES:
        raise ValueError(f"vectorize={mode!r}: must be one of {', '.join(_MODES)}.")


def _mods(app: ClientApp) -> bool:
    return bool(getattr(app, "_mods", ()))  # Flower gives no other way to ask


def _obstacle(trainer: Trainer | None, context: Context) -> str:
    """Why the trainer's clients cannot be trained as a group; empty if they can."""
    if trainer is None:
        return "the ClientApp is not one of fedexp.clients.client_app"
    optimizer = trainer.optimizer
    if optimizer and not (isinstance(optimizer, LocalOptimizer) and optimizer.functional):
        return f"the local optimizer {trainer.optimizer} has no functional form"
    for module in trainer.module(context).modules():
        if any(True for _ in module.buffers(recurse=False)):
            return f"{type(module).__name__} keeps buffers"
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.RNNBase):
            return f"{type(module).__name__} draws or runs outside vmap"
        if any(not p.requires_grad for p in module.parameters(recurse=False)):
            return f"{type(module).__name__} has frozen parameters"
    return ""


def _pays(trainer: Trainer, context: Context) -> bool:
    module = trainer.module(context)
    if next(module.parameters()).device.type != "cpu":
        return True
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
    return not convolves and sum(p.numel() for p in module.parameters()) <= _TINY
