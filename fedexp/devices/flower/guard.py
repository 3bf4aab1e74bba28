"""The server's guard: what a reply would become is looked at before Flower's grid inflates it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Error, Message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_object_body
from flwr.superlink.grid import http_grid

from fedexp.devices.flower.objects import check_sizes
from fedexp.simulation.flower.messages import message_with

_INVALID = 2  # Flower's error code for a ClientApp that raised


@contextmanager
def guarded_replies(*, largest: int, total: int) -> Iterator[None]:
    """Let no reply become more than it may, in the ServerApp's process; it becomes an error reply.

    Replaces ``http_grid.inflate_object_from_contents``, which ends the ServerApp for a reply that
    fills the memory or cannot be read: an array may name one piece of bytes ten thousand times.

    Args:
        largest: bytes that an array of a reply may have: those of the model's largest.
        total: bytes of all of them: those of the model, or twice that for sums in float64.
    """
    grid: Any = http_grid
    inflate = grid.inflate_object_from_contents

    def checked(object_id: str, contents: dict[str, bytes], **options: Any) -> Any:
        try:
            check_sizes(contents, total=total, largest=largest)
            return inflate(object_id, dict(contents), **options)
        except Exception as error:  # a reply may hold anything
            reason = f"its reply was not read: {type(error).__name__}: {error}"[:500]
            return _refused(object_id, contents, reason)

    grid.inflate_object_from_contents = checked
    try:
        yield
    finally:
        grid.inflate_object_from_contents = inflate


def _refused(message_id: str, contents: dict[str, bytes], reason: str) -> Message:
    """An error in place of the reply, with the reply's own metadata."""
    body = get_object_body(contents[message_id], Message)
    metadata = metadata_from_proto(ProtoMessage.FromString(body).metadata)
    return message_with(metadata, Error(_INVALID, reason))
