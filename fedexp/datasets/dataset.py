"""The data of a run: the one form that every source returns, and the checks that it passes."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedexp.datasets.dealing import Array
from fedexp.datasets.inputs import check_exact, check_finite, inputs_of
from fedexp.datasets.targets import targets_of

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test tensors. All clients of a process share them: they index and never write.

    Attributes:
        train: inputs ``[num_examples, ...]`` (floats, or tokens as uint8 or int64) and targets
            ``[num_examples]`` (int64 classes, or floats in a regression).
        test: the same for the global test set.
        num_classes: 0 in a regression.
        keys: natural client of each training row, integers ``0 … K-1``, or None.
        names: what the keys stand for, ``[K]``; empty if they have no names.
        class_names: what the classes stand for, ``[num_classes]``; empty if they are numbers.
        columns: names of the features; empty if they have no names.
        test_keys: natural client of each test row, numbered as ``keys``, -1 if it has no training
            rows; or None.

    Raises:
        ValueError: no rows, a test set of another shape, NaN, or targets out of range.

    Example:
        >>> import torch
        >>> from fedexp.datasets import Dataset
        >>> pair = torch.zeros(4, 2), torch.tensor([0, 1, 2, 1])
        >>> data = Dataset(train=pair, test=pair, num_classes=3)
        >>> data.train[0].shape, data.num_classes
        (torch.Size([4, 2]), 3)
    """

    train: Pair
    test: Pair
    num_classes: int
    keys: Array | None = None
    names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    test_keys: Array | None = None

    def __post_init__(self) -> None:
        for part, (x, y) in (("train", self.train), ("test", self.test)):
            if not len(x) == len(y) > 0:
                raise ValueError(
                    f"Dataset(y_{part}=[{len(y)}]): must be as long as x_{part}, {len(x)}, and "
                    "have a row."
                )
            check_finite(f"Dataset(x_{part})", x, self.columns)
            self._check_targets(f"y_{part}", y)
        (x, _), (x_test, _) = self.train, self.test
        if x_test.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"Dataset(x_test={list(x_test.shape)}): a row must have the shape of those of "
                f"x_train, {list(x.shape[1:])}. Use the same columns."
            )
        for name, keys, rows in (("keys", self.keys, x), ("test_keys", self.test_keys, x_test)):
            if keys is not None and keys.shape != (len(rows),):
                part = "training" if rows is x else "test"
                raise ValueError(
                    f"Dataset({name}={list(keys.shape)}): must be one per {part} row, {len(rows)}."
                )

    def _check_targets(self, name: str, y: torch.Tensor) -> None:
        if y.is_floating_point() != (not self.num_classes):
            kind = f"{self.num_classes} classes" if self.num_classes else "floats of a regression"
            raise ValueError(f"Dataset({name}={y.dtype}): must be {kind}.")
        if not y.isfinite().all():
            raise ValueError(f"Dataset({name}): holds NaN or infinity. Leave these rows out.")
        if self.num_classes and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"Dataset({name}={int(y.min())} to {int(y.max())}): classes must be 0 to "
                f"{self.num_classes - 1}, below num_classes."
            )

    def as_numbers(self) -> "Dataset":
        """The same dataset with integer inputs as float32.

        Raises:
            ValueError: float32 would round an integer.
        """
        if self.train[0].is_floating_point():
            return self
        for part, (x, _) in (("train", self.train), ("test", self.test)):
            check_exact(f"Dataset(x_{part})", x, self.columns)
        (x, y), (x_test, y_test) = self.train, self.test
        return replace(self, train=(x.float(), y), test=(x_test.float(), y_test))


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    keys: Any = None,
    test_keys: Any = None,
    impute: str = "",
    standardize: bool | Sequence[bool] = False,
    targets: str = "auto",
    columns: Sequence[str] = (),
) -> Dataset:
    """Make a dataset of the user's own arrays or tensors.

    Args:
        x_train: ``[num_examples, ...]``. uint8 with 3 or 4 dimensions are images, other integers
            are tokens or numbers, everything else becomes float32. `fedexp.datasets.inputs` has
            the rules.
        y_train: ``[num_examples]``. Integers, text or one-hot rows are classes, floats are values
            of a regression. `fedexp.datasets.targets` has the rules.
        x_test: as ``x_train``.
        y_test: as ``y_train``.
        keys: natural client of each training row, of any type that sorts.
        test_keys: natural client of each test row, if known.
        impute: ``mean``, ``median`` or ``zero`` of the training rows in place of missing inputs
            (NaN).
        standardize: whether, or which features, get mean 0 and standard deviation 1 over the
            training rows; of images, each channel.
        targets: ``classes`` or ``values`` if ``y_train`` could be both.
        columns: names of the features, for messages.

    Raises:
        ValueError: data that cannot be trained on; it names the array or column and the remedy.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import from_arrays
        >>> x, y = np.array([[1.0], [3.0], [5.0]]), np.array(["no", "yes", "no"])
        >>> data = from_arrays(x, y, x, y, standardize=True)
        >>> data.class_names, data.train[1].tolist(), data.train[0].mean().item()
        (('no', 'yes'), [0, 1, 0], 0.0)
    """
    train, test, num_classes, class_names = targets_of(y_train, y_test, targets)
    x, x_test = inputs_of(x_train, x_test, impute=impute, standardize=standardize, columns=columns)
    number, names, test_number = (None, (), None) if keys is None else _numbered(keys, test_keys)
    return Dataset(
        (x, train),
        (x_test, test),
        num_classes,
        keys=number,
        names=names,
        class_names=class_names,
        columns=tuple(columns),
        test_keys=test_number,
    )


