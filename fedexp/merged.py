"""Results of several clients as one value that adds, and grids that answer with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedexp.stats import PseudoGradientStats
from fedexp.wire import Kind, ReplyFormat

Failure = tuple[int, str]
"""A node, and why its reply is not used."""


@dataclass(frozen=True, eq=False)
class ClientSums:
    """The results of clients of one ``wire.Kind``, added up.

    Attributes:
        stats: their statistics.
        metrics: node id and reported metrics of each, in cohort order.
        norms: ``‖Δᵢ‖`` of each before it was bounded; 0 where there is no bound.
    """

    stats: PseudoGradientStats = field(default_factory=PseudoGradientStats)
    metrics: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    norms: tuple[float, ...] = ()

    def __add__(self, other: ClientSums) -> ClientSums:
        return ClientSums(
            self.stats + other.stats, self.metrics + other.metrics, self.norms + other.norms
        )


_NOTHING = ClientSums()


@dataclass(frozen=True, eq=False)
class Merged:
    """The answers of several clients: sums of the sound ones, and who else was asked.

    Clients of unlike kinds cannot be added up: there are sums for each kind.

    Attributes:
        sums: by kind.
        failures: node and reason of each client that is in no sum, in cohort order.

    Example:
        >>> from fedexp.merged import Merged
        >>> both = Merged(failures=((2, "it came too late"),)) + Merged(failures=((5, "NaN"),))
        >>> [node for node, _ in both.failures]
        [2, 5]
    """

    sums: Mapping[Kind, ClientSums] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: Merged) -> Merged:
        kinds = dict.fromkeys([*self.sums, *other.sums])
        get = self.sums.get, other.sums.get
        sums = {kind: get[0](kind, _NOTHING) + get[1](kind, _NOTHING) for kind in kinds}
        return Merged(sums, self.failures + other.failures)


class OrderedGrid(Grid):
    """A grid whose node ids come in the order of the nodes' partitions, the same in every run."""

    def begin_round(self, server_round: int) -> None:
        """Take note of a round that begins; nodes may come and go. Round 0 is none of a run's."""


class MergingGrid(Grid):
    """A grid that answers in more ways than Flower's: one by one, and with sums.

    Attributes:
        busy: seconds that the busiest worker took for the last messages.
    """

    busy: float = 0.0

    @abstractmethod
    def send_and_merge(
        self, messages: Iterable[Message], reading: ReplyFormat, timeout: float | None
    ) -> Merged:
        """Let the nodes train, and add their results up where they are made.

        Args:
            messages: at most one to a node.
            reading: how the results are to be read.
            timeout: seconds after which a client counts as a failure; None for the messages' own
                time to live.
        """

    @abstractmethod
    def send_and_stream(
        self, messages: Iterable[Message], timeout: float | None
    ) -> Iterator[Message]:
        """As ``send_and_receive``, handing over each reply as it comes."""


def merging(grid: Grid) -> MergingGrid | None:
    """``grid``, if it adds up; None for one whose ``send_and_receive`` was overridden.

    Whoever overrides it, to look at the messages or to change them, wants all of them to pass.
    """
    if not isinstance(grid, MergingGrid) or "send_and_receive" in vars(grid):
        return None
    owners = {_owner(type(grid), name) for name in ("send_and_receive", "send_and_merge")}
    return grid if len(owners) == 1 else None


def _owner(cls: type, name: str) -> type:
    """The class that defines a method of ``cls``."""
    return next(base for base in cls.__mro__ if name in vars(base))
