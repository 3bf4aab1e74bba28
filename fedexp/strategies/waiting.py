"""How long a round waits for devices, and which devices it leaves in peace for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf

from fedexp.strategies.kinds import with_kinds


@dataclass(frozen=True)
@with_kinds
class Waiting:
    """When a round on real devices ends, and when a device that fails is not asked for a while.

    A reply that comes after the round has ended belongs to an older model and is ignored: under
    FedExP its pseudo-gradient would be measured from the wrong point. Messages carry the deadline,
    so that a slow device skips to the newest round instead of working through old ones.

    Attributes:
        sample: devices that are asked in a round, all of them if fewer are there.
        deadline: seconds after which a round ends with the replies it has, however few.
        enough: sound replies with which a round ends; the devices asked beyond these are spare.
        rest_after: failures in a row after which a device is not asked for ``rest_rounds`` rounds;
            0 for never. An error reply is a failure, as is a reply missing at the deadline; a
            reply missing because enough others had come is not.
        rest_rounds: how many rounds a device rests.

    Raises:
        ValueError: one of them is out of its range.

    Example:
        >>> from fedexp.strategies import Waiting
        >>> Waiting(sample=10, enough=8, deadline=60).enough
        8
    """

    sample: float = inf
    deadline: float = inf
    enough: float = inf
    rest_after: int = 3
    rest_rounds: int = 5

    def __post_init__(self) -> None:
        least = {"sample": 1, "deadline": 0.1, "enough": 1, "rest_after": 0, "rest_rounds": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= least[field.name]:
                raise ValueError(
                    f"Waiting({field.name}={value!r}): must be at least {least[field.name]}."
                )
        if self.sample < self.enough < inf:
            raise ValueError(
                f"Waiting(enough={self.enough:g}): no more than sample={self.sample:g} are asked."
            )

    def seconds(self, timeout: float | None) -> float:
        """How long a round may take where its caller allows ``timeout``."""
        return min(self.deadline, inf if timeout is None else timeout)

    def share(self, number: int, fraction: float, least: int) -> tuple[float, int]:
        """Which fraction of ``number`` devices is asked, and how many at least."""
        return (fraction, least) if self.sample == inf else (0.0, int(min(self.sample, number)))


class Rests:
    """Which devices rest, by their failures in a row.

    Example:
        >>> from fedexp.strategies import Waiting
        >>> from fedexp.strategies.waiting import Rests
        >>> rests = Rests(Waiting(rest_after=2, rest_rounds=3))
        >>> [rests.note(server_round, sound=[7], failed=[8]) for server_round in (1, 2)]
        [[], [8]]
        >>> rests.awake([7, 8], 5, least=1), rests.awake([7, 8], 6, least=1)
        ([7], [7, 8])
    """

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self._failures: dict[int, int] = {}
        self._until: dict[int, int] = {}

    def note(self, server_round: int, sound: list[int], failed: list[int]) -> list[int]:
        """Note who gave a sound reply and who failed; the devices that begin to rest."""
        for node in sound:
            self._failures.pop(node, None)
        resting = []
        for node in failed:
            self._failures[node] = self._failures.get(node, 0) + 1
            if 0 < self.waiting.rest_after <= self._failures[node]:
                del self._failures[node]
                self._until[node] = server_round + self.waiting.rest_rounds
                resting.append(node)
        return resting

    def awake(self, nodes: Sequence[int], server_round: int, least: int) -> Sequence[int]:
        """``nodes`` but those that rest now; all of them if fewer than ``least`` would be left."""
        if max(self._until.values(), default=0) < server_round:
            return nodes  # as in nearly every round: among a million, to look takes 0.1 s
        left = [node for node in nodes if self._until.get(node, 0) < server_round]
        return left if len(left) >= least else nodes