def from_torch(
    train: Any, test: Any, *, keys: Any = None, impute: str = "", targets: str = "auto"
) -> Dataset:
    """Make a dataset of two map-style ``torch.utils.data.Dataset`` of (input, target) pairs.

    Args:
        train: the training rows.
        test: the test rows.
        keys: as in `from_arrays`.
        impute: as in `from_arrays`.
        targets: as in `from_arrays`.

    Raises:
        ValueError: as in `from_arrays`, and for rows that are not pairs.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from fedexp.datasets import from_torch
        >>> rows = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> from_torch(rows, rows).num_classes
        2
    """
    pairs = *stacked("train", train), *stacked("test", test)
    return from_arrays(*pairs, keys=keys, impute=impute, targets=targets)


def stacked(name: str, pairs: Sized) -> tuple[Array, Array]:
    """Inputs and targets of a map-style dataset, as two arrays."""
    rows = [pairs[i] for i in range(len(pairs))]  # type: ignore[index]
    if not rows or any(not isinstance(row, tuple | list) or len(row) != 2 for row in rows):
        raise ValueError(
            f"from_torch({name}=[{len(rows)}]): must have rows, each an (input, target) pair."
        )
    try:
        return np.stack([np.asarray(x) for x, _ in rows]), np.array(
            [np.asarray(y) for _, y in rows]
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"from_torch({name}): {error}. Give all inputs one shape, and all targets."
        ) from None


def _numbered(keys: Any, test_keys: Any) -> tuple[Array, tuple[str, ...], Array | None]:
    keys = np.asarray(keys)
    keys = keys[:, 0] if keys.shape[1:] == (1,) else keys
    if missing := np.count_nonzero(keys != keys):  # NaN alone is not itself
        raise ValueError(
            f"from_arrays(keys={keys.dtype}): {missing} of {keys.size} keys are missing (NaN). "
            "Leave these rows out, or give them a key."
        )
    try:
        names, number = np.unique(keys, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"from_arrays(keys={keys.dtype}): {error}. Make all keys text.") from None
    if test_keys is None:
        return number, tuple(map(str, names)), None
    known = {name: i for i, name in enumerate(names.tolist())}
    tests = np.array([known.get(key, -1) for key in np.asarray(test_keys).ravel().tolist()])
    return number, tuple(map(str, names)), tests
