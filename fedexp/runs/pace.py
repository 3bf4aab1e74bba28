"""How often a run writes a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SMALL = 16 << 20
"""Bytes up to which a checkpoint is written after every round."""

_SHARE = 0.1  # of the time, that writing larger ones takes


class Pace:
    """When a checkpoint is due.

    Without a number it is chosen by cost: a small one after every round, a larger one as soon as
    the rounds since the last have taken ten times as long as writing that one took.

    Args:
        every: rounds from one to the next; 0 to choose.
        clock: in seconds.

    Example:
        >>> from fedexp.runs.pace import SMALL, Pace
        >>> pace = Pace(5)
        >>> [number for number in range(1, 12) if pace.is_due(number, 0)]
        [5, 10]
        >>> Pace(0).is_due(1, SMALL)
        True
    """

    def __init__(self, every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._took, self._last = 0.0, clock()

    def is_due(self, server_round: int, num_bytes: int) -> bool:
        """Whether one is to be written after this round.

        Args:
            server_round: of the whole run, so that a resumed one keeps its pace.
            num_bytes: of all that it holds.
        """
        if self._every:
            return server_round % self._every == 0
        return num_bytes <= SMALL or self._clock() - self._last >= self._took / _SHARE

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measure how long one takes."""
        start = self._clock()
        yield
        self._last = self._clock()
        self._took = self._last - start
