"""What can be added to a round without editing ``FedOpt``: one shape for every addition.

A round asks its extensions five times: how to read the replies, what else to send, which replies to
drop, whether the clients fit, and what to make of the sums. SCAFFOLD, clipping, bounds by the
median client and shared learning rates are extensions; so can be FedNova, FedDyn or a private
round. The idea is that of the postprocessors of pfl-research (Granqvist et al. 2024,
arXiv:2404.06430), which work at the clients too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State


@dataclass(frozen=True, eq=False)
class RoundInProgress:
    """All that a strategy holds between sending a round's messages and reading the replies.

    Attributes:
        params: ``w``, the model that is sent; ``{}`` where it is not known.
        reading: how the replies are read, a ``wire.ReplyFormat``: which names the step moves
            (``trainable``), and by what updates and weights are bounded.
        server_round: its number, from 1.
        settings: for the clients, as the user gave them.
        nodes: the nodes that are asked to train; none before they are drawn.
        num_nodes: how many are connected.
        sampling_rate: with which each node was asked, whoever else was; 0 where they were drawn
            otherwise.

    Example:
        >>> from fedexp.strategies import RoundInProgress
        >>> RoundInProgress({}, None, server_round=3, nodes=[7, 8], num_nodes=50).nodes
        [7, 8]
    """

    params: Arrays
    reading: Any  # this module is to need NumPy alone, and wire.ReplyFormat needs Flower
    server_round: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    nodes: Sequence[int] = ()
    num_nodes: int = 0
    sampling_rate: float = 0.0


class Report(NamedTuple):
    """What a client of a round claimed and sent.

    Attributes:
        claim: its weight as it reported it.
        weight: ``pᵢ``, what it counts with.
        norm: ``‖Δᵢ‖``, before any bound; 0 where no bound asks for it.
    """

    claim: float
    weight: float
    norm: float


@dataclass(frozen=True, eq=False)
class Received:
    """The usable replies of a round. The sequences have an entry for each, in the same order.

    Attributes:
        round: what was sent, and to whom.
        stats: the sums over the replies, before any extension has changed them.
        nodes: who replied.
        metrics: what each client reported.
        norms: ``‖Δᵢ‖`` of each, before any bound; 0 where no bound asks for it.
        step: ``K η_l``, which all have in common, where the reading has a ``step_key``.
        unlike: nodes of replies that were dropped because they do not add up with the others.
        without_step: nodes of replies that were dropped because they lack the ``step_key``.

    Example:
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Received, RoundInProgress
        >>> from fedexp.wire import ReplyFormat
        >>> asked = RoundInProgress({}, ReplyFormat("num-examples", False, frozenset(), "arrays"))
        >>> metrics = [{"num-examples": 3}, {"num-examples": 5}]
        >>> Received(asked, PseudoGradientStats(), [7, 8], metrics, [0.0, 0.0]).weights
        [3.0, 5.0]
    """

    round: RoundInProgress
    stats: PseudoGradientStats
    nodes: Sequence[int]
    metrics: Sequence[Mapping[str, Any]]
    norms: Sequence[float]
    step: float = 0.0
    unlike: Sequence[int] = ()
    without_step: Sequence[int] = ()

    @property
    def claims(self) -> list[float]:
        """The weight of each client as it reported it."""
        key = self.round.reading.weighted_by
        return [float(metrics[key]) for metrics in self.metrics]

    @property
    def weights(self) -> list[float]:
        """``pᵢ``, with which each client counts."""
        return [self.round.reading.share(metrics) for metrics in self.metrics]

    @property
    def reports(self) -> list[Report]:
        """Claim, weight and norm of each client."""
        return list(map(Report, self.claims, self.weights, self.norms))


@dataclass(frozen=True, eq=False)
class Sent:
    """What goes to the clients beside the model, and what the server remembers of it.

    Attributes:
        settings: entries of the clients' config record.
        arrays: arrays by name, by the key of the record that brings them.
        state: new entries of the strategy's state. They stay, whatever becomes of the round.

    Example:
        >>> from fedexp.strategies import Sent
        >>> (Sent({"mu": 0.1}) | Sent({"run-id": 3.0})).settings
        {'mu': 0.1, 'run-id': 3.0}
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    state: State = field(default_factory=dict)

    def __or__(self, other: Sent) -> Sent:
        return Sent(
            {**self.settings, **other.settings},
            {**self.arrays, **other.arrays},
            {**self.state, **other.state},
        )


class Adapted(NamedTuple):
    """What an extension makes of the sums of a round.

    Attributes:
        stats: the sums that the server step gets.
        state: new entries of the strategy's state. They are forgotten if the step is refused.
        metrics: what to report of the round.

    Example:
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import Adapted
        >>> Adapted(PseudoGradientStats(count=2), metrics={"num-late": 1.0}).state
        {}
    """

    stats: PseudoGradientStats
    state: State = {}  # noqa: RUF012 - never written to
    metrics: Mapping[str, float] = {}


