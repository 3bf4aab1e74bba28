"""A group of clients trained at once: the local loop with a client dimension in front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor
from torch.func import vmap

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.clients.augmented import BatchChanges
from fedexp.clients.client import Client, client_of
from fedexp.clients.client_round import ClientRound
from fedexp.clients.data import Examples, batch_rows
from fedexp.clients.groups.admission import MOST, clients_at_once, obstacle_to, unlike
from fedexp.clients.groups.chain import Chain
from fedexp.clients.groups.stacked import StackedObjective, losses_of
from fedexp.clients.local_optimizers import LocalOptimizer
from fedexp.clients.optimizers import Functional, FunctionalSGD, Tensors
from fedexp.clients.settings import ClientSettings
from fedexp.simulation.flower.client_apps import has_mods
from fedexp.wire import ClientResult


@dataclass(frozen=True, eq=False)
class ClientGroup:
    """Trains groups of clients of one ``Client`` in one go.

    Each client takes the same batches as alone; results agree to float tolerance.

    Attributes:
        client: the model, data, optimizer and loss that all of them have.
        size: clients trained together. It depends on the model alone, so that no result depends
            on the workers.
    """

    client: Client
    size: int = MOST

    @classmethod
    def of(cls, app: ClientApp, mode: str, context: Context) -> ClientGroup | None:
        """The group of ``app``, or None where clients run one by one; see ``tried``."""
        return cls.tried(app, mode, context)[0]

    @classmethod
    def tried(cls, app: ClientApp, mode: str, context: Context) -> tuple[ClientGroup | None, str]:
        """The group of ``app``; or None, and what a group would compute otherwise if that is why.

        Args:
            app: any ClientApp; only those of ``client_app`` can be vectorised.
            mode: ``off``; ``on``; or ``auto``, which takes small models without convolutions on
                a CPU and every model that can on a GPU.
            context: of the node on whose data a group is tried out.

        Raises:
            ValueError: ``on`` for clients that cannot be vectorised.
        """
        if mode == "off":
            return None, ""
        client = client_of(app)
        obstacle = "the ClientApp has mods" if has_mods(app) else obstacle_to(client, context)
        if not obstacle and context.run_config.get("local-epochs"):
            obstacle = "local-epochs gives clients unequally many steps"
        if mode == "on" and client and not (obstacle or cls(client).takes(context.run_config)):
            name = context.run_config.get("local-optimizer")
            obstacle = f"the local optimizer {name} has no functional form"
        size, found = 0, ""
        if client and not obstacle:
            size = clients_at_once(client.module(context)) or (MOST if mode == "on" else 0)
            found = unlike(client, context) if size else ""
        if mode == "on" and (obstacle or found):
            raise ValueError(f"vectorize='on': {obstacle or found}. Use auto.")
        return (cls(client, size) if client and size and not found else None), found

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether the local optimizer has a functional form for all of a round's local steps."""
        settings = ClientSettings.of(config)
        make = self.client.maker(settings)
        # Unequally many steps, or models that do not begin alike.
        if settings.num_epochs or config.get(keys.PRIVATE_LAYERS):
            return False
        if not isinstance(make, LocalOptimizer) or make.functional is None:
            return False
        if make.keeps == "state" and config.get(keys.BETWEEN_ROUNDS) == "carry":
            return False  # a group keeps rates alone
        return not (make.tuning and make.tuning().is_due(config))

    def fit(
        self,
        config: Mapping[str, Any],
        arrays: Arrays,
        content: RecordDict,
        contexts: Sequence[Context],
    ) -> list[ClientResult]:
        """``Client.fit`` of every context; where that would raise, the result is refused."""
        module = self.client.module(contexts[0])
        begun = [
            ClientRound(self.client, module, config, arrays, content, context)
            for context in contexts
        ]
        params, losses, rates = self._loop(begun)
        after = {name: p.contiguous().cpu().numpy() for name, p in params.items()}
        results: list[ClientResult] = []
        for i, (one, loss, rate) in enumerate(
            zip(begun, losses.tolist(), rates.tolist(), strict=True)
        ):
            try:
                results.append(one.result({name: x[i] for name, x in after.items()}, loss, rate))
            except FloatingPointError as error:
                results.append(ClientResult.of_error(one.context.node_id, error))
        return results

    @torch.no_grad()
    def _loop(self, begun: Sequence[ClientRound]) -> tuple[Tensors, Tensor, Tensor]:
        """Parameters, mean losses and last learning rates, each with a client dimension."""
        first = begun[0]  # the others' settings differ in the learning rate alone
        module, settings, count = first.module, first.settings, len(begun)
        module.train()
        device = next(module.parameters()).device
        start = {k: torch.tensor(v, device=device) for k, v in first.before.items()}
        batches = _batches(begun, device)
        corrections = [one.control.correction(module) for one in begun if one.control]
        correction = {k: torch.stack([c[k] for c in corrections]) for k in (*corrections, {})[0]}
        make = cast(LocalOptimizer, first.make)  # see ``takes``
        schedule = settings.rates()
        optimizer = cast(Functional, make.functional)(settings)
        plain = isinstance(optimizer, FunctionalSGD) and settings.plain and not correction
        if plain and (chain := Chain.of(module, self.client.loss)):
            params, total = chain.descend(
                start, batches, rates=schedule, decay=settings.weight_decay
            )
            return params, total / settings.num_steps, torch.full_like(total, schedule[-1])
        init, update = optimizer.init, optimizer.update
        if not optimizer.stacked:
            init, update = vmap(init), vmap(update)
        losses_at = losses_of(module, self.client.loss)
        objective = StackedObjective(losses_at, settings, start, correction)
        params = {name: w.expand(count, *w.shape) for name, w in start.items()}
        rates = torch.tensor([x.settings.lr for x in begun], dtype=torch.float64, device=device)
        state = init(params, rates)
        total = torch.zeros(count, dtype=torch.float64, device=device)
        for lr, batch in zip(schedule, batches, strict=True):
            grads, losses = objective(params, *batch)
            if optimizer.same_batch:
                state["grads"], _ = objective(state["params"], *batch)
            if optimizer.needs_loss:
                state["loss"] = losses.double()
            if isinstance(optimizer, FunctionalSGD):
                update = optimizer.at(lr).update
            elif settings.rate_varies:
                state["lr"] = torch.full_like(rates, lr)
            params, state = update(params, grads, state)
            total += losses
        if make.adapts_lr:
            rates = vmap(optimizer.learning_rate)(state)
        elif settings.rate_varies:
            rates.fill_(schedule[-1])
        return params, total / settings.num_steps, rates


def _batches(begun: Sequence[ClientRound], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of every step, with a client dimension."""
    data, offsets = _one_dataset([one.examples for one in begun])
    rows = torch.stack(
        [
            batch_rows(one.examples, one.settings, one.rng) + offset
            for one, offset in zip(begun, offsets, strict=True)
        ]
    )  # (clients, steps, batch)
    changes = BatchChanges.of(begun[0].settings, [one.rng for one in begun])
    for step, at in enumerate(rows.unbind(1)):
        inputs, targets = (x.to(device) for x in data.rows_at(at.flatten()))
        inputs = inputs.view(*at.shape, *inputs.shape[1:])
        if changes:
            inputs = changes(inputs, step)
        yield inputs, targets.view(*at.shape, *targets.shape[1:])


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
