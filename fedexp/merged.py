"""The one reply of a merged cohort: sums that add, and what makes them believable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedexp.arrays import Arrays, Float64s, check_alike, first_non_finite, sq_norm
from fedexp.records import from_record, records_of, to_record
from fedexp.stats import PseudoGradientStats
from fedexp.wire import BadReply, Kind, Reading

MERGED = "fedexp-sums"
"""Record key by which a merged reply is known."""

_ROUNDING = 1e-6  # of the inequalities that sums of any clients obey


class ToMerge(list[Message]):
    """Messages whose replies a grid may merge. Who makes another list of them gets single ones.

    Args:
        messages: as a strategy sends them.
        reading: how the replies are to be read.
    """

    def __init__(self, messages: Iterable[Message], reading: Reading) -> None:
        super().__init__(messages)
        self.reading = reading


@dataclass(frozen=True, eq=False)
class Merged:
    """The replies of several clients as one value that adds.

    Attributes:
        stats: their statistics.
        metrics: node id and reported metrics of each, in cohort order.
        norms: ``‖Δᵢ‖`` of each before any bound; 0 where there is none.
    """

    stats: PseudoGradientStats = field(default_factory=PseudoGradientStats)
    metrics: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    norms: tuple[float, ...] = ()

    def __add__(self, other: Merged) -> Merged:
        return Merged(
            self.stats + other.stats, self.metrics + other.metrics, self.norms + other.norms
        )

    def to_content(self) -> RecordDict:
        """As the content of one reply, read back by ``from_content``."""
        s = self.stats
        sums: dict[str, Any] = {
            "count": s.count,
            "weight": s.weight,
            "sq-norm": s.sq_norm,
            "norm": s.norm,
            "num-clipped": s.num_clipped,
        }
        # One text, not a record per client: Flower's records check every number they are given.
        metrics = json.dumps([(node, dict(m)) for node, m in self.metrics])
        return RecordDict(
            {
                MERGED: MetricRecord(sums),
                "update-sum": to_record(s.update),
                "buffer-sum": to_record(s.buffers),
                "metrics": ConfigRecord({"json": metrics, "norms": list(self.norms)}),
            }
        )

    @classmethod
    def from_content(cls, content: RecordDict) -> Merged:
        """The inverse of ``to_content``.

        Raises:
            BadReply: ``content`` has another form.
        """
        try:
            return cls._from_content(content)
        except Exception as error:  # whatever was sent in place of one
            raise BadReply(f"it is no merged reply: {error!r}.") from error

    @classmethod
    def _from_content(cls, content: RecordDict) -> Merged:
        arrays = records_of(content, ArrayRecord)
        sums = records_of(content, MetricRecord)[MERGED]
        reported = records_of(content, ConfigRecord)["metrics"]
        metrics = json.loads(cast(str, reported["json"]))
        return cls(
            PseudoGradientStats(
                count=int(cast(int, sums["count"])),
                weight=float(cast(float, sums["weight"])),
                update=cast(Any, from_record(arrays["update-sum"])),
                sq_norm=float(cast(float, sums["sq-norm"])),
                norm=float(cast(float, sums["norm"])),
                buffers=cast(Any, from_record(arrays["buffer-sum"])),
                num_clipped=int(cast(int, sums["num-clipped"])),
            ),
            tuple((int(node), dict(m)) for node, m in metrics),
            tuple(float(norm) for norm in cast(list[float], reported["norms"])),
        )

    def checked(self, reading: Reading, before: Arrays) -> Kind:
        """The one kind of the clients that were merged, if they can have been.

        Names, shapes and weights must be those of replies that ``reading`` takes, and the sums
        must obey what holds for any updates: ``‖Σ pᵢΔᵢ‖² ≤ Σpᵢ Σpᵢ‖Δᵢ‖²`` (Cauchy and Schwarz),
        ``(Σ pᵢ‖Δᵢ‖)² ≤ Σpᵢ Σpᵢ‖Δᵢ‖²``, and ``‖Δᵢ‖ ≤ C``. With such a bound they must be those of
        the norms that are named.

        Args:
            reading: how replies are read.
            before: what was broadcast.

        Raises:
            BadReply: they cannot; its text says why.
        """
        s = self.stats
        if not 0 < s.count == len(self.metrics) == len({node for node, _ in self.metrics}):
            raise BadReply(f"count is {s.count} with metrics of {len(self.metrics)} clients.")
        if not 0 <= s.num_clipped <= s.count:
            raise BadReply(f"num-clipped is {s.num_clipped} of {s.count}.")
        for _, metrics in self.metrics:
            _check_metrics(metrics)
        weight = math.fsum(reading.share(metrics) for _, metrics in self.metrics)
        if not math.isclose(s.weight, weight, rel_tol=_ROUNDING):
            raise BadReply(f"weight is {s.weight}, its clients' are {weight}.")
        kind = self._kind(reading, before)
        for square in (sq_norm(s.update), s.norm * s.norm):
            if not square <= s.weight * s.sq_norm * (1 + _ROUNDING) < math.inf:
                raise BadReply(f"sums of norms {s.norm}, {s.sq_norm} do not fit the update.")
        if not s.sq_norm <= s.weight * reading.max_norm * reading.max_norm * (1 + _ROUNDING):
            raise BadReply(f"sq-norm {s.sq_norm} is over {reading.max_norm} a client.")
        if not math.isinf(reading.max_norm):
            self._check_norms(reading)
        if name := first_non_finite(s.buffers):
            raise BadReply(f"array {name!r} holds NaN or infinity.")
        return kind

    def _check_norms(self, reading: Reading) -> None:
        if len(self.norms) != self.stats.count or not all(0 <= x < math.inf for x in self.norms):
            raise BadReply(f"it names {len(self.norms)} norms of {self.stats.count} clients.")
        weights = [reading.share(metrics) for _, metrics in self.metrics]
        short = [min(norm, reading.max_norm) for norm in self.norms]
        norm = math.fsum(p * x for p, x in zip(weights, short, strict=True))
        if not math.isclose(self.stats.norm, norm, rel_tol=_ROUNDING):
            raise BadReply(f"norm is {self.stats.norm}, that of its clients is {norm}.")

    def _kind(self, reading: Reading, before: Arrays) -> Kind:
        sums = {**self.stats.update, **self.stats.buffers}
        _check_alike(sums, {name: x for name, x in before.items() if name in sums})
        moved, buffers = self.stats.update.keys(), frozenset(self.stats.buffers) & reading.trainable
        if (buffers and not reading.narrows) or not sums or not moved <= reading.trainable:
            raise BadReply(f"it moves {sorted(moved)[:3]}..., another set than was asked for.")
        kinds = {reading.kind(sums, metrics, before, buffers) for _, metrics in self.metrics}
        if len(kinds) > 1:
            raise BadReply(f"it adds up clients of different {reading.step_key}.")
        return kinds.pop()


class Sums(dict[Kind, Merged]):
    """The replies of several clients, added up with their like alone."""

    def __add__(self, other: Sums) -> Sums:
        return Sums({k: self.get(k, _NOTHING) + other.get(k, _NOTHING) for k in self | other})


_NOTHING = Merged()


def _check_alike(sums: Float64s, expected: Arrays) -> None:
    try:
        check_alike(sums, expected)
    except ValueError as error:
        raise BadReply(str(error)) from error


def _check_metrics(metrics: Mapping[Any, Any]) -> None:
    """Raise ``BadReply`` unless ``metrics`` are what a MetricRecord may hold."""
    for key, value in metrics.items():
        values: Iterable[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(x, int | float) for x in values):
            raise BadReply(f"metric {key!r} is {str(value)[:30]}, no number.")
