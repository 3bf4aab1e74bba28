"""Client code that ends itself and nothing else."""

from __future__ import annotations

import signal
import threading
from bdb import BdbQuit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedexp.wire import text_of


class ClientRaised(Exception):
    """Client code raised ``error``, of whatever kind: ``sys.exit()`` raises as well."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(text_of(error))
        self.error = error


_unattended: list[int] = []


def nobody_debugs() -> None:
    """This process is a worker: a debugger in a client reads no user's commands, only their end."""
    _unattended.append(1)


@contextmanager
def guarded() -> Iterator[None]:
    """Run client code.

    Raises:
        ClientRaised: whatever the code raised.
        KeyboardInterrupt: the user pressed Ctrl-C meanwhile.
        BdbQuit: the user left the debugger in a client by ``quit``, in the user's own process.
    """
    with _noting_ctrl_c() as pressed:
        try:
            yield
        except BaseException as error:
            if isinstance(error, BdbQuit) and not _unattended:
                raise
            if pressed:
                raise KeyboardInterrupt from error
            raise ClientRaised(error) from error


@contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """A list that is not empty once Ctrl-C was pressed.

    A client may raise KeyboardInterrupt as well, and the exception does not tell where it is from.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed  # Ctrl-C never arrives here
        return

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if signal.getsignal(signal.SIGINT) is note:  # else a debugger's, or the client's own
            signal.signal(signal.SIGINT, before)
