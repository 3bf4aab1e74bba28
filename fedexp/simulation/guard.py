"""Client code runs here so that whatever it raises ends the client and nothing else."""

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


_unattended: list[int] = []  # not empty in a worker's process


def nobody_debugs() -> None:
    """Say that this process is a worker, where no user can type commands to a debugger.

    A ``breakpoint()`` in a client reads the end of the input there, and raises ``BdbQuit``.
    """
    _unattended.append(1)


@contextmanager
def guarded() -> Iterator[None]:
    """Run client code.

    Raises:
        ClientRaised: whatever the code raised.
        KeyboardInterrupt: the user pressed Ctrl-C meanwhile, or SIGTERM came that means the same.
        BdbQuit: the user left the debugger in a client by ``quit``, in the user's own process.
    """
    with _noting_ctrl_c() as pressed:
        try:
            yield
        except BaseException as error:
            if isinstance(error, BdbQuit) and not _unattended:
                raise
            # Whatever the client makes of Ctrl-C, the user wants the run to end.
            if pressed:
                raise KeyboardInterrupt from error
            raise ClientRaised(error) from error


@contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """Give a list that is not empty once Ctrl-C was pressed.

    A client may raise KeyboardInterrupt itself, and the exception does not tell which it was.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # Ctrl-C never arrives here
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {n: h for n in signals if callable(h := signal.getsignal(n))}

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        before[number](number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # else a debugger's, or the client's own
                signal.signal(number, handler)
