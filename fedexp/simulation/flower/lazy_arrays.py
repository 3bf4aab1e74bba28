"""Flower's ``Array`` that keeps an ndarray and encodes it only if somebody asks.

Flower's own writes every array into bytes when it is made. A grid on the same machine never reads
these bytes. The subclass relies on three habits of ``Array``: its fields are plain attributes, its
``data`` may be a property, and Flower writes its class name into what it sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from functools import cache, lru_cache
from logging import WARNING
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.logger import log
from numpy.typing import NDArray

from fedexp.arrays import Arrays
from fedexp.simulation.flower.switch import is_plain

_STYPE = "numpy.ndarray"  # Flower's tag for bytes in NumPy's .npy format
_K = TypeVar("_K")
_V = TypeVar("_V")


class LazyArray(Array):
    """An ``Array`` that shares the memory of ``ndarray``; do not change that afterwards."""

    ndarray: NDArray[Any]

    def __init__(self, ndarray: NDArray[Any]) -> None:
        # Not by assignment: Flower looks at each attribute that is set, which takes three times as
        # long. Its own constructor tries three forms of arguments, and encodes.
        self.__dict__.update(
            dtype=_name(ndarray.dtype), shape=ndarray.shape, stype=_STYPE, ndarray=ndarray
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The .npy encoding, made on first use."""
        own = self.__dict__
        if "encoded" not in own:
            own["encoded"] = Array(np.asarray(own["ndarray"])).data
        return cast(bytes, own["encoded"])

    def numpy(self) -> NDArray[Any]:
        """A copy, as ``Array.numpy`` gives one."""
        return np.array(self.ndarray)

    def __reduce__(self) -> tuple[Any, ...]:
        return _lazy, (self.ndarray,)  # never the encoding, which may be there as well


_name = lru_cache(maxsize=64)(str)  # NumPy puts a dtype's name together anew each time


def _lazy(ndarray: NDArray[Any]) -> LazyArray:
    return LazyArray(ndarray)


# Flower writes the class name into an object's header and looks it up again on the other side,
# where what arrives is a plain Array.
LazyArray.__qualname__ = Array.__qualname__


def record_of(arrays: Arrays) -> ArrayRecord:
    """``arrays`` as a record that shares their memory, or holds encoded copies (see below).

    Uses ``LazyArray`` and ``put``. A record of 1 MB takes 5 us in place of 200. With
    ``FEDEXP_PLAIN=1``, or where ``Array`` is not as we know it, Flower encodes every array.
    """
    make = LazyArray if _is_lazy() else Array
    record = ArrayRecord()  # given arguments, its constructor would encode and copy every array
    put(record, ((name, make(np.asarray(x))) for name, x in arrays.items()))
    return record


def ndarray_of(array: Array) -> NDArray[Any] | None:
    """The ndarray that ``array`` was made of, if it still holds it."""
    return array.ndarray if isinstance(array, LazyArray) else None


def put(target: MutableMapping[_K, _V], items: Mapping[_K, _V] | Iterable[tuple[_K, _V]]) -> None:
    """Put ``items`` of the right types into one of Flower's records or contents.

    Uses ``TypedDict._data``, the dict inside. Flower itself checks the type of each key and value
    and, in a ``RecordDict``, looks up what was there before: 2 us an item in place of 0.1. Without
    it the items go through Flower's checks.
    """
    inside = None if is_plain() else target.__dict__.get("_data")
    (target if inside is None else inside).update(items)


@cache
def _is_lazy() -> bool:
    """Whether a ``LazyArray`` is used: it must read as Flower's own ``Array`` does."""
    if is_plain():
        return False
    sample = np.arange(2.0)
    try:
        ours, theirs = LazyArray(sample), Array(sample)
        fields = "dtype", "shape", "stype", "data", "object_id"
        changed = [name for name in fields if getattr(ours, name) != getattr(theirs, name)]
    except Exception as error:  # of whatever kind a later release raises
        changed = [type(error).__name__]
    if changed:
        log(WARNING, "Flower's Array has changed (%s): arrays are encoded at once.", changed)
    return not changed
