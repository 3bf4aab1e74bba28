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
"""Entries of a block that stays in the cache while several operations pass over it."""

_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")


def trainable_names(arrays: Arrays) -> frozenset[str]:
    """Names that a server step may move: floating point, and no batch-norm buffer.

    A buffer is a name that ends in ``running_mean``, ``running_var`` or ``num_batches_tracked``;
    PyTorch's own names, and the ones every published app uses.
    """
    return frozenset(
        name
        for name, x in arrays.items()
        if np.issubdtype(x.dtype, np.floating) and not name.endswith(_BUFFER_SUFFIXES)
    )


def has_batch_norm(arrays: Arrays) -> bool:
    """Whether there are running statistics among ``arrays``, by their PyTorch names."""
    return any(name.endswith("running_var") for name in arrays)


class Quotient(Float64s):
    """Arrays over a number, divided when asked for: a second model is never held.

    Args:
        arrays: the numerators.
        divisor: of them all, > 0.
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
    """``‖x‖²`` over all entries of all ``arrays``, summed in float64."""
    if isinstance(arrays, Quotient):
        return sq_norm(arrays.arrays) / arrays.divisor**2
    return float(sum(_sq_norm(x) for x in arrays.values()))


def _sq_norm(x: NDArray[Any]) -> float:
    flat = np.ravel(x).astype(np.float64, copy=False)
    return float(flat @ flat)


def update_norm(before: Arrays, after: Arrays, trainable: Container[str]) -> float:
    """``‖Δᵢ‖``, of the client that got ``before`` and returned ``after``.

    Infinite where its square is beyond float64.
    """
    with np.errstate(over="ignore"):
        differences = {
            name: np.subtract(w, after[name], dtype=np.result_type(w.dtype, np.float32))
            for name, w in before.items()
            if name in trainable
        }
        return math.sqrt(sq_norm(differences))


def clip_scale(before: Arrays, after: Arrays, trainable: Container[str], max_norm: float) -> float:
    """``sᵢ = min(1, C/‖Δᵢ‖)`` with ``C = max_norm``; server and clients must agree on it."""
    return (
        1.0 if math.isinf(max_norm) else scale_to(max_norm, update_norm(before, after, trainable))
    )


def scale_to(max_norm: float, norm: float) -> float:
    """``min(1, C/‖Δᵢ‖)`` of an update of length ``norm``."""
    # An infinite norm is not scaled to nothing: it has to show in the sums.
    return max_norm / norm if max_norm < norm < math.inf else 1.0


def moved(params: Arrays, direction: Float64s, step: float) -> Iterator[tuple[str, NDArray[Any]]]:
    """``w - step · d`` for each array of ``direction``, in the dtype of ``w``.

    One array after the other and a cache-sized block at a time, so that the float64 step of a
    whole model never exists.
    """
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
    """Raise ``ValueError`` unless both have the same names, shapes and kinds of number."""
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
    """``arrays`` in the dtypes of ``expected``; what overflows there is infinite."""
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
    """``value`` in the dtype of ``like``; integers are rounded to the nearest one."""
    rounded = np.rint(value) if like.dtype.kind in "iub" else value
    return np.asarray(rounded).astype(like.dtype, copy=False).reshape(like.shape)


def _few(names: Iterable[str]) -> str:
    shown = sorted(names)
    return str(shown[:3])[:-1] + ", ...]" if len(shown) > 3 else str(shown)
