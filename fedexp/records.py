"""Arrays to Flower's records and back, without copies where none is needed."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedexp.arrays import Arrays
from fedexp.simulation.flower.lazy_arrays import ndarray_of, record_of

_HEADERS = {  # magic -> bytes of the header's length, its parser
    np.lib.format.magic(1, 0): (2, np.lib.format.read_array_header_1_0),
    np.lib.format.magic(2, 0): (4, np.lib.format.read_array_header_2_0),
}
_MAX_HEADER = 1 << 14  # bytes; NumPy itself reads no longer ones


R = TypeVar("R", ArrayRecord, MetricRecord, ConfigRecord)


def records_of(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """The records of one kind.

    Flower's own views (``content.array_records`` and the like) refer to themselves, which keeps
    a whole reply in memory until the garbage collector runs.
    """
    return {key: record for key, record in content.items() if isinstance(record, kind)}


def to_record(arrays: Arrays) -> ArrayRecord:
    """``arrays`` as a record that shares their memory; do not change them afterwards.

    Example:
        >>> import numpy as np
        >>> from fedexp.records import from_record, to_record
        >>> record = to_record({"bias": np.zeros(3, np.float32)})
        >>> record["bias"].shape, record["bias"].dtype
        ((3,), 'float32')
        >>> from_record(record)["bias"]
        array([0., 0., 0.], dtype=float32)
    """
    return record_of(arrays)


def num_bytes(content: RecordDict) -> int:
    """Bytes of the arrays in a message of this content."""
    records = records_of(content, ArrayRecord).values()
    return sum(_size(array) for record in records for array in record.values())


def _size(array: Array) -> int:
    own = ndarray_of(array)
    return int(own.nbytes) if own is not None else len(array.data)


def from_record(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Arrays of ``record`` without a copy; read-only.

    Raises:
        ValueError: an array is not in NumPy's .npy encoding.
    """
    return {name: _view(name, array) for name, array in record.items()}


def _view(name: str, array: Array) -> NDArray[Any]:
    own = ndarray_of(array)
    if own is None:
        return decoded(name, array.data)
    view = own.view()
    view.flags.writeable = False
    return view


def decoded(name: str, data: bytes) -> NDArray[Any]:
    """The array of this ``name`` in NumPy's .npy encoding, without a copy; read-only.

    Raises:
        ValueError: ``data`` is not that.
    """
    try:
        return _decode(memoryview(data))
    except Exception as error:  # NumPy's header parser raises a tokenizer's errors too
        raise ValueError(f"array {name!r} cannot be decoded: {error}.") from error


def _decode(data: memoryview) -> NDArray[Any]:
    """The array that lies in ``data``; whatever its header claims, no memory is taken."""
    magic = bytes(data[:8])
    if magic not in _HEADERS:
        raise ValueError("it is not in NumPy's .npy encoding, version 1 or 2")
    body = 8 + _HEADERS[magic][0]
    start = body + int.from_bytes(data[8:body], "little")
    if start > _MAX_HEADER:
        raise ValueError(f"its header claims {start} bytes")
    shape, fortran, dtype = _header(bytes(data[:start]))
    flat = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=4096)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype; a model's few headers come again with every client."""
    shape, fortran, dtype = _HEADERS[head[:8]][1](BytesIO(head[8:]))
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(length < 0 for length in shape):  # reshape would choose one to fit
        raise ValueError(f"its shape is {shape}")
    return shape, fortran, dtype
