"""Replies that have come whole are handed over, and none waits for one that is still on its way.

A device announces its reply and then sends it object by object. Flower's grid, once it has read the
announcement, waits for the objects as long as it takes, up to three minutes for a device that has
gone, and all other replies wait behind that one. It also takes however many bytes are sent.

Uses ``pull_objects`` and ``ObjectPullError`` of that grid. Where they have gone, or with
``FEDEXP_PLAIN=1``, replies come as Flower hands them over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import http_grid

from fedexp.simulation.flower.inflation import measured
from fedexp.simulation.flower.messages import message_with, number
from fedexp.simulation.flower.switch import Patch

_OVERHEAD = 1 << 20  # bytes of a reply beside its arrays: names, headers and metrics
_PAUSE = 0.2  # seconds between looks at a reply that is on its way


@dataclass
class _Upload:
    """A reply that was announced.

    Attributes:
        ids: of its objects; that of the message is the last.
        pull: the object of an id; raises if it has not come.
        contents: the objects that have come.
        announced: the error reply that Flower makes of it, addressed as the reply will be.
        looked: when it was last looked at.
    """

    ids: list[str]
    pull: Callable[[str], bytes]
    contents: dict[str, bytes] = field(default_factory=dict)
    announced: Message | None = None
    looked: float = 0.0

    def announce(self, reply: Message) -> None:
        """Keep the error reply that Flower made of it."""
        self.announced = reply

    def is_whole(self, most: int) -> bool:
        """Fetch what has come since; whether that is all.

        Raises:
            ObjectPullError: something will never come, or it is more than ``most`` bytes.
        """
        self.looked = time.monotonic()
        size = sum(map(len, self.contents.values()))
        for object_id in self.ids:
            if object_id in self.contents:
                continue
            try:
                self.contents[object_id] = self.pull(object_id)
            except ObjectUnavailableError:
                return False
            size += len(self.contents[object_id])
            if size > most:
                raise ObjectPullError(object_id, f"the reply has more than {most:,} bytes.")
        return True


class Uploads:
    """Pulls the replies of one round.

    Args:
        most: bytes of arrays that one reply may have, as in ``measured``.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._begun: dict[str, _Upload] = {}  # by the id of the reply
        self._open: dict[str, _Upload] = {}  # by the id of the message that it answers

    def pull(self, grid: Grid, message_ids: Iterable[str]) -> list[Message]:
        """As ``grid.pull_messages``, of replies that have come whole; others come later."""
        asked = list(message_ids)
        with ExitStack() as held:
            held.enter_context(measured(self.most))
            held.enter_context(Patch(http_grid, pull_objects=self._at_once))
            new = [i for i in asked if i not in self._open]
            arrived = list(grid.pull_messages(new)) if new else []
            found = [reply for reply in arrived if not self._put_off(reply)]
            late = (self._finished(i) for i in asked if i in self._open)
            return found + [reply for reply in late if reply is not None]

    def _at_once(
        self, object_ids: list[str], pull_object_fn: Callable[[str], bytes], **_: Any
    ) -> dict[str, bytes]:
        """In place of Flower's ``pull_objects``: what has not come is put off."""
        upload = _Upload(list(dict.fromkeys(object_ids)), pull_object_fn)
        if upload.is_whole(self.most + _OVERHEAD):
            return upload.contents
        self._begun[upload.ids[-1]] = upload
        raise ObjectPullError(upload.ids[-1], "it is still on its way.")

    def _put_off(self, reply: Message) -> bool:
        """Whether ``reply`` is Flower's error for one that is still on its way."""
        reason = str(reply.error.reason) if reply.has_error() else ""
        for root, upload in self._begun.items():
            if f"'{root}'" in reason:
                upload.announce(reply)
                self._open[reply.metadata.reply_to_message_id] = self._begun.pop(root)
                return True
        return False

    def _finished(self, message_id: str) -> Message | None:
        """The reply to ``message_id`` if it is whole by now, or has failed."""
        upload = self._open[message_id]
        if time.monotonic() - upload.looked < _PAUSE:
            return None
        try:
            if not upload.is_whole(self.most + _OVERHEAD):
                return None
            root = upload.ids[-1]  # the SuperLink forgets its objects at the end of the run
            inflate = vars(http_grid)["inflate_object_from_contents"]  # as ``measured`` has it
            reply: Message = number(inflate(root, upload.contents), root)
        except ObjectPullError as error:
            assert upload.announced is not None, "_put_off() comes first"
            failure = Error(ErrorCode.MESSAGE_UNAVAILABLE, f"its reply did not come: {error}")
            reply = message_with(upload.announced.metadata, failure)
        del self._open[message_id]
        return reply
