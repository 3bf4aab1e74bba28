"""The one form in which every source hands over its data."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedexp.datasets.parts import Array


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test tensors, shared by all clients of a process; clients index, never write.

    Attributes:
        train: inputs ``[num_examples, ...]`` (float32, or uint8 tokens) and targets
            ``[num_examples]`` (int64 classes, or floats in a regression).
        test: the same for the global test set.
        num_classes: 0 in a regression.
        keys: natural client of each training row, integers ``0 … K-1``, or None.
        names: what the keys stand for, ``[K]``; empty if they have no names.
    """

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    num_classes: int
    keys: Array | None = None
    names: tuple[str, ...] = ()


def from_arrays(
    x_train: Any, y_train: Any, x_test: Any, y_test: Any, *, keys: Any = None
) -> Dataset:
    """A dataset of the user's own arrays or tensors.

    Args:
        x_train: ``[num_examples, ...]``. uint8 is taken for grey or colour images: scaled to
            [0, 1], and given a channel axis if there is none. All else becomes float32.
        y_train: ``[num_examples]``, integer classes from 0, or floats for a regression.
        x_test: as ``x_train``.
        y_test: as ``y_train``.
        keys: natural client of each training row, of any type that sorts.

    Raises:
        ValueError: lengths that differ.
    """
    train, test = _pair("train", x_train, y_train), _pair("test", x_test, y_test)
    is_regression = train[1].is_floating_point()
    num_classes = 0 if is_regression else int(max(train[1].max(), test[1].max())) + 1
    if keys is None:
        return Dataset(train, test, num_classes)
    names, number = np.unique(np.asarray(keys), return_inverse=True)
    if len(number) != len(train[1]):
        raise ValueError(f"from_arrays(keys=[{len(number)}]): must be one per training row.")
    return Dataset(train, test, num_classes, number, tuple(map(str, names)))


def from_torch(train: Any, test: Any, *, keys: Any = None) -> Dataset:
    """A dataset of two map-style ``torch.utils.data.Dataset`` of (input, target) pairs."""
    return from_arrays(*_stacked(train), *_stacked(test), keys=keys)


def _stacked(pairs: Sized) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [pairs[i] for i in range(len(pairs))]  # type: ignore[index]
    inputs, targets = zip(*rows, strict=True)
    return torch.stack([torch.as_tensor(x) for x in inputs]), torch.as_tensor(targets)


def _pair(name: str, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if len(x) != len(y):
        raise ValueError(
            f"from_arrays(y_{name}=[{len(y)}]): must be as long as x_{name}, {len(x)}."
        )
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
        x = x.unsqueeze(1) if x.ndim == 3 else x
    return x.float(), y.float() if y.is_floating_point() else y.long()
