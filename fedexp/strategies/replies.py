"""The replies of one round, folded as they arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from logging import WARNING
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.logger import log

from fedexp import wire
from fedexp.arrays import Arrays
from fedexp.stats import PseudoGradientStats, update_norm
from fedexp.strategies.robustness import outliers

FINAL_LOSS = "final-loss"


class Replies:
    """The running sums of one round.

    Args:
        before: what was broadcast.
        reading: how replies are read.
    """

    def __init__(self, before: Arrays, reading: wire.Reading) -> None:
        self.before, self.reading = before, reading
        self.stats = PseudoGradientStats()
        self.metrics: list[tuple[int, Mapping[str, Any]]] = []
        self.num_failures = 0

    def take(self, reply: Message) -> None:
        """Fold a train reply, or log why not."""
        if (content := self._content(reply)) is None:
            return
        if wire.MERGED in content:
            merged = wire.Merged.from_content(content)
            self.stats = self.stats + merged.stats
            self.metrics.extend(merged.metrics)
        elif (read := self._read(reply, content)) is not None:
            self._fold(reply, content, *read)

    def take_near(self, replies: Iterable[Message], k: float) -> None:
        """Fold the train replies whose update is no longer than ``k`` times the median.

        All of them are held until the last has come.
        """
        contents = [(reply, self._content(reply)) for reply in replies]
        rows = [
            (reply, content, read)
            for reply, content in contents
            if content is not None and (read := self._read(reply, content)) is not None
        ]
        trainable = self.reading.trainable
        norms = [update_norm(self.before, after, trainable) for _, _, (after, _) in rows]
        for row, norm, is_out in zip(rows, norms, outliers(norms, k), strict=True):
            reply, content, read = row
            if is_out:
                self._leave_out(reply, f"its update's norm {norm:.3g} is over {k} x the median.")
            else:
                self._fold(reply, content, *read)

    def take_metrics(self, reply: Message) -> None:
        """Keep the metrics of an evaluate reply, or log why not."""
        if (content := self._content(reply)) is None:
            return
        try:
            self.reading.weight(content)
        except wire.BadReply as error:
            return self._leave_out(reply, str(error))
        self._keep_metrics(reply, content)

    def alike(self) -> list[RecordDict]:
        """Metrics for Flower's aggregation functions: those with the first client's keys."""
        keys = self.metrics[0][1].keys()
        for node, metrics in self.metrics:
            if metrics.keys() != keys:
                log(WARNING, "Metrics of node %d left out: keys %s.", node, sorted(metrics))
        return [
            RecordDict({"metrics": MetricRecord(dict(m))})
            for _, m in self.metrics
            if m.keys() == keys
        ]

    def with_loss(self) -> PseudoGradientStats:
        """The statistics, with ``Σ pᵢ fᵢ(wᵢ)`` if every client reports its ``final-loss``."""
        if not all(FINAL_LOSS in m for _, m in self.metrics):
            return self.stats
        # fsum is exact, so the order in which replies arrive changes no bit.
        return replace(
            self.stats, loss=math.fsum(self._weight(m) * m[FINAL_LOSS] for _, m in self.metrics)
        )

    def _weight(self, metrics: Mapping[str, Any]) -> float:
        return 1.0 if self.reading.uniform else float(metrics[self.reading.weighted_by])

    def _content(self, reply: Message) -> RecordDict | None:
        if reply.has_error():
            self._leave_out(reply, reply.error.reason or f"error {reply.error.code}")
            return None
        return reply.content

    def _read(self, reply: Message, content: RecordDict) -> tuple[Arrays, float] | None:
        try:
            return self.reading.read(content, self.before)
        except wire.BadReply as error:
            self._leave_out(reply, str(error))
            return None

    def _fold(self, reply: Message, content: RecordDict, after: Arrays, weight: float) -> None:
        self.stats = PseudoGradientStats.fold(
            self.before,
            [after],
            weights=[weight],
            trainable=self.reading.trainable,
            scales=[self.reading.scale(after, self.before)],
            onto=self.stats,
        )
        self._keep_metrics(reply, content)

    def _keep_metrics(self, reply: Message, content: RecordDict) -> None:
        (metrics,) = content.metric_records.values()
        self.metrics.append((reply.metadata.src_node_id, dict(metrics)))

    def _leave_out(self, reply: Message, reason: str) -> None:
        self.num_failures += 1
        log(WARNING, "Reply of node %d left out: %s", reply.metadata.src_node_id, reason)
