"""Flower's ArrayRecords of clients on this machine, without their encoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedexp.arrays import Arrays
from fedexp.records import to_record


@contextmanager
def unencoded() -> Iterator[None]:
    """Let ``ArrayRecord(model.state_dict())`` and the like copy the arrays and not encode them.

    Flower writes every array into bytes at once. A client on a grid's own machine answers nobody
    who reads them, and who asks for the bytes still gets them.
    """
    _make_by(_COPYING)
    try:
        yield
    finally:
        _make_by(_ENCODING)


def _of_state_dict(state_dict: dict[str, Any], *, keep_input: bool = True) -> ArrayRecord:
    record = _copied({name: x.detach().cpu().numpy() for name, x in state_dict.items()})
    if not keep_input:
        state_dict.clear()
    return record


def _of_list(ndarrays: list[NDArray[Any]], *, keep_input: bool = True) -> ArrayRecord:
    record = _copied({str(i): x for i, x in enumerate(ndarrays)})
    if not keep_input:
        ndarrays.clear()
    return record


def _copied(arrays: Arrays) -> ArrayRecord:
    if objects := [name for name, x in arrays.items() if x.dtype.hasobject]:
        raise ValueError(f"array {objects[0]!r} holds Python objects, which cannot be sent.")
    return to_record({name: np.array(x, order="A") for name, x in arrays.items()})


_COPYING = {
    "from_torch_state_dict": staticmethod(_of_state_dict),
    "from_numpy_ndarrays": staticmethod(_of_list),
}
_ENCODING = {name: ArrayRecord.__dict__[name] for name in _COPYING}


def _make_by(methods: Mapping[str, Any]) -> None:
    for name, method in methods.items():
        setattr(ArrayRecord, name, method)
