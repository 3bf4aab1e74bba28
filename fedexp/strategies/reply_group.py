"""Replies that add up with each other."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedexp import keys, wire
from fedexp.merged import ClientSums
from fedexp.records import records_of
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.client_metrics import largest_spent, weighted_means
from fedexp.strategies.medians import MedianBounds

Aggregate = Callable[[list[RecordDict], str], MetricRecord | None]
"""Flower's form of a function that makes one record of the clients' metrics."""


@dataclass(eq=False)
class ReplyGroup:
    """Sums and metrics of replies of one ``wire.Kind``.

    Attributes:
        reading: how they were read.
        whole: keep their arrays too, for an aggregation function that wants to see them.
        bounds: on the weights of metrics and on losses, by the round's medians.
        stats: their sums.
        metrics: node and metrics of each.
        norms: ``‖Δᵢ‖`` of each before it was bounded; 0 where there is no bound.
        contents: records of each reply, without arrays unless ``whole``; none of merged ones.
    """

    reading: wire.ReplyFormat
    whole: bool = False
    bounds: MedianBounds | None = None
    stats: PseudoGradientStats = field(default_factory=PseudoGradientStats)
    metrics: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, node: int, content: RecordDict) -> None:
        """Remember what a node reported."""
        (metrics,) = records_of(content, MetricRecord).values()
        self.metrics.append((node, dict(metrics)))
        kept = {
            key: record
            for key, record in content.items()
            if self.whole or not isinstance(record, ArrayRecord)
        }
        self.contents.append(kept)

    def extend(self, sums: ClientSums) -> None:
        """Add several clients at once."""
        self.stats = self.stats + sums.stats
        self.metrics.extend(sums.metrics)
        self.norms.extend(sums.norms)

    def bounded(self) -> list[Mapping[str, Any]]:
        """The clients' metrics; with ``bounds`` no weight is far beyond the median."""
        rows = [m for _, m in self.metrics]
        if self.bounds is None or not rows:
            return rows
        key = self.reading.weighted_by
        weights = self.bounds.bounded([float(m[key]) for m in rows])
        return [{**m, key: weight} for m, weight in zip(rows, weights, strict=True)]

    def aggregated(self, aggregate: Aggregate) -> MetricRecord | None:
        """The metrics of all as one record.

        Args:
            aggregate: Flower's function or another, which gets the contents. Flower's own mean
                is taken of each metric over the clients that report it, and without a record per
                client, which would be most of a small round's server time.
        """
        if aggregate is aggregate_metricrecords:
            nodes = [node for node, _ in self.metrics]
            rows = self.bounded()
            means = weighted_means(rows, self.reading.weighted_by, nodes)
            means.update(largest_spent(rows))
            return means
        contents = self.contents
        if self.bounds:
            pairs = zip(contents, self.bounded(), strict=True)
            contents = [_reporting(kept, metrics) for kept, metrics in pairs]
        return aggregate([RecordDict(kept) for kept in contents], self.reading.weighted_by)

    def with_loss(self) -> PseudoGradientStats:
        """The statistics, with ``Σ pᵢ fᵢ(wᵢ)`` if any client reports its ``final-loss``.

        For clients that do not, the mean of the others stands.
        """
        told = [m for _, m in self.metrics if keys.FINAL_LOSS in m]
        if not told:
            return self.stats
        # fsum is exact, so the order in which replies arrive changes no bit.
        losses = [float(m[keys.FINAL_LOSS]) for m in told]
        if self.bounds:
            losses = self.bounds.near(losses)
        loss = math.fsum(map(operator.mul, map(self.reading.share, told), losses))
        if len(told) < len(self.metrics):
            loss *= self.stats.weight / math.fsum(map(self.reading.share, told))
        return replace(self.stats, loss=loss)


def _reporting(kept: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Records of a reply with other metrics."""
    return {
        key: MetricRecord(dict(metrics)) if isinstance(record, MetricRecord) else record
        for key, record in kept.items()
    }
