"""Rows as a source gives them, before they are split into training and test rows."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from fedexp.datasets.dealing import Array
from fedexp.datasets.holdout import stratified


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs, targets and natural clients of some rows.

    Attributes:
        x: a DataFrame of the input columns, or an array ``[num_rows, ...]``.
        y: targets, ``[num_rows, ...]``; the names of the classes if ``class_names`` are given.
        keys: natural client of each row, ``[num_rows]``, or None.
        class_names: the classes, if their order is not that of the sorted names.
    """

    x: Any
    y: Array
    keys: Array | None = None
    class_names: tuple[str, ...] = ()

    def where(self, mask: Array) -> Self:
        """The rows that ``mask`` selects."""
        keys = None if self.keys is None else self.keys[mask]
        return replace(self, x=self.x[mask], y=self.y[mask], keys=keys)

    def split(self, fraction: float, kind: str, seed: int) -> tuple[Self, Self]:
        """Split into training and test rows, in one proportion for every client and class.

        Args:
            fraction: of the rows that become the test set, up to one row.
            kind: of the targets, as in `targets_of`; values have no classes to balance.
            seed: of the draw.

        Raises:
            ValueError: ``fraction`` is out of (0, 1), or no client has a row to test on.
        """
        if not 0 < fraction < 1:
            raise ValueError(
                f"data(test={fraction}): must be a fraction in (0, 1), or the test set."
            )
        keys = np.zeros(len(self.y), str) if self.keys is None else self.keys
        is_test = stratified(_codes(keys), _strata(self.y, kind), fraction, seed)
        if not is_test.any():
            raise ValueError(
                f"data(test={fraction}): no client has two rows, so none can test. Give more rows, "
                "or a test set."
            )
        return self.where(~is_test), self.where(is_test)


def _codes(values: Array) -> Array:
    if values.dtype.kind == "O":
        values = values.astype(str)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _strata(y: Array, kind: str) -> Array:
    """What the test set is balanced by: the classes, if there are any."""
    y = y.reshape(len(y), -1)
    is_one_hot = y.shape[1] > 1 and y.dtype.kind in "fiub"
    labels = y.argmax(1) if is_one_hot else y[:, 0]
    if kind == "values" or (kind == "auto" and labels.dtype.kind == "f"):
        return np.zeros(len(y), np.int64)
    return _codes(labels)
