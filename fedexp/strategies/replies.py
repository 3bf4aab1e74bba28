"""The replies of one round, folded as they arrive."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedexp import wire
from fedexp.arrays import Arrays
from fedexp.records import records_of
from fedexp.stats import PseudoGradientStats, update_norm
from fedexp.strategies.medians import MedianBounds, Report
from fedexp.strategies.robustness import outliers

Content = tuple[int, RecordDict]
"""A node's id and what it sent."""


class Replies:
    """The running sums of one round.

    Args:
        before: what was broadcast.
        reading: how replies are read.
        merges: the grid was asked for merged replies; from anybody else they are not believed.
        bounds: on the weights of metrics and on losses, by the round's medians.
    """

    def __init__(
        self,
        before: Arrays,
        reading: wire.Reading,
        *,
        merges: bool = False,
        bounds: MedianBounds | None = None,
    ) -> None:
        self.before, self.reading, self.merges, self.bounds = before, reading, merges, bounds
        self.stats = PseudoGradientStats()
        self.metrics: list[tuple[int, Mapping[str, Any]]] = []
        self.norms: list[float] = []
        self.metrics_key = "metrics"
        self.num_failures = 0

    def contents(self, replies: Iterable[Message]) -> Iterator[Content]:
        """Node and content of each reply as it arrives; errors are logged."""
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._leave_out(node, reply.error.reason or f"error {reply.error.code}")
            else:
                content = reply.content
                del reply  # only who iterates may hold it while the next one is in the making
                yield node, content
                del content

    def fold(self, contents: Iterable[Content], *, drop_beyond: float | None = None) -> None:
        """Add train replies one by one, or log why not.

        With ``drop_beyond`` all of them are held until the last has come, and those whose update
        is longer than this multiple of the median are left out.
        """
        if drop_beyond is not None:
            return self._fold_near(contents, drop_beyond)
        for node, content in contents:
            self._take(node, content)
            del content

    def _take(self, node: int, content: RecordDict) -> None:
        if self.merges and wire.MERGED in content:
            merged = wire.Merged.from_content(content)
            self.stats = self.stats + merged.stats
            self.metrics.extend(merged.metrics)
            self.norms.extend(merged.norms)
        elif (read := self._read(node, content)) is not None:
            self._add(node, content, *read)

    def _fold_near(self, contents: Iterable[Content], k: float) -> None:
        rows = [
            (node, content, read)
            for node, content in contents
            if (read := self._read(node, content)) is not None
        ]
        trainable = self.reading.trainable
        norms = [update_norm(self.before, after, trainable) for _, _, (after, _) in rows]
        for row, norm, is_out in zip(rows, norms, outliers(norms, k), strict=True):
            node, content, read = row
            if is_out:
                self._leave_out(node, f"its update's norm {norm:.3g} is over {k} x the median.")
            else:
                self._add(node, content, *read)

    def fold_metrics(self, contents: Iterable[Content]) -> None:
        """Keep the metrics of evaluate replies, or log why not."""
        for node, content in contents:
            try:
                self.reading.weight(content)
            except wire.BadReply as error:
                self._leave_out(node, str(error))
            else:
                self._keep_metrics(node, content)

    def aggregated(
        self, aggregate: Callable[[list[RecordDict], str], MetricRecord]
    ) -> MetricRecord:
        """The clients' metrics as one; of clients whose metrics have the first one's form.

        Args:
            aggregate: Flower's function or another; Flower's own weighted mean is taken without
                making a record per client, which would be most of a small round's server time.
        """
        rows = self._alike()
        if aggregate is aggregate_metricrecords:
            return _means(rows, self.reading.weighted_by)
        records = [RecordDict({self.metrics_key: MetricRecord(dict(m))}) for m in rows]
        return aggregate(records, self.reading.weighted_by)

    def _alike(self) -> list[Mapping[str, Any]]:
        form = _form(self.metrics[0][1])
        for node, metrics in self.metrics:
            if _form(metrics) != form:
                log(WARNING, "Metrics of node %s left out: they are %s.", node, sorted(metrics))
        return [m for m in self.bounded() if _form(m) == form]

    def bounded(self) -> list[Mapping[str, Any]]:
        """The clients' metrics; with ``bounds`` no weight is far beyond the median."""
        rows = [m for _, m in self.metrics]
        if self.bounds is None:
            return rows
        key = self.reading.weighted_by
        weights = self.bounds.bounded([m[key] for m in rows])
        return [{**m, key: weight} for m, weight in zip(rows, weights, strict=True)]

    def with_loss(self) -> PseudoGradientStats:
        """The statistics, with ``Σ pᵢ fᵢ(wᵢ)`` if every client reports its ``final-loss``."""
        if not all(wire.FINAL_LOSS in m for _, m in self.metrics):
            return self.stats
        losses = [float(m[wire.FINAL_LOSS]) for _, m in self.metrics]
        if self.bounds:
            losses = self.bounds.near(losses)
        weights = [report.weight for report in self.reports]
        # fsum is exact, so the order in which replies arrive changes no bit.
        return replace(self.stats, loss=math.fsum(map(operator.mul, weights, losses)))

    @property
    def reports(self) -> list[Report]:
        """What each client claims to weigh, weighs, and ``‖Δᵢ‖`` if the reading bounds it."""
        claims = [float(m[self.reading.weighted_by]) for _, m in self.metrics]
        return [
            Report(claim, self.reading.bounded(claim), norm)
            for claim, norm in zip(claims, self.norms, strict=True)
        ]

    def _read(self, node: int, content: RecordDict) -> tuple[Arrays, float] | None:
        try:
            return self.reading.read(content, self.before)
        except wire.BadReply as error:
            self._leave_out(node, str(error))
            return None

    def _add(self, node: int, content: RecordDict, after: Arrays, weight: float) -> None:
        norm = self.reading.norm(after, self.before)
        if math.isinf(norm):
            return self._leave_out(node, "its norm overflows.")
        self.stats = PseudoGradientStats.fold(
            self.before,
            [after],
            weights=[weight],
            trainable=self.reading.trainable,
            scales=[self.reading.scale(norm)],
            onto=self.stats,
        )
        self.norms.append(norm)
        self._keep_metrics(node, content)

    def _keep_metrics(self, node: int, content: RecordDict) -> None:
        ((self.metrics_key, metrics),) = records_of(content, MetricRecord).items()
        self.metrics.append((node, dict(metrics)))

    def _leave_out(self, node: int, reason: str) -> None:
        self.num_failures += 1
        log(WARNING, "Reply of node %s left out: %s", node, reason)


def _form(metrics: Mapping[str, Any]) -> dict[str, int | None]:
    """Names, and the length of each that is a list."""
    return {key: len(x) if isinstance(x, list) else None for key, x in metrics.items()}


def _means(rows: Sequence[Mapping[str, Any]], weighted_by: str) -> MetricRecord:
    weights = np.array([row[weighted_by] for row in rows], np.float64)
    shares = weights / weights.sum()
    return MetricRecord(
        {
            key: (shares @ np.array([row[key] for row in rows], np.float64)).tolist()
            for key in rows[0]
            if key != weighted_by
        }
    )
