"""Named arrays: the model as the server sees it."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""Array by name, in model order."""

Float64s = Mapping[str, NDArray[np.float64]]
"""Sums, updates and rule state by name, always float64."""

BLOCK = 1 << 14
"""Entries of a block that is small enough to stay in the cache during several operations."""

_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")


def trainable_names(arrays: Arrays) -> frozenset[str]:
    """Names of the arrays that a server step may move: floating point, and no batch-norm buffer.

    Buffers are the arrays whose name ends in ``running_mean``, ``running_var`` or
    ``num_batches_tracked``. These are PyTorch's names, and published apps use them too.

    Example:
        >>> import numpy as np
        >>> from fedexp.arrays import trainable_names
        >>> model = {"0.weight": np.zeros(2), "1.running_mean": np.zeros(2), "steps": np.array(7)}
        >>> sorted(trainable_names(model))
        ['0.weight']
    """
    return frozenset(
        name
        for name, x in arrays.items()
        if np.issubdtype(x.dtype, np.floating) and not name.endswith(_BUFFER_SUFFIXES)
    )


def has_batch_norm(arrays: Arrays) -> bool:
    """Whether ``arrays`` hold running statistics under PyTorch's names."""
    return any(name.endswith("running_var") for name in arrays)


class Quotient(Float64s):
    """Arrays divided by a number. Each is divided when it is read, so that no second model is held.

    Args:
        arrays: the numerators.
        divisor: the number, > 0.

    Example:
        >>> import numpy as np
        >>> from fedexp.arrays import Quotient
        >>> mean = Quotient({"w": np.array([2.0, 4.0])}, 2.0)
        >>> mean["w"].tolist()
        [1.0, 2.0]
    """

    def __init__(self, arrays: Float64s, divisor: float) -> None:
        self.arrays, self.divisor = arrays, divisor

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self.arrays[name] / self.divisor)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def sq_norm(arrays: Arrays) -> float:
    """``‖x‖²`` over all entries of all ``arrays``, summed in float64.

    Example:
        >>> import numpy as np
        >>> from fedexp.arrays import sq_norm
        >>> sq_norm({"weight": np.array([3.0]), "bias": np.array([4.0])})
        25.0
    """
    if isinstance(arrays, Quotient):
        # One division in place of one per entry; it needs no array of quotients.
        return sq_norm(arrays.arrays) / arrays.divisor**2
    return float(sum(_sq_norm(x) for x in arrays.values()))


def _sq_norm(x: NDArray[Any]) -> float:
    flat = np.ravel(x).astype(np.float64, copy=False)
    return float(flat @ flat)


