"""Waiting for a server that is away, longer every time."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

from fedexp.devices.flower.failures import Away, Refused, Rejected, RunEnded

R = TypeVar("R")
_FIRST, _GROWTH, _LONGEST = 0.5, 1.7, 60.0  # seconds, factor, seconds
_HANDSHAKES = 5  # so many that fail, and none before that succeeded: no TLS there


class Stopped(Exception):
    """The device was told to stop while it waited."""


class StopSign:
    """Says once that all is to end. A signal handler may set it.

    Not ``threading.Event``: a handler that interrupts its ``wait`` would wait for itself.

    Example:
        >>> from fedexp.devices.patience import StopSign
        >>> sign = StopSign()
        >>> sign.wait(0.0)
        False
        >>> sign.set()
        >>> sign.wait(60.0)
        True
    """

    def __init__(self) -> None:
        self._is_set = False
        self._reading, self._writing = os.pipe()

    def set(self) -> None:
        """Say it."""
        self._is_set = True
        os.write(self._writing, b"!")

    def is_set(self) -> bool:
        """Whether it was said."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is said; whether it was."""
        select.select([self._reading], [], [], seconds)
        return self._is_set

    def __del__(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


def waits(first: float = _FIRST, longest: float = _LONGEST) -> Iterator[float]:
    """Seconds to wait, growing; a random part keeps many devices from coming back as one.

    Example:
        >>> from fedexp.devices.patience import waits
        >>> growing = waits(1.0, longest=2.0)
        >>> [0.7 <= next(growing) <= 1.3, 1.1 <= next(growing) <= 2.3, next(growing) <= 2.6]
        [True, True, True]
    """
    wait, rng = first, Random()  # of the time of day: no bit of a result depends on it
    while True:
        yield wait * rng.uniform(0.7, 1.3)
        wait = min(wait * _GROWTH, longest)


class Patience:
    """Calls that are made again while the server is away.

    Args:
        stop: ends every wait.
        say: takes one line when the server goes, and one when it is back.
    """

    def __init__(self, stop: StopSign, say: Callable[[str], None]) -> None:
        self.stop, self.say = stop, say
        self.reached = False  # whether the server has ever answered

    def __call__(self, call: Callable[[], R], *, tries: int | None = None) -> R:
        """What ``call`` gives, as soon as it gives something.

        Args:
            call: raises `Away` while the server is away.
            tries: so many at most; None for as many as it takes.

        Raises:
            Stopped: ``stop`` was set meanwhile.
            Away: after the last try.
            Refused: the other side never spoke TLS.
        """
        handshakes = 0
        for attempt, wait in enumerate(waits(), 1):
            try:
                return self._answer(call, again=attempt > 1)
            except Away as error:
                handshakes += error.in_handshake
                if not self.reached and handshakes >= _HANDSHAKES:
                    raise Refused(f"{error}. It does not speak TLS, or is no server.") from error
                if attempt == tries:
                    raise
                if attempt == 1:
                    self.say(f"{error}. Trying again.")
                if self.stop.wait(max(wait, error.wait)):
                    raise Stopped from error
        raise AssertionError("waits() never ends")

    def _answer(self, call: Callable[[], R], *, again: bool) -> R:
        try:
            result = call()
        except (Refused, Rejected, RunEnded):  # This is an answer too.
            self._is_there(again)
            raise
        self._is_there(again)
        return result

    def _is_there(self, again: bool) -> None:
        self.reached = True
        if again:
            self.say("The server is back.")
