"""Records as plain NumPy arrays, which Ray shares between processes without copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.records import from_record, to_record
from fedexp.simulation.flower.contents import content_of

Packed = Mapping[str, Any]
"""Record key to a dict of arrays, or to a record that holds none."""


def pack(content: RecordDict) -> Packed:
    """``content`` with its arrays as views of their memory.

    Example:
        >>> import numpy as np
        >>> from flwr.app import RecordDict
        >>> from fedexp.records import to_record
        >>> from fedexp.simulation.transport import pack, packed_bytes, unpack
        >>> packed = pack(RecordDict({"model": to_record({"w": np.zeros(2)})}))
        >>> packed["model"]["w"], packed_bytes(packed)
        (array([0., 0.]), 16)
        >>> unpack(packed).array_records["model"]["w"].shape
        (2,)
    """
    return {key: _packed(record) for key, record in content.items()}


def _packed(record: ArrayRecord | MetricRecord | ConfigRecord) -> Any:
    if not isinstance(record, ArrayRecord):
        return record
    try:
        return from_record(record)
    except ValueError:  # not NumPy's encoding: a tensor format of the app's own
        return record


def unpack(packed: Packed) -> RecordDict:
    """The inverse of ``pack``; arrays share the memory of ``packed``."""
    return content_of({k: to_record(v) if isinstance(v, dict) else v for k, v in packed.items()})


def packed_bytes(packed: Packed) -> int:
    """How many bytes the arrays have."""
    return sum(
        x.nbytes for record in packed.values() if isinstance(record, dict) for x in record.values()
    )
