"""Replies are measured before Flower unpacks them: a small upload may describe terabytes.

Flower stores a reply as a tree of objects. An array lists its chunks by number and may list one
chunk as often as it likes, so that 5 MB of upload can inflate to 500 GB. What an array lists, and
what its shape declares, stands in a few bytes that are read here first.

Uses ``inflate_object_from_contents`` of Flower's grid, and the layout of its objects. Where the
former has gone, or with ``FEDEXP_PLAIN=1``, replies are not measured.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, Error, Message, MessageType, Metadata
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.superlink.grid import http_grid

from fedexp.simulation.flower.messages import message_with
from fedexp.simulation.flower.switch import Patch

Inflate = Callable[..., Any]


def measured(most: int) -> Patch:
    """While it is entered, a reply of more than ``most`` bytes of arrays becomes an error reply.

    So does a reply that Flower cannot unpack, which would otherwise end the run.

    Args:
        most: bytes of all arrays of one reply together, declared or unpacked.

    Example:
        >>> with measured(most=1 << 20):
        ...     pass  # grid.pull_messages(...)
    """
    inflate: Inflate = getattr(http_grid, "inflate_object_from_contents", _missing)

    def within(object_id: str, object_contents: dict[str, bytes], **kwargs: Any) -> Any:
        whole = object_contents[object_id]
        try:
            check_size(object_contents, most)
            return inflate(object_id, object_contents, **kwargs)
        except Exception as error:  # a client can make Flower raise anything
            return _error_reply(whole, f"its reply cannot be unpacked: {error}")

    return Patch(http_grid, inflate_object_from_contents=within)


def check_size(object_contents: Mapping[str, bytes], most: int) -> None:
    """Raise ``ValueError`` if the arrays among Flower's objects need more than ``most`` bytes."""
    total = 0
    for content in object_contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != "Array":
            continue
        body = json.loads(get_object_body(content, Array))
        times = Counter(children[i] for i in body["arraychunk_ids"])
        unpacked = sum(len(object_contents[child]) * n for child, n in times.items())
        total += max(unpacked, _declared(body))
        if total > most:
            raise ValueError(f"its arrays need {total} bytes or more, {most} are allowed.")


def _declared(body: Mapping[str, Any]) -> int:
    """Bytes of the array that an object's shape and dtype describe."""
    return int(prod(map(int, body["shape"])) * np.dtype(body["dtype"]).itemsize)


def _error_reply(content: bytes, reason: str) -> Message:
    """The reply whose first object is ``content``, with an error in place of what it held."""
    try:
        metadata = metadata_from_proto(
            ProtoMessage.FromString(get_object_body(content, Message)).metadata
        )
    except Exception:  # not even a message: nobody's reply
        metadata = Metadata(0, "", 0, 0, "", "", 0.0, 0.0, MessageType.TRAIN)
    return message_with(metadata, Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def _missing(*_: Any, **__: Any) -> Any:
    raise ValueError("Flower's grid has no such function any more.")
