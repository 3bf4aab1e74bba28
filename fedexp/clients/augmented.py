"""Minibatches that are changed at random before a local step, alone and in groups of clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor

from fedexp.augmentation.choice import Augmentation, augmented
from fedexp.clients.arguments import one_line
from fedexp.clients.settings import ClientSettings, changes_of


@dataclass(frozen=True, eq=False)
class BatchChanges:
    """The augmentations of a client's minibatches, or of those of a group of clients.

    Attributes:
        text: that named them, for messages.
        changes: applied first to last.
        first_step: the global step index of the round's first step.
        generators: one, or one for each client of a group.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from fedexp.clients import ClientSettings
        >>> from fedexp.clients.augmented import BatchChanges
        >>> noisy = ClientSettings(augmentation="noise(scale=0.1)")
        >>> changes = BatchChanges.of(noisy, np.random.default_rng(0))
        >>> changes(torch.zeros(2, 3), 0).shape
        torch.Size([2, 3])
        >>> BatchChanges.of(ClientSettings(), np.random.default_rng(0)) is None
        True
    """

    text: str
    changes: tuple[Augmentation, ...]
    first_step: int
    generators: Generator | Sequence[Generator]

    @classmethod
    def of(
        cls, settings: ClientSettings, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> Self | None:
        """Those of ``settings``; None if there are none, and then nothing is drawn.

        Args:
            settings: of the client, or of the first of a group.
            rng: of the client, or of each client of a group. One number of it seeds the
                augmentations. Batches are drawn before, so that they are those of a client that
                augments nothing.
        """
        changes = changes_of(settings.augmentation) if settings.augmentation else ()
        if not changes:
            return None
        if isinstance(rng, np.random.Generator):
            return cls(settings.augmentation, changes, settings.first_step, _seeded(rng))
        generators = [_seeded(one) for one in rng]
        return cls(settings.augmentation, changes, settings.first_step, generators)

    def __call__(self, inputs: Tensor, step: int) -> Tensor:
        """The changed inputs of a local step of the round, ``step = 0, 1, …``.

        Raises:
            ValueError: the inputs are no floating-point numbers, or an augmentation cannot take
                them.
        """
        if not inputs.is_floating_point():
            kind = str(inputs.dtype).removeprefix("torch.")
            raise ValueError(
                f"ClientSettings(augmentation={self.text!r}): changes floating-point inputs, these "
                f"are {kind}, as tokens are. Leave it out."
            )
        return augmented(inputs, self.changes, self.first_step + step, self.generators)


def check_augmentation(settings: ClientSettings, inputs: Tensor) -> None:
    """Raise ``ValueError`` unless the augmentations can change a batch of ``inputs``."""
    if changes := BatchChanges.of(settings, np.random.default_rng(0)):
        try:
            _check_same_form(inputs, changes(inputs, 0))
        except Exception as error:  # of any kind: it may be the user's code
            line = str(error) if isinstance(error, ValueError) else f"{one_line(error)}."
            owner = f"ClientSettings(augmentation={settings.augmentation!r}): "
            raise ValueError(line if line.startswith(owner) else owner + line) from error


def _check_same_form(before: Tensor, after: object) -> None:
    """Raise ``ValueError`` for what no model could take in the place of ``before``."""
    fits = isinstance(after, Tensor) and after.shape == before.shape and after.dtype == before.dtype
    if not fits:
        form = f"{after.dtype} {[*after.shape]}" if isinstance(after, Tensor) else repr(after)
        raise ValueError(
            f"gives {form} for a batch {before.dtype} {[*before.shape]}. Return one of its form."
        )


def _seeded(rng: np.random.Generator) -> Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**63)))
