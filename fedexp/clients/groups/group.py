"""A group of clients trained at once: the local loop with a client dimension in front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.func import vmap

from fedexp.arrays import Arrays
from fedexp.clients.causes import cause
from fedexp.clients.client_app import has_mods, trainer_of
from fedexp.clients.control import ControlVariates
from fedexp.clients.functional_optimizers import FunctionalOptimizer, FunctionalSGD, Tensors
from fedexp.clients.groups.admission import MOST, check_mode, group_size, obstacle_to, unlike
from fedexp.clients.groups.chain import Chain
from fedexp.clients.groups.stacked import StackedObjective, losses_of
from fedexp.clients.local_optimizers import LocalOptimizer
from fedexp.clients.module import load_arrays
from fedexp.clients.trainer import Trainer, tunes
from fedexp.clients.training import Examples, LocalTraining, evaluate
from fedexp.clients.tuned_rates import keep, started
from fedexp.clients.usable import usable
from fedexp.wire import ClientResult


@dataclass(frozen=True, eq=False)
class Cohort:
    """Trains groups of clients of one ``Trainer`` in one go.

    Each client takes the same batches as alone; results agree to float tolerance.

    Attributes:
        trainer: the clients' model, data, optimizer and loss.
        size: clients trained together. It depends on the model alone, so that no result depends
            on the workers.
    """

    trainer: Trainer
    size: int = MOST

    @classmethod
    def of(cls, app: ClientApp, mode: str, context: Context) -> Cohort | None:
        """The cohort of ``app``, or None where clients run one by one; see ``tried``."""
        return cls.tried(app, mode, context)[0]

    @classmethod
    def tried(cls, app: ClientApp, mode: str, context: Context) -> tuple[Cohort | None, str]:
        """The cohort of ``app``; or None, and what a group would compute otherwise if that is why.

        Args:
            app: any ClientApp; only those of ``client_app`` can be vectorised.
            mode: ``off``; ``on``; or ``auto``, which takes small models without convolutions on
                a CPU and every model that can on a GPU.
            context: of the node on whose data a group is tried out.

        Raises:
            ValueError: unknown mode, or ``on`` for clients that cannot be vectorised.
        """
        check_mode(mode)
        if mode == "off":
            return None, ""
        trainer = trainer_of(app)
        obstacle = "the ClientApp has mods" if has_mods(app) else obstacle_to(trainer, context)
        if mode == "on" and trainer and not (obstacle or cls(trainer).takes(context.run_config)):
            name = context.run_config.get("local-optimizer")
            obstacle = f"the local optimizer {name} has no functional form"
        size, found = 0, ""
        if trainer and not obstacle:
            size = group_size(trainer.module(context)) or (MOST if mode == "on" else 0)
            found = unlike(trainer, context) if size else ""
        if mode == "on" and (obstacle or found):
            raise ValueError(f"vectorize='on': {obstacle or found}. Use auto.")
        return (cls(trainer, size) if trainer and size and not found else None), found

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether the local optimizer of these settings has a functional form."""
        make = self.trainer.maker(LocalTraining.of(config))
        return isinstance(make, LocalOptimizer) and make.functional is not None

    def fit(
        self,
        config: Mapping[str, Any],
        arrays: Arrays,
        content: RecordDict,
        contexts: Sequence[Context],
    ) -> list[ClientResult]:
        """``Trainer.fit`` of every context; where that would raise, the result is refused."""
        trainer = self.trainer
        settings = [started(config, context) for context in contexts]
        module = trainer.module(contexts[0])
        examples = [trainer.data(context)[0] for context in contexts]
        data, offsets = _one_dataset(examples)
        rows = torch.stack(
            [
                _rows(e, settings[0], trainer.generator(config, c)) + offset
                for e, c, offset in zip(examples, contexts, offsets, strict=True)
            ]
        )  # (clients, steps, batch)
        device = next(module.parameters()).device
        start = {k: torch.tensor(v, device=device) for k, v in arrays.items()}
        controls = [
            ControlVariates.of(content, config, c, len(e))
            for c, e in zip(contexts, examples, strict=True)
        ]
        corrections = [c.correction(module) for c in controls if c]
        correction = {k: torch.stack([c[k] for c in corrections]) for k in (*corrections, {})[0]}
        params, losses, rates = self._loop(module, start, data, rows, settings, correction)
        after = {name: p.contiguous().cpu().numpy() for name, p in params.items()}
        reported = zip(losses.tolist(), rates.tolist(), strict=True)
        tuned = tunes(trainer.maker(settings[0]))
        results: list[ClientResult] = []
        for i, (context, (loss, rate)) in enumerate(zip(contexts, reported, strict=True)):
            metrics = {"num-examples": len(examples[i]), "train-loss": loss, "learning-rate": rate}
            one = ClientResult(context.node_id, {k: v[i] for k, v in after.items()}, metrics)
            if config.get("final-loss"):
                load_arrays(module, one.arrays)
                metrics["final-loss"] = evaluate(module, examples[i], trainer.loss)["loss"]
            try:
                why = partial(cause, module, arrays, examples[i], trainer.loss)
                results.append(usable(one, arrays, context, controls[i], settings[i], why))
            except FloatingPointError as error:
                results.append(ClientResult.of_error(context.node_id, error))
                continue
            if tuned:
                keep(config, context, rate)
        return results

    @torch.no_grad()
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
        batches = _batches(data, rows, device)
        plain = isinstance(optimizer, FunctionalSGD) and settings.plain and not correction
        if plain and (chain := Chain.of(module, self.trainer.loss)):
            params, total = chain.descend(
                start, batches, lr=settings.lr, decay=settings.weight_decay
            )
            return params, total / settings.num_steps, torch.full_like(total, settings.lr)
        init, update = optimizer.init, optimizer.update
        if not optimizer.stacked:
            init, update = vmap(init), vmap(update)
        losses_at = losses_of(module, self.trainer.loss)
        objective = StackedObjective(losses_at, settings, start, correction)
        count, steps, _ = rows.shape
        params = {name: w.expand(count, *w.shape) for name, w in start.items()}
        rates = torch.tensor([client.lr for client in clients], dtype=torch.float64, device=device)
        state = init(params, rates)
        total = torch.zeros(count, dtype=torch.float64, device=device)
        for batch in batches:
            grads, losses = objective(params, *batch)
            if optimizer.same_batch:
                state["grads"], _ = objective(state["params"], *batch)
            params, state = update(params, grads, state)
            total += losses
        if tunes(self.trainer.maker(settings)):
            rates = vmap(optimizer.learning_rate)(state)
        return params, total / steps, rates

    def _functional(self, settings: LocalTraining) -> FunctionalOptimizer:
        make = self.trainer.maker(settings)
        assert isinstance(make, LocalOptimizer)
        assert make.functional
        return make.functional(settings)


def _batches(data: Examples, rows: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of every step, with a client dimension."""
    for at in rows.unbind(1):
        inputs, targets = (x.to(device) for x in data.rows_at(at.flatten()))
        yield inputs.view(*at.shape, *inputs.shape[1:]), targets.view(*at.shape, *targets.shape[1:])


def _one_dataset(examples: Sequence[Examples]) -> tuple[Examples, list[int]]:
    """A dataset with the rows of all clients, and where those of each begin in it."""
    first = examples[0]
    if all(e.inputs is first.inputs and e.targets is first.targets for e in examples):
        return first, [0] * len(examples)
    if len({(e.inputs.dtype, e.targets.dtype) for e in examples}) > 1:
        raise ValueError("clients hold numbers of different types.")  # joined, all would be one
    sizes = [len(e.inputs) for e in examples]
    joined = (torch.cat([e.inputs for e in examples]), torch.cat([e.targets for e in examples]))
    return Examples(*joined), [sum(sizes[:i]) for i in range(len(sizes))]


def _rows(examples: Examples, settings: LocalTraining, rng: np.random.Generator) -> Tensor:
    rng.integers(2**63)  # the single client's draw for dropout
    return examples.at(torch.from_numpy(settings.batches(len(examples), rng)))