def update_norm(before: Arrays, after: Arrays, trainable: Container[str]) -> float:
    """The norm ``‖Δᵢ‖`` of a client's update ``before - after``, over trainable arrays.

    It is infinite if its square is too large for float64.

    Args:
        before: ``w``, what the client got.
        after: ``wᵢ``, what it returned; names and shapes of ``before``.
        trainable: names that count.

    Example:
        >>> import numpy as np
        >>> from fedexp.arrays import update_norm
        >>> update_norm({"w": np.array([3.0, 4.0])}, {"w": np.zeros(2)}, trainable={"w"})
        5.0
    """
    with np.errstate(over="ignore"):
        # At least float32: a difference of two halves may not fit in a half.
        differences = {
            name: np.subtract(w, after[name], dtype=np.result_type(w.dtype, np.float32))
            for name, w in before.items()
            if name in trainable
        }
        return math.sqrt(sq_norm(differences))


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor ``sᵢ = min(1, C/‖Δᵢ‖)`` that clips an update to ``C = max_norm``.

    Server and workers must compute the same factor, so both call this function.

    Example:
        >>> from fedexp.arrays import clip_scale
        >>> clip_scale(norm=4.0, max_norm=1.0), clip_scale(norm=0.5, max_norm=1.0)
        (0.25, 1.0)
    """
    # An infinite norm keeps the factor 1. With 0 the update would vanish from the sums (or become
    # NaN, 0 · ∞), and nobody would notice that a client has diverged.
    return max_norm / norm if max_norm < norm < math.inf else 1.0


def moved(params: Arrays, direction: Float64s, step: float) -> Iterator[tuple[str, NDArray[Any]]]:
    """``w - step · d`` by name for each array of ``direction``, in the dtype of ``w``.

    It computes one array after the other, in blocks that fit in the cache, so that it never holds
    the float64 step of a whole model.

    Args:
        params: ``w``; not changed.
        direction: ``d``, names among those of ``params``.
        step: ``η``.

    Example:
        >>> import numpy as np
        >>> from fedexp.arrays import moved
        >>> new = dict(moved({"w": np.array([1.0])}, {"w": np.array([2.0])}, step=0.5))
        >>> new["w"].tolist()
        [0.0]
    """
    # A mean Σ/n is not formed: the step is divided by n in its place.
    over = direction.divisor if isinstance(direction, Quotient) else 1.0
    arrays = direction.arrays if isinstance(direction, Quotient) else direction
    for name, d in arrays.items():
        w = params[name]
        yield name, _moved(np.ravel(w), np.ravel(d), step / over).reshape(w.shape)


def _moved(w: NDArray[Any], d: NDArray[np.float64], step: float) -> NDArray[Any]:
    new = np.empty_like(w)
    for start in range(0, w.size, BLOCK):
        block = slice(start, start + BLOCK)
        change = d[block] * step
        np.subtract(w[block], change, out=change)
        new[block] = change
    return new


def check_alike(arrays: Arrays, expected: Arrays) -> None:
    """Raise ``ValueError`` unless both have the same names and shapes, and hold numbers."""
    if arrays.keys() != expected.keys():
        missing, extra = expected.keys() - arrays.keys(), arrays.keys() - expected.keys()
        raise ValueError(f"array names differ: missing {_few(missing)}, unexpected {_few(extra)}.")
    for name, want in expected.items():
        got = arrays[name]
        if got.shape != want.shape:
            raise ValueError(f"array {name!r} has shape {got.shape}, expected {want.shape}.")
        if got.dtype.kind not in "fiub":
            raise ValueError(f"array {name!r} has dtype {got.dtype}, expected {want.dtype}.")


def same(a: Arrays, b: Arrays) -> bool:
    """Whether both have the same names and numbers."""
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def cast_alike(arrays: Arrays, expected: Arrays) -> Arrays:
    """``arrays`` in the floating-point dtypes of ``expected``; too large values become infinite."""
    if all(x.dtype == expected[name].dtype or x.dtype.kind != "f" for name, x in arrays.items()):
        return arrays
    with np.errstate(over="ignore"):
        return {
            name: x.astype(expected[name].dtype)
            if x.dtype.kind == expected[name].dtype.kind == "f"
            else x
            for name, x in arrays.items()
        }


def first_non_finite(arrays: Arrays) -> str | None:
    """Name of the first array that holds NaN or infinity, or None."""
    return next((name for name, x in arrays.items() if not _is_finite(x)), None)


def _is_finite(x: NDArray[Any]) -> bool:
    if x.dtype.kind != "f":
        return True
    # A finite sum proves finite entries without a mask the size of the array; an overflowing
    # sum of finite entries is told apart by the slow test.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(x)) or np.isfinite(x).all())


def cast_like(value: NDArray[np.float64], like: NDArray[Any]) -> NDArray[Any]:
    """``value`` in the dtype and shape of ``like``; for integers it is rounded to the nearest one.

    Example:
        >>> import numpy as np
        >>> from fedexp.arrays import cast_like
        >>> cast_like(np.array([1.6]), like=np.array([0])).tolist()
        [2]
    """
    rounded = np.rint(value) if like.dtype.kind in "iub" else value
    return np.asarray(rounded).astype(like.dtype, copy=False).reshape(like.shape)


def _few(names: Iterable[str]) -> str:
    shown = sorted(names)
    return str(shown[:3])[:-1] + ", ...]" if len(shown) > 3 else str(shown)
