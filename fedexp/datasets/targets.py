"""Targets of a user's own data: which are classes, and which are values of a regression.

- Integers and truth values are classes. If they count from 0 they stay as they are. Others, such
  as -1 and +1 or 1 to K, are numbered in sorted order, and so is text.
- Rows of zeros with a single 1 are classes in one-hot form.
- Floats are values. A few different whole numbers as floats could be both: they raise an error
  unless ``kind`` says which.
- The shape ``[n, 1]`` counts as ``[n]``.
"""

import logging
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from fedexp.datasets.dealing import Array
from fedexp.datasets.inputs import array_of

KINDS = ("auto", "classes", "values")
_FEW = 20  # up to so many different whole floats look like classes
_GAPS = 1000  # classes from 0 below this may have gaps: rare ones need not be in the data
_SAY = "Say targets='classes' or targets='values' (--targets)."


class Targets(NamedTuple):
    """Training and test targets, the number of classes (0 for values) and the classes' names."""

    train: torch.Tensor
    test: torch.Tensor
    num_classes: int = 0
    names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, train: Array, test: Array, num_classes: int = 0, names: tuple[str, ...] = ()
    ) -> Self:
        """From new arrays, of int64 or float32."""
        return cls(torch.from_numpy(train), torch.from_numpy(test), num_classes, names)


def targets_of(y_train: Any, y_test: Any, kind: str = "auto") -> Targets:
    """Convert targets to int64 classes from 0, or to float32 values; the module has the rules.

    Args:
        y_train: one target per row.
        y_test: as ``y_train``.
        kind: ``classes``, ``values``, or ``auto`` to decide by the rules.

    Raises:
        ValueError: several targets in a row, missing ones, or what could be both kinds.
    """
    if kind not in KINDS:
        raise ValueError(f"from_arrays(targets={kind!r}): must be one of {', '.join(KINDS)}.")
    train, test = (_column(n, y) for n, y in (("y_train", y_train), ("y_test", y_test)))
    if train.ndim > 1 or test.ndim > 1:
        return _from_one_hot(train, test, kind)
    kinds = {_kind(y) for y in (train, test)}
    if len(kinds) > 1:
        raise ValueError(
            f"from_arrays(y_test={test.dtype}): y_train is {train.dtype}. Save both alike."
        )
    if kinds == {"text"}:
        return _classes(train, test, kind)
    if kinds == {"float"}:
        _check_floats(train, test, kind)
    if kind == "values" or (kind == "auto" and kinds == {"float"}):
        return Targets.of(_float32("y_train", train), _float32("y_test", test))
    return _classes(_int64("y_train", train), _int64("y_test", test), kind)


def _int64(name: str, y: Array) -> Array:
    if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"from_arrays({name}={y.dtype}): holds {y.max()}, beyond 64 bits with a sign. "
            "Number the classes from 0, or save them as text."
        )
    return y.astype(np.int64)


def _float32(name: str, y: Array) -> Array:
    most = np.finfo(np.float32).max
    if y.dtype.kind == "f" and np.abs(y).max() > most:
        raise ValueError(
            f"from_arrays({name}={y.dtype}): holds values beyond {most:.1e}, the largest of "
            "float32. Scale the targets."
        )
    return y.astype(np.float32)


def _column(name: str, values: Any) -> Array:
    y = array_of(name, values)
    while y.ndim > 1 and y.shape[-1] == 1:
        y = y[..., 0]
    if y.dtype.kind == "O":
        y = np.array(y.tolist())  # its numbers, if it holds nothing else
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind not in "fiubU":
        raise ValueError(
            f"from_arrays({name}={y.dtype}): must be numbers or text, without a missing one. "
            "Leave rows without a target out."
        )
    missing = np.isin(y, ("", "nan")) if y.dtype.kind == "U" else ~np.isfinite(y)
    if missing.any():
        raise ValueError(
            f"from_arrays({name}): {np.count_nonzero(missing)} of {y.size} targets are missing, "
            "NaN or infinite. Leave these rows out."
        )
    return y


def _kind(y: Array) -> str:
    return {"f": "float", "U": "text"}.get(y.dtype.kind, "integer")


def _from_one_hot(train: Array, test: Array, kind: str) -> Targets:
    for name, y in (("y_train", train), ("y_test", test)):
        number = y.ndim == 2 and y.dtype.kind in "fiub" and kind != "values"
        if not (number and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()):
            raise ValueError(
                f"from_arrays({name}={y.shape}): must be one target per row, or classes with a "
                "single 1 per row (one-hot). Choose one column."
            )
    num_classes = train.shape[1]
    if test.shape[1] != num_classes:
        raise ValueError(
            f"from_arrays(y_test={test.shape}): must have the {num_classes} columns of y_train."
        )
    logging.getLogger("flwr").info("Targets: %d one-hot columns are as many classes", num_classes)
    return Targets.of(train.argmax(1), test.argmax(1), num_classes)


def _check_floats(train: Array, test: Array, kind: str) -> None:
    values = np.unique(np.concatenate([train, test]))
    whole = bool((values == np.rint(values)).all())
    some = ", ".join(f"{value:g}" for value in values[:3])
    if kind == "classes" and not (whole and np.abs(values).max() < 1 << 53):
        raise ValueError(
            f"from_arrays(targets='classes'): y_train holds {some}, ... which are no whole "
            "numbers. Use targets='values' (--targets values)."
        )
    if kind == "auto" and whole and len(values) <= _FEW:
        raise ValueError(
            f"from_arrays(y_train={train.dtype}): {len(values)} different whole numbers ({some}, "
            f"...) may be classes or values. {_SAY}"
        )


def _classes(train: Array, test: Array, kind: str) -> Targets:
    both = np.concatenate([train, test])
    found = np.unique(both)
    if kind == "values":
        raise ValueError("from_arrays(targets='values'): y_train is text. Use targets='classes'.")
    if len(found) == 1:
        raise ValueError(
            f"from_arrays(y_train): all targets are {found[0]}: one class. Give at least two."
        )
    if kind == "auto" and len(found) > _FEW and 2 * len(found) > len(both):
        raise ValueError(
            f"from_arrays(y_train={train.dtype}): {len(found)} different targets in {len(both)} "
            f"rows do not look like classes. {_SAY}"
        )
    if found.dtype.kind == "i" and found[0] == 0 and found[-1] < max(_GAPS, 2 * len(found)):
        return Targets.of(train, test, int(found[-1]) + 1)
    names = tuple(str(value) for value in found)
    logging.getLogger("flwr").info(
        "Targets: %d classes, in sorted order %s", len(names), _listed(names)
    )
    numbers = np.searchsorted(found, train), np.searchsorted(found, test)
    return Targets.of(*numbers, len(names), names)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, ..., {names[-1]}"
