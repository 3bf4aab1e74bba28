"""A message as the objects that travel: what they would become is looked at before they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedexp.simulation.flower.sizes import check_size

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


def inflated(object_id: str, contents: dict[str, bytes], limit: int) -> Message:
    """The message that ``contents`` encode; they are used up.

    Raises:
        ValueError: its arrays would take more than ``limit`` bytes, or it is no message.
    """
    try:
        check_size(contents, limit)
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
