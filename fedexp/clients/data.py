"""The examples of one client, and the minibatches that it goes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedexp.clients.augmented import BatchChanges
from fedexp.clients.module import layout_of
from fedexp.clients.settings import ClientSettings


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of a dataset that belong to one client. Clients share the dataset; none copies it.

    Attributes:
        inputs: ``[num_rows, ...]``, of the whole dataset.
        targets: ``[num_rows, ...]``: classes as integers, or values as floats.
        rows: indices of the client's rows; all of them if None.

    Raises:
        ValueError: inputs and targets are not tensors of one length.

    Example:
        >>> import torch
        >>> from fedexp.clients import Examples
        >>> x, y = torch.arange(8.0).view(4, 2), torch.arange(4)
        >>> mine = Examples(x, y, rows=torch.tensor([1, 3]))
        >>> len(mine), mine.take(torch.tensor([1]))
        (2, (tensor([[6., 7.]]), tensor([3])))
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor)):
            kinds = f"{type(self.inputs).__name__}, {type(self.targets).__name__}"
            raise ValueError(f"Examples({kinds}): must be tensors. Use torch.as_tensor.")
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"Examples(targets=[{len(self.targets)}]): must be as many as inputs, "
                f"{len(self.inputs)}."
            )

    def __len__(self) -> int:
        return len(self.targets if self.rows is None else self.rows)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets at ``positions`` among the client's own rows."""
        return self.rows_at(self.at(positions))

    def rows_at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets at ``rows`` of the whole dataset, a vector."""
        return self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def at(self, positions: Tensor) -> Tensor:
        """Rows of the dataset at ``positions`` among the client's own."""
        return positions if self.rows is None else self.rows[positions]


def batch_rows(examples: Examples, settings: ClientSettings, rng: np.random.Generator) -> Tensor:
    """Rows of the dataset in every step's batch, ``[num_steps, batch_size]``."""
    return examples.at(torch.from_numpy(settings.batches(len(examples), rng)))


def batches_of(
    model: nn.Module, examples: Examples, settings: ClientSettings, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of every step, on the model's device and in its memory layout."""
    device, layout = next(model.parameters()).device, layout_of(model)
    every = batch_rows(examples, settings, rng)
    changes = BatchChanges.of(settings, rng)
    for step, rows in enumerate(every):
        inputs, targets = (x.to(device) for x in examples.rows_at(rows))
        if changes:
            inputs = changes(inputs, step)
        yield layout(inputs), targets
