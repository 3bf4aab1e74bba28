"""Clients as devices: how fast each is, when it is there, and how many local steps it takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Self

from fedexp.simulation.faults import uniform
from fedexp.specs import split_list, value_of

LEAST = 2
"""So many clients are always there: Flower's strategies wait for two unless told otherwise."""

_CALL = re.compile(r"([a-z]+)\((.*)\)")


@dataclass(frozen=True)
class Law:
    """What a client's number is drawn from: ``lognormal(0.5)``.

    Attributes:
        name: as in ``LAWS``.
        numbers: in its brackets.
    """

    name: str
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class ClientProfiles:
    """What tells one client's device from another's; all that is drawn depends on the run's seed.

    Attributes:
        speed: of a client, ``v > 0``: ``lognormal(sigma)`` has median 1 and ``sigma`` as the
            spread of ``log v``, ``uniform(low, high)`` is even. All clients have 1 by default.
        availability: the probability that a client is there in a round: ``random(p)`` is the same
            for all; ``diurnal(low, high, rounds)`` goes up and down within a day of so many rounds,
            for each client at its own time. All are there by default.
        local_steps: of a client, the same in all rounds: ``uniform(low, high)``, both included. By
            default it is the run's ``local-steps``.
        step_seconds: that a local step takes at speed 1, in simulated seconds.
        bandwidth: of a client, in bytes a simulated second, both ways.

    Example:
        >>> from fedexp.simulation.profiles import ClientProfiles
        >>> profiles = ClientProfiles.of("speed=lognormal(0.5), availability=random(0.8)")
        >>> [round(profiles.speed_of(seed=0, client=client), 2) for client in range(3)]
        [0.76, 0.89, 4.19]
    """

    speed: Law | None = None
    availability: Law | None = None
    local_steps: Law | None = None
    step_seconds: float = 0.01
    bandwidth: float = 1e6

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, text: str) -> Self:
        """Read ``speed=lognormal(0.5), local-steps=uniform(5, 20)``; no text is no differences.

        Raises:
            ValueError: no such key, one that is named twice, or a value that it cannot have.
        """
        found: dict[str, Any] = {}
        for part in split_list(text.replace(";", ",")):
            key, _, value = (x.strip() for x in part.partition("="))
            if key not in LAWS:
                raise ValueError(f"no {key!r}; known are {', '.join(LAWS)}")
            name = key.replace("-", "_")
            if name in found:
                raise ValueError(f"{key} is given twice")
            found[name] = _value(key, value)
        return cls(**found)

    def speed_of(self, seed: int, client: int) -> float:
        """``v`` of a client."""
        if self.speed is None:
            return 1.0
        u = uniform("speed", seed, client)
        if self.speed.name == "lognormal":
            z = NormalDist().inv_cdf(max(u, 1e-12))  # the quantile of 0 would be infinite
            return math.exp(self.speed.numbers[0] * z)
        low, high = self.speed.numbers
        return low + u * (high - low)

    def steps_of(self, seed: int, client: int, usual: int) -> int:
        """The local steps of a client, where others would take ``usual`` ones."""
        if self.local_steps is None:
            return usual
        low, high = map(int, self.local_steps.numbers)
        return low + int(uniform("local-steps", seed, client) * (high - low + 1))

    def presence(self, seed: int, server_round: int, client: int) -> float:
        """The probability with which a client is there in a round."""
        if self.availability is None:
            return 1.0
        if self.availability.name == "random":
            return self.availability.numbers[0]
        low, high, day = self.availability.numbers
        turn = server_round / day + uniform("day", seed, client)
        return low + (high - low) * (1 + math.sin(2 * math.pi * turn)) / 2

    def present(self, seed: int, server_round: int, num_clients: int) -> list[int]:
        """The clients that are there in a round; at least ``LEAST``, so that it can go on."""
        margins = [
            self.presence(seed, server_round, client)
            - uniform("availability", seed, server_round, client)
            for client in range(num_clients)
        ]
        found = [client for client, margin in enumerate(margins) if margin > 0]
        nearest = sorted(range(num_clients), key=margins.__getitem__, reverse=True)
        return found if len(found) >= LEAST else sorted(nearest[:LEAST])

    def seconds(self, seed: int, client: int, num_steps: int, num_bytes: int) -> float:
        """How long a client takes for a round, in simulated seconds.

        ``Tᵢ = Kᵢ s / vᵢ + 2 B / b``: ``Kᵢ`` local steps of ``s`` (``step_seconds``) at speed
        ``vᵢ``, and ``B`` bytes that come and go at ``b`` bytes a second (``bandwidth``).

        Args:
            seed: of the run.
            client: its number.
            num_steps: ``Kᵢ``, where the profile does not say another number.
            num_bytes: ``B``, of the arrays of one message.

        Example:
            >>> from fedexp.simulation.profiles import ClientProfiles
            >>> ClientProfiles(step_seconds=0.1, bandwidth=1e6).seconds(0, 0, 20, 250_000)
            2.5
        """
        steps = self.steps_of(seed, client, num_steps)
        training = steps * self.step_seconds / self.speed_of(seed, client)
        return training + 2 * num_bytes / self.bandwidth


LAWS: dict[str, tuple[str, ...]] = {
    "speed": ("lognormal(0.5)", "uniform(0.5, 2)"),
    "availability": ("random(0.8)", "diurnal(0.2, 0.9, 24)"),
    "local-steps": ("uniform(5, 20)",),
    "step-seconds": ("0.01",),
    "bandwidth": ("1e6",),
}
"""Keys of a profile, and examples of what each may be."""


def _value(key: str, text: str) -> Any:
    """The law or the number that ``text`` is.

    Raises:
        ValueError: it is none that the key can have.
    """
    call = _CALL.fullmatch(text)
    name, inside = call.groups() if call else ("", text)
    numbers = [value_of(x) for x in split_list(inside)]
    examples = [_CALL.fullmatch(x) for x in LAWS[key]]
    sizes = {x[1] if x else "": len(split_list(x[2])) if x else 1 for x in examples}
    sound = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    if not sound or sizes.get(name) != len(numbers) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{key}={text} cannot be; write {' or '.join(LAWS[key])}")
    if problem := _problem(key, name, numbers):
        raise ValueError(f"{key}={text}: {problem}")
    return Law(name, tuple(map(float, numbers))) if name else float(numbers[0])


def _problem(key: str, name: str, numbers: Sequence[float]) -> str:
    """Why a key cannot have these numbers; empty if it can."""
    low, high, *_ = [*numbers, *numbers[-1:]]
    if name in ("random", "diurnal") and not (0 <= low <= high <= 1):
        return "a probability is from 0 to 1, the lower one first"
    if name == "diurnal" and numbers[2] <= 0:
        return "a day has a positive number of rounds"
    if key == "local-steps" and any(x != int(x) for x in numbers):
        return "a number of steps is whole"
    if name == "uniform" and not 0 < low <= high:
        return "both must be positive, the lower one first"
    if name == "lognormal" and low < 0:
        return "a spread is not negative"
    return "it must be positive" if not name and low <= 0 else ""