class Extension:
    """An addition to a round; every method does nothing unless it is overridden.

    Subclasses are small frozen dataclasses. They are pure with regard to the strategy's ``state``:
    it comes in, and new entries go out, arrays by name under one key of the extension's own. So a
    checkpoint holds what they remember, and a run that goes on takes the same steps.

    Attributes:
        keeps_mean: the step stays a mean of bounded updates, none of which counts for more than its
            weight. If not, Flower's differential-privacy wrappers are refused: their noise would
            be too small.
        needs_updates: it looks at the updates of single clients. If so, it cannot be used where the
            model is not known, nor under secure aggregation.
        is_private: it hides what single clients sent. If so, means of the clients' metrics are not
            reported.
        samples: it draws the clients itself, see ``sample``, and whether one of them replied is a
            secret too: a round without a usable reply has a step as well.

    Example:
        A server that takes half of every update:

        >>> from dataclasses import dataclass, replace
        >>> from fedexp.strategies import Adapted, Extension, FedAvg
        >>> @dataclass(frozen=True)
        ... class Scaled(Extension):
        ...     factor: float
        ...
        ...     def aggregate(self, received, stats, state):
        ...         update = {k: x * self.factor for k, x in stats.update.items()}
        ...         return Adapted(replace(stats, update=update), {}, {"factor": self.factor})
        >>> strategy = FedAvg(extensions=[Scaled(0.5)])
        >>> strategy.extensions.find(Scaled)
        Scaled(factor=0.5)
    """

    keeps_mean: ClassVar[bool] = False
    needs_updates: ClassVar[bool] = True
    is_private: ClassVar[bool] = False
    samples: ClassVar[bool] = False

    def sample(
        self, nodes: Sequence[int], fraction: float, server_round: int
    ) -> Sequence[int] | None:
        """Who of ``nodes`` is asked to train; None where the strategy is to draw them."""
        return None

    def reading(self, state: State) -> Mapping[str, Any]:
        """Fields of ``wire.ReplyFormat`` that differ in the coming round, e.g. bounds."""
        return {}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """What goes to the clients of a round beside the model, once they are drawn."""
        return Sent()

    def drop(self, norms: Sequence[float]) -> Mapping[int, str]:
        """Which replies are dropped, and why, by their place among ``norms``, ``‖Δᵢ‖`` of each.

        Where an extension overrides this, the server holds all replies of a round.
        """
        return {}

    def check(self, received: Received, state: State) -> None:
        """Raise ``ValueError`` if the clients do not fit; ``received`` may hold no reply."""

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """What is made of the sums before the server step.

        Args:
            received: the replies, at least one.
            stats: the sums as the extensions before this one have left them.
            state: of the strategy.
        """
        return Adapted(stats)


_E = TypeVar("_E", bound=Extension)


class Extensions(tuple[Extension, ...]):
    """The extensions of a strategy, asked in their order as if they were one.

    Example:
        >>> from fedexp.strategies import Extension, FixedClip
        >>> from fedexp.strategies.extensions import Extensions
        >>> both = Extensions([FixedClip(0.5), Extension()])
        >>> both.reading({})
        {'max_norm': 0.5}
        >>> both.needs_updates, both.keeps_mean
        (True, False)
    """

    @property
    def keeps_mean(self) -> bool:
        """Whether all of them do."""
        return all(extension.keeps_mean for extension in self)

    @property
    def needs_updates(self) -> bool:
        """Whether one of them does."""
        return any(extension.needs_updates for extension in self)

    @property
    def is_private(self) -> bool:
        """Whether one of them is."""
        return any(extension.is_private for extension in self)

    @property
    def samples(self) -> bool:
        """Whether one of them does."""
        return any(extension.samples for extension in self)

    def sample(
        self, nodes: Sequence[int], fraction: float, server_round: int
    ) -> Sequence[int] | None:
        """Who is asked, by the first that says so."""
        drawn = (one.sample(nodes, fraction, server_round) for one in self)
        return next((chosen for chosen in drawn if chosen is not None), None)

    def find(self, kind: type[_E]) -> _E | None:
        """The first of this ``kind``, or None."""
        return next((extension for extension in self if isinstance(extension, kind)), None)

    def reading(self, state: State) -> dict[str, Any]:
        """The fields that they change together."""
        return {key: x for extension in self for key, x in extension.reading(state).items()}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """What they send together."""
        sent = Sent()
        for extension in self:
            sent |= extension.send(round_, state | sent.state)
        return sent

    @property
    def drop(self) -> Callable[[Sequence[float]], dict[int, str]] | None:
        """How they drop replies; None if they do not, so that no reply has to be held."""
        holding = [one for one in self if type(one).drop is not Extension.drop]
        if not holding:
            return None
        return lambda norms: {i: why for one in holding for i, why in one.drop(norms).items()}

    def check(self, received: Received, state: State) -> None:
        """Raise ``ValueError`` if the clients do not fit one of them."""
        for extension in self:
            extension.check(received, state)

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums after all of them, the whole state, and all metrics."""
        metrics: dict[str, float] = {}
        for extension in self:
            stats, entries, own = extension.aggregate(received, stats, state)
            state, metrics = state | entries, metrics | dict(own)
        return Adapted(stats, state, metrics)


def check_extensions(given: Any) -> list[Extension]:
    """``given`` as a list.

    Raises:
        ValueError: it holds something that is no extension.
    """
    found: list[Any] = list(given or ()) if isinstance(given, Iterable | None) else [given]
    for i, one in enumerate(found):
        if not isinstance(one, Extension):
            what = one.__name__ if isinstance(one, type) else repr(one)
            raise ValueError(
                f"FedOpt(extensions[{i}]={what}): must be an Extension. Give one, such as "
                "extensions=[FixedClip(1.0)]."
            )
    return found


def run_number(state: State) -> Sent:
    """A number for this run, for clients that keep something from round to round.

    A client that sees another number forgets what it kept: that was another run's.

    Example:
        >>> from fedexp.strategies.extensions import run_number
        >>> first = run_number({})
        >>> run_number(first.state).settings == first.settings  # a run that goes on keeps it
        True
    """
    known = state.get(keys.RUN_ID) or {"id": np.asarray(float(time.time_ns()))}
    return Sent({keys.RUN_ID: float(known["id"])}, state={keys.RUN_ID: known})
