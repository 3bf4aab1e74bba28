"""What becomes of each client in each round: its fault, its simulated time, and its reply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.records import from_record, records_of, to_record
from fedexp.simulation.faults import SCALE, SLOWDOWN, Faults, uniform
from fedexp.simulation.profiles import ClientProfiles
from fedexp.wire import ClientResult

_KEYS = ("faults", "client-profiles", "deadline", "seed", "local-steps")
APPLIED = ("faults", "deadline")
"""Keys that a grid of virtual clients applies itself, so that its clients must not see them."""

NO_REPLY = "no reply came"
"""The reason of an error in place of a reply that got lost."""


class OrderedCrash(RuntimeError):
    """A client raises this where it is ordered to crash."""


class LostReply(RuntimeError):
    """In place of a reply that does not arrive."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a client in a round.

    Attributes:
        fault: its kind; empty for none.
        lost: why its reply does not arrive; empty if it does.
        variant: in ``[0, 1)``; which garbage it sends.
    """

    fault: str = ""
    lost: str = ""
    variant: float = 0.0

    def begin(self) -> None:
        """Raise if the client crashes.

        Raises:
            OrderedCrash: it does.
        """
        if self.fault == "crash":
            raise OrderedCrash("the client crashes, as --faults orders")

    def reply(self, content: RecordDict, before: RecordDict) -> RecordDict:
        """What arrives of a reply of this ``content`` to a message of content ``before``.

        Raises:
            LostReply: nothing does.
        """
        if self.lost:
            raise LostReply(self.lost)
        sent = records_of(content, ArrayRecord)
        if self.fault not in _DAMAGES or not sent:
            return content
        name, *_ = sent
        model = next(iter(records_of(before, ArrayRecord).values()))
        damaged = to_record(self._damaged(from_record(sent[name]), from_record(model)))
        return RecordDict({**content, name: damaged})

    def result(self, result: ClientResult, before: Arrays) -> ClientResult:
        """What arrives of a ``result``, trained from ``before``."""
        if result.refused:
            return result
        if self.lost:
            return result.refuse(self.lost)
        if self.fault not in _DAMAGES:
            return result
        return replace(result, arrays=self._damaged(result.arrays, before))

    def _damaged(self, arrays: Arrays, before: Arrays) -> Arrays:
        return _DAMAGES[self.fault](arrays, before, self.variant)


def _with_nan(arrays: Arrays, before: Arrays, variant: float) -> Arrays:
    floats = [name for name, x in arrays.items() if x.dtype.kind == "f" and x.size]
    return {**arrays, **{name: np.full_like(arrays[name], math.nan) for name in floats[:1]}}


def _scaled(arrays: Arrays, before: Arrays, variant: float) -> Arrays:
    """``w + c (wᵢ - w)`` with ``c`` of ``SCALE``, of arrays that training moves."""
    with np.errstate(over="ignore", invalid="ignore"):  # a model may be near the end of its range
        return {
            name: (before[name] + SCALE * (x - before[name])).astype(x.dtype)
            if x.dtype.kind == "f" and name in before and before[name].shape == x.shape
            else x
            for name, x in arrays.items()
        }


def _garbage(arrays: Arrays, before: Arrays, variant: float) -> Arrays:
    """The first array with another shape, with another name, or as text."""
    if not arrays:
        return arrays
    (name, first), *others = arrays.items()
    made: Sequence[tuple[str, Any]] = (
        (name, np.zeros((*first.shape, 2), first.dtype)),
        (f"not-{name}", first),
        (name, np.full(first.shape, b"garbage")),
    )
    return dict([made[int(variant * len(made))], *others])


_DAMAGES = {"nan": _with_nan, "garbage": _garbage, "scale": _scaled}


@dataclass(frozen=True)
class Conditions:
    """Faults, devices and the deadline of a simulation; what it says is the same everywhere.

    Attributes:
        faults: to order.
        profiles: of the clients.
        deadline: of a round, in simulated seconds.
        seed: of the run.
        num_steps: local steps of a client without a number of its own.
    """

    faults: Faults = field(default_factory=Faults)
    profiles: ClientProfiles = field(default_factory=ClientProfiles)
    deadline: float = math.inf
    seed: int = 0
    num_steps: int = 20

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """Those of a run config; None if clients are alike and never fail.

        A deadline alone is no condition: of clients that are alike it lets all pass, or none.

        Raises:
            ValueError: faults or profiles that cannot be read.
        """
        faults, profiles, deadline, seed, steps = (config.get(key) for key in _KEYS)
        if not (faults or profiles):
            return None
        return cls._made(
            str(faults or ""),
            str(profiles or ""),
            float(deadline or math.inf),
            int(seed or 0),
            int(steps or cls.num_steps),
        )

    @classmethod
    @lru_cache(maxsize=16)
    def _made(cls, faults: str, profiles: str, deadline: float, seed: int, steps: int) -> Self:
        return cls(Faults.of(faults), ClientProfiles.of(profiles), deadline, seed, steps)

    def seconds(self, server_round: int, client: int, num_bytes: int) -> float:
        """``Tᵢ`` of a client in a round: that of its profile, longer if it is slow.

        Args:
            server_round: the number of the round.
            client: its number.
            num_bytes: of the arrays of one message.
        """
        seconds = self.profiles.seconds(self.seed, client, self.num_steps, num_bytes)
        return seconds * (SLOWDOWN if self.fault(server_round, client) == "slow" else 1.0)

    def round_seconds(self, server_round: int, clients: Sequence[int], num_bytes: int) -> float:
        """How long a round takes in simulated seconds.

        It is ``max Tᵢ`` over the clients that are asked, but no more than the deadline. Whoever
        never replies counts like the others where there is no deadline; where there is one, the
        server waits for it until then.

        Args:
            server_round: the number of the round.
            clients: that are asked.
            num_bytes: of the arrays of one message.

        Example:
            >>> from fedexp.simulation.conditions import Conditions
            >>> from fedexp.simulation.profiles import ClientProfiles
            >>> alike = Conditions(profiles=ClientProfiles(step_seconds=0.1), deadline=1.5)
            >>> alike.round_seconds(1, [0, 1, 2], num_bytes=0)  # 20 steps would take 2 seconds
            1.5
        """
        silent = self.deadline < math.inf and any(
            self.fault(server_round, client) in ("drop", "crash") for client in clients
        )
        times = [self.seconds(server_round, client, num_bytes) for client in clients]
        return min(self.deadline, math.inf if silent else max(times, default=0.0))

    def fault(self, server_round: int, client: int) -> str:
        """The kind of fault of a client in a round; empty for none."""
        return self.faults.at(self.seed, server_round, client)

    def fate(self, server_round: int, client: int, num_bytes: int) -> Fate:
        """What becomes of a client; arguments as of ``seconds``."""
        fault = self.fault(server_round, client)
        lost = NO_REPLY if fault == "drop" else ""
        if self.seconds(server_round, client, num_bytes) > self.deadline:
            lost = f"no reply within {self.deadline:g} simulated seconds"
        return Fate(fault, lost, uniform("garbage", self.seed, server_round, client))

    def fate_of(self, content: RecordDict, client: int) -> Fate:
        """What becomes of a client that gets a train message of this content."""
        return self.fate(_round_of(content), client, _num_bytes(content))


def _round_of(content: RecordDict) -> int:
    """The number of the round that a message says; 0 if it says none."""
    for config in records_of(content, ConfigRecord).values():
        if isinstance(number := config.get(keys.SERVER_ROUND), int):
            return number
    return 0


def _num_bytes(content: RecordDict) -> int:
    """Bytes of the numbers in the arrays of a message, however they are encoded."""
    records = records_of(content, ArrayRecord).values()
    return sum(_size(array) for record in records for array in record.values())


def _size(array: Array) -> int:
    try:
        return math.prod(array.shape) * np.dtype(array.dtype).itemsize
    except TypeError:  # an app's own format
        return len(array.data)
