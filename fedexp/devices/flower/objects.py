"""A message as the objects that travel: what they would become is looked at before they do."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, Message
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

_HEADER = 1 << 14  # bytes that the encoding of an array may take besides its numbers
_MAX_OBJECTS = 100_000
_PAUSE, _PATIENCE = 0.5, 60.0  # seconds, while the other side still sends an object


def contents_of(tree: Any, pull: Callable[[str], bytes | None], limit: int) -> dict[str, bytes]:
    """The encoded objects of ``tree``, each once.

    Args:
        tree: their ids.
        pull: the object of an id; None while it is still on its way.
        limit: bytes of all of them together.

    Raises:
        ValueError: they are more, or one does not come.
    """
    ids = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
    if len(ids) > _MAX_OBJECTS:
        raise ValueError(f"the message has {len(ids)} objects, at most {_MAX_OBJECTS} are read.")
    contents: dict[str, bytes] = {}
    size, end = 0, time.monotonic() + _PATIENCE
    for object_id in ids:
        while (content := pull(object_id)) is None:
            if time.monotonic() > end:
                raise ValueError("an object of the message does not come.")
            time.sleep(_PAUSE)
        size += len(content)
        if size > limit:
            raise ValueError(f"the message has more than {limit:,} bytes. Raise the limit.")
        contents[object_id] = content
    return contents


def check_sizes(contents: Mapping[str, bytes], *, total: int, largest: int | None = None) -> None:
    """Compare what arrays declare, and what they inflate to, with what may come.

    An array may name one piece of bytes many times, so that little on the wire is much in memory;
    and it declares a shape that need not fit. Nothing is inflated here.

    Args:
        contents: the encoded objects of a message, by id.
        total: bytes of all arrays together.
        largest: bytes of one array; ``total`` if None.

    Raises:
        ValueError: an array is larger.
    """
    largest, size = total if largest is None else largest, 0
    for object_id, content in contents.items():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != Array.__qualname__:
            continue
        declared, inflated_size = _sizes(content, children, contents)
        size += inflated_size
        if declared > largest or inflated_size > largest + _HEADER or size > total + _HEADER * 64:
            raise ValueError(
                f"array {object_id[:8]} declares {declared:,} bytes and would inflate to "
                f"{inflated_size:,}, {size:,} in all; at most {largest:,} and {total:,} may come."
            )


def _sizes(content: bytes, children: list[str], contents: Mapping[str, bytes]) -> tuple[int, int]:
    """Bytes that an encoded array declares, and that it would inflate to."""
    body = json.loads(get_object_body(content, Array))
    lengths = [get_object_head_values_from_object_content(contents[x])[2] for x in children]
    shape = [int(length) for length in body["shape"]]
    if any(length < 0 for length in shape):
        raise ValueError(f"an array declares the shape {shape}.")
    declared = math.prod(shape) * np.dtype(str(body["dtype"])).itemsize
    counts = np.bincount(np.asarray(body["arraychunk_ids"], np.int64), minlength=len(lengths))
    return declared, sum(int(n) * length for n, length in zip(counts, lengths, strict=True))


def inflated(object_id: str, contents: dict[str, bytes], limit: int) -> Message:
    """The message that ``contents`` encode; they are used up.

    Raises:
        ValueError: its arrays would take more than ``limit`` bytes, or it is no message.
    """
    try:
        check_sizes(contents, total=limit)
        message = inflate_object_from_contents(object_id, contents)
    except ValueError:
        raise
    except Exception as error:  # the objects may hold anything
        raise ValueError(f"the message cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(message, Message):
        raise ValueError(f"the message is {type(message).__name__}.")
    return message


def ids_of(message: Message) -> tuple[Any, dict[str, Any]]:
    """The tree of the ids of all objects in ``message``, and the objects by id."""
    with no_object_id_recompute():
        return get_object_tree(message), get_all_nested_objects(message)


def without_content(message: Message) -> Message:
    """``message`` as it is announced: what it holds is sent object by object."""
    return remove_content_from_message(message)
