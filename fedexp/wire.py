"""Reading clients' replies, and the one reply of a merged cohort."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.arrays import Arrays, cast_alike, check_alike, first_non_finite
from fedexp.records import R, from_record, records_of, to_record
from fedexp.stats import PseudoGradientStats, update_norm

FINAL_LOSS = "final-loss"
"""Metric: the client's loss at what it returns, for rules that need it."""

_MAX_WEIGHT = 1e15

REQUEST, MERGED = "fedexp-merge", "fedexp-sums"


class BadReply(ValueError):
    """A client's reply that cannot enter the round; its text says why."""


@dataclass(frozen=True)
class Reading:
    """How replies of a round are to be read.

    Attributes:
        weighted_by: key of the weight in the reply's MetricRecord.
        uniform: give every client weight 1 in the step, whatever its examples.
        trainable: names that move; the rest are buffers.
        arrays_key: record key of what was broadcast.
        max_norm: ``C``; a longer update counts as ``Δᵢ C/‖Δᵢ‖``.
        max_weight: ``P``; a client that claims more counts with ``P``.
    """

    weighted_by: str
    uniform: bool
    trainable: frozenset[str]
    arrays_key: str
    max_norm: float = math.inf
    max_weight: float = math.inf

    def to_record(self) -> ConfigRecord:
        """As a record of a message, see ``from_record``."""
        return ConfigRecord(
            {
                "weighted-by": self.weighted_by,
                "uniform": self.uniform,
                "trainable": sorted(self.trainable),
                "arrays-key": self.arrays_key,
                "max-norm": self.max_norm,
                "max-weight": self.max_weight,
            }
        )

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Reading:
        """The inverse of ``to_record``."""
        return cls(
            weighted_by=cast(str, record["weighted-by"]),
            uniform=cast(bool, record["uniform"]),
            trainable=frozenset(cast(list[str], record["trainable"])),
            arrays_key=cast(str, record["arrays-key"]),
            max_norm=cast(float, record["max-norm"]),
            max_weight=cast(float, record["max-weight"]),
        )

    def read(
        self, content: RecordDict, before: Arrays, *, look_at_updates: bool = True
    ) -> tuple[Arrays, float]:
        """What a client returned, and its weight ``pᵢ``.

        Args:
            content: of the reply.
            before: what was broadcast.
            look_at_updates: look for NaN and infinity in trainable arrays too. A caller that
                folds can save this pass over memory: they show in the norm.

        Raises:
            BadReply: not one ArrayRecord and one MetricRecord, other names or shapes than
                ``before``, NaN or infinity, or a weight that is not a positive number.
        """
        try:
            received = from_record(_only(content, ArrayRecord))
        except BadReply:
            raise
        except ValueError as error:
            raise BadReply(str(error)) from error
        metrics = _only(content, MetricRecord)
        return self.taken(received, metrics, before, look_at_updates=look_at_updates)

    def taken(
        self,
        received: Arrays,
        metrics: Mapping[str, Any],
        before: Arrays,
        *,
        look_at_updates: bool = False,
    ) -> tuple[Arrays, float]:
        """As ``read``, of a reply's arrays and metrics."""
        try:
            check_alike(received, before)
        except ValueError as error:
            raise BadReply(str(error)) from error
        arrays = cast_alike(received, before)
        looked_at = {
            name: x for name, x in arrays.items() if look_at_updates or name not in self.trainable
        }
        if name := first_non_finite(looked_at):
            raise BadReply(f"array {name!r} holds NaN or infinity.")
        weight = self._weight(metrics)
        return arrays, self.bounded(weight)

    def bounded(self, weight: float) -> float:
        """``pᵢ`` in the step of a client that claims ``weight``."""
        return 1.0 if self.uniform else min(weight, self.max_weight)

    def norm(self, after: Arrays, before: Arrays) -> float:
        """``‖Δᵢ‖`` of what a client returned; 0 if there is no bound that asks for it."""
        if math.isinf(self.max_norm):
            return 0.0
        return update_norm(before, after, self.trainable)

    def scale(self, norm: float) -> float:
        """``sᵢ = min(1, C/‖Δᵢ‖)`` of an update of length ``norm``."""
        # An infinite norm is not scaled to nothing: it has to show in the sums.
        return self.max_norm / norm if self.max_norm < norm < math.inf else 1.0

    def weight(self, content: RecordDict) -> float:
        """The client's weight as it reported it."""
        return self._weight(_only(content, MetricRecord))

    def _weight(self, metrics: Mapping[str, Any]) -> float:
        value = metrics.get(self.weighted_by)
        if isinstance(value, list) or value is None or not 0 < value < _MAX_WEIGHT:
            raise BadReply(
                f"{self.weighted_by} is {value}, it must be a positive number below 1e15."
            )
        loss = metrics.get(FINAL_LOSS, 0.0)
        if isinstance(loss, list) or not math.isfinite(loss):
            raise BadReply(f"{FINAL_LOSS} is {loss}, it must be a finite number.")
        return float(value)


def _only(content: RecordDict, kind: type[R]) -> R:
    records = records_of(content, kind)
    if len(records) != 1:
        raise BadReply(f"it has {len(records)} records of kind {kind.__name__}, expected one.")
    return next(iter(records.values()))


@dataclass(frozen=True, eq=False)
class Merged:
    """The replies of several clients as one value that adds.

    Attributes:
        stats: their statistics.
        metrics: node id and reported metrics of each, in cohort order.
        norms: ``‖Δᵢ‖`` of each before it was bounded; 0 where there is no bound.
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
        """The inverse of ``to_content``."""
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
            tuple((node, m) for node, m in metrics),
            tuple(cast(list[float], reported["norms"])),
        )
