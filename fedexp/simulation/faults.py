"""Faults to order: which client fails in which round, and how; the same in every engine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from random import Random
from typing import Self

from fedexp.specs import split_list, value_of

SLOWDOWN = 10.0
"""A slow reply takes so many times as long."""

SCALE = -10.0
"""A scaled update is multiplied by this: far too long, and in the wrong direction."""


@dataclass(frozen=True)
class Faults:
    """The probabilities with which a client fails in a round.

    A client has at most one fault in a round. Which one is a function of the run's seed, the round
    and the client alone, so that it does not depend on the engine or on who else trains.

    Attributes:
        drop: the client trains, but its reply gets lost.
        slow: it takes ``SLOWDOWN`` times as long, in simulated time.
        nan: its model holds a NaN.
        garbage: its arrays have a wrong shape, a wrong name, or hold text.
        scale: its update is multiplied by ``SCALE``.
        crash: it raises an exception before it trains.

    Example:
        >>> from fedexp.simulation.faults import Faults
        >>> faults = Faults.of("drop=0.5, nan=0.1")
        >>> [faults.at(seed=0, server_round=1, client=client) for client in range(5)]
        ['', '', '', 'drop', '']
    """

    drop: float = 0.0
    slow: float = 0.0
    nan: float = 0.0
    garbage: float = 0.0
    scale: float = 0.0
    crash: float = 0.0

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, text: str) -> Self:
        """Read ``drop=0.1, nan=0.02``; no text is no faults.

        Raises:
            ValueError: no such fault, one that is named twice, or no probability.
        """
        found: dict[str, float] = {}
        for part in split_list(text.replace(";", ",")):
            kind, _, share = (x.strip() for x in part.partition("="))
            probability = value_of(share)
            if kind not in KINDS:
                raise ValueError(f"no fault {kind!r}; known are {', '.join(KINDS)}")
            if kind in found:
                raise ValueError(f"{kind} is given twice")
            if isinstance(probability, bool) or not isinstance(probability, int | float):
                raise ValueError(f"{part!r} is no probability; write {kind}=0.1")
            if not 0 <= probability <= 1:
                raise ValueError(f"{part!r} must be from 0 to 1")
            found[kind] = float(probability)
        if sum(found.values()) > 1 + 1e-9:
            raise ValueError("a client has one fault at most; let the probabilities add up to 1")
        return cls(**found)

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in KINDS)

    def ordered(self) -> list[str]:
        """The kinds that can happen."""
        return [kind for kind in KINDS if getattr(self, kind)]

    def at(self, seed: int, server_round: int, client: int) -> str:
        """The kind of fault of a client in a round; empty for none."""
        if not self:
            return ""
        left = uniform("fault", seed, server_round, client)
        for kind in KINDS:
            left -= getattr(self, kind)
            if left < 0:
                return kind
        return ""


KINDS = tuple(field.name for field in fields(Faults))
"""All kinds of faults, in the order of the probabilities."""


def uniform(use: str, *numbers: int) -> float:
    """A number in ``[0, 1)`` that depends on nothing but the arguments.

    Python seeds with text by SHA-512, the same in every process and version.
    """
    return Random(f"{use} {' '.join(map(str, numbers))}").random()
