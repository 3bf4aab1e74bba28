"""Replies are measured before Flower's grid unpacks them: a small upload may describe terabytes.

Uses ``inflate_object_from_contents`` of that grid. Where it has gone, or with ``FEDEXP_PLAIN=1``,
replies are not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import Error, Message, MessageType, Metadata
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_object_body
from flwr.superlink.grid import http_grid

from fedexp.simulation.flower.messages import message_with
from fedexp.simulation.flower.sizes import check_size
from fedexp.simulation.flower.switch import Patch

Inflate = Callable[..., Any]


def measured(most: int) -> Patch:
    """While it is entered, a reply of more than ``most`` bytes of arrays becomes an error reply.

    So does a reply that Flower cannot unpack, which would otherwise end the run.

    Args:
        most: bytes of all arrays of one reply together, declared or unpacked.

    Example:
        >>> from fedexp.simulation.flower.inflation import measured
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
