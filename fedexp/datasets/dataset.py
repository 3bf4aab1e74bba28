"""The one form in which every source hands over its data."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test tensors, shared by all clients of a process; clients index, never write.

    Attributes:
        train: inputs ``[num_examples, ...]`` (float32, or int64 tokens) and targets
            ``[num_examples]`` (int64 classes, or floats in a regression).
        test: the same for the global test set.
        num_classes: 0 in a regression.
        keys: natural client of each training row, integers ``0 … K-1``, or None.
        names: what the keys stand for, ``[K]``; empty if they have no names.
    """

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    num_classes: int
    keys: np.ndarray | None = None
    names: tuple[str, ...] = ()
