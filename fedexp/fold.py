"""Sums over the clients of a round, in an order that no division of the work changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

_DOT = 1 << 13  # entries; BLAS sums longer vectors in threads, whose number would show
_BLOCK = 3 * _DOT  # entries of every client that are in the cache at once; measured
_PRODUCT = 1 << 18  # multiplications up to which BLAS takes one thread for a product of matrices

MOST_ENTRIES = _PRODUCT // 4
"""Of ``right`` of a ``Factored``: so four rows at least are multiplied at once."""


@dataclass(frozen=True, eq=False)
class Factored:
    """A client's matrix ``wᵢ = w - l r`` that is put together only where it is asked for.

    What a client has after one step along the gradient of a small batch: ``l`` and ``r`` are as
    small as the batch, and the matrix itself is never in memory.

    Attributes:
        start: ``w``, ``[rows, columns]``: the very array that was broadcast.
        left: ``l``, ``[rows, rank]``.
        right: ``r``, ``[rank, columns]``, of at most ``MOST_ENTRIES``.
    """

    start: NDArray[Any]
    left: NDArray[Any]
    right: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.start.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the matrix."""
        return self.start.dtype

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        out = np.empty(self.shape, self.dtype)
        rows = max(1, _BLOCK // self.shape[1])
        for row in range(0, self.shape[0], rows):
            self.difference(row * self.shape[1], out[row : row + rows])
        np.subtract(self.start, out, out=out)
        return out.astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: DTypeLike) -> NDArray[Any]:
        """The matrix, put together, in another dtype."""
        return self.__array__(dtype)

    def difference(self, lo: int, out: NDArray[Any]) -> None:
        """Write ``w - wᵢ`` from flat entry ``lo`` on, the first of a row, to whole rows ``out``."""
        rows, first = out.reshape(-1, self.shape[1]), lo // self.shape[1]
        step = max(1, _PRODUCT // self.right.size)  # how many threads there are must not show
        for i in range(0, len(rows), step):
            some = rows[i : i + step]
            left = self.left[first + i : first + i + len(some)]
            if len(some) == 1:  # of a vector BLAS takes threads much earlier
                np.add.reduce(left.T * self.right, axis=0, out=some[0])
            else:
                np.matmul(left, self.right, out=some)


class _Adds(Protocol):
    def __add__(self, other: Self, /) -> Self: ...


_T = TypeVar("_T", bound=_Adds)


def tree_sum(parts: Sequence[_T]) -> _T:
    """Sum by halves: that of the first half of ``parts`` plus that of the second.

    The rounding is that of this tree however the work is spread, as long as whoever sums a part
    of the list sums whole subtrees of it; and it grows with ``log n`` instead of ``n``.

    Raises:
        IndexError: ``parts`` is empty; there is no zero of an unknown type.
    """
    if len(parts) < 2:
        return parts[0]
    middle = len(parts) // 2
    return tree_sum(parts[:middle]) + tree_sum(parts[middle:])


def fold_update(
    w: NDArray[Any],
    columns: Sequence[NDArray[Any] | Factored],
    factors: Sequence[float],
    sq_norms: NDArray[np.float64],
    out: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """``out + Σ pᵢ sᵢ (w - wᵢ)``, in the memory of ``out``; adds ``‖w - wᵢ‖²`` to ``sq_norms``.

    Args:
        w: what every client got.
        columns: ``wᵢ``, what each returned, of the shape of ``w``.
        factors: ``pᵢ sᵢ``; a client of factor 0 is left out.
        sq_norms: ``[clients]``.
        out: float64, of the shape of ``w``; nothing if None.
    """
    before = np.ravel(w)
    block = _block(w)
    # A client that is left out keeps its row of zeros: not even its NaN counts.
    rows = [(i, _flat(x, w, block)) for i, x in enumerate(columns) if factors[i]]
    # A merged reply's sums are read-only; only those are copied.
    result = (
        np.empty(before.size) if out is None else np.require(out, requirements=["C", "W"]).ravel()
    )
    # The difference of two float32 is taken in float32, where it is exact or nearly so, and
    # twice as fast as a mixed-precision subtraction; all sums are float64.
    shape = len(columns), min(block, before.size)
    differences = np.zeros(shape, np.result_type(w.dtype, np.float32))
    terms = np.empty(shape)
    weights = np.array(factors)[:, None]
    for start in range(0, before.size, block):
        part = before[start : start + block]
        difference, term = differences[:, : part.size], terms[:, : part.size]
        for i, row in rows:
            if isinstance(row, Factored):
                row.difference(start, difference[i])
                continue
            x = row[start : start + block]
            # Without dtype, float16 would lose digits and unsigned integers would wrap around.
            np.subtract(part, x, difference[i], dtype=difference.dtype)
        term[...] = difference
        for lo in range(0, part.size, _DOT):
            piece = term[:, lo : lo + _DOT]
            sq_norms += np.vecdot(piece, piece)
        term *= weights
        sums = result[start : start + block]
        np.add(_tree_sum_in_place(term), 0.0 if out is None else sums, out=sums)
    return result.reshape(w.shape)


def _block(w: NDArray[Any]) -> int:
    """Entries at a time: whole rows of a matrix, unless they are very long."""
    width = w.shape[-1] if w.ndim > 1 else 1
    return _BLOCK // width * width if 0 < width <= _BLOCK else _BLOCK


def _flat(x: NDArray[Any] | Factored, w: NDArray[Any], block: int) -> NDArray[Any] | Factored:
    if isinstance(x, Factored) and x.start is w and block % w.shape[1] == 0:
        return x
    return np.ravel(np.asarray(x))


def _tree_sum_in_place(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """``tree_sum`` of the rows; overwrites them."""
    if len(rows) < 2:
        return np.asarray(rows[0])
    middle = len(rows) // 2
    result: NDArray[np.float64] = _tree_sum_in_place(rows[:middle])
    result += _tree_sum_in_place(rows[middle:])
    return result
