"""The replies of one round, added up as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict

from fedexp import wire
from fedexp.arrays import Arrays, update_norm
from fedexp.merged import Failure, Merged
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.reply_group import Aggregate, ReplyGroup
from fedexp.wire import ClientResult

Content = tuple[int, RecordDict]
"""A node's id and what it sent."""

Drop = Callable[[Sequence[float]], Mapping[int, str]]
"""Which replies to drop, and why, by their place among the norms of all updates."""


class Replies:
    """The running sums of one round.

    Replies of unlike ``wire.Kind`` cannot be added up: those of the commonest kind count.

    Args:
        before: what was broadcast.
        reading: how replies are read.
        whole: keep all arrays of the replies for ``aggregated``.
        bounds: on the weights of metrics and on losses, by the round's medians.

    Attributes:
        kind: what the replies that count have in common.
        failures: node and reason of each reply that was dropped.
        unlike: nodes of sound replies of another kind.
        without_step: nodes of replies without the metric ``reading.step_key``.
    """

    def __init__(
        self,
        before: Arrays,
        reading: wire.ReplyFormat,
        *,
        whole: bool = False,
        bounds: MedianBounds | None = None,
    ) -> None:
        self.before, self.reading = before, reading
        self._new_group = partial(ReplyGroup, reading, whole, bounds)
        self.kind = wire.Kind(reading.trainable)
        self.failures: list[Failure] = []
        self.unlike: list[int] = []
        self.without_step: list[int] = []
        self._groups: dict[wire.Kind, ReplyGroup] = {}
        self._chosen = self._new_group()
        # The square of a float32 fits into a float64.
        self._may_overflow = any(x.dtype.itemsize > 4 for x in before.values())

    @property
    def num_failures(self) -> int:
        """How many replies were dropped."""
        return len(self.failures)

    @property
    def stats(self) -> PseudoGradientStats:
        """The sums over the replies that count."""
        return self._chosen.stats

    @property
    def metrics(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Node and metrics of each reply that counts."""
        return self._chosen.metrics

    def aggregated(self, aggregate: Aggregate) -> MetricRecord | None:
        """The metrics of the clients that count as one record, see ``ReplyGroup``."""
        return self._chosen.aggregated(aggregate)

    @property
    def norms(self) -> list[float]:
        """``‖Δᵢ‖`` of each reply that counts, before any bound; 0 where there is none."""
        return self._chosen.norms

    def bounded(self) -> list[Mapping[str, Any]]:
        """Metrics of each client that counts, see ``ReplyGroup``."""
        return self._chosen.bounded()

    def with_loss(self) -> PseudoGradientStats:
        """The statistics with the clients' losses, see ``ReplyGroup``."""
        return self._chosen.with_loss()

    def contents(self, replies: Iterable[Message]) -> Iterator[Content]:
        """Node and content of each reply as it arrives; errors become ``failures``."""
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._drop(node, reply.error.reason or f"error {reply.error.code}")
            else:
                content = reply.content
                del reply  # only who iterates may hold it while the next one is in the making
                yield node, content
                del content

    def take(self, replies: Iterable[Message] | Merged, drop: Drop | None = None) -> None:
        """Add all train replies of a round, singly or merged, or note why not.

        With ``drop`` all of them are held until the last has come.
        """
        if isinstance(replies, Merged):
            for kind, sums in replies.sums.items():
                self._group(kind).extend(sums)
            self.failures += replies.failures
            self._choose()
        else:
            self.aggregate(self.contents(replies), drop)

    def aggregate(self, contents: Iterable[Content], drop: Drop | None = None) -> None:
        """As ``take``, of single replies without their messages."""
        if drop is not None:
            self._aggregate_held(contents, drop)
        else:
            for node, content in contents:
                self._add(self._read(node, content), content)
                del content
        self._choose()

    def _aggregate_held(self, contents: Iterable[Content], drop: Drop) -> None:
        held = [(self._read(node, content), content) for node, content in contents]
        sound = [(result, content) for result, content in held if not result.refused]
        for result, content in held:
            if result.refused:
                self._add(result, content)
        norms = [update_norm(self.before, r.arrays, r.kind.trainable) for r, _ in sound if r.kind]
        reasons = drop(norms)
        for i, (result, content) in enumerate(sound):
            self._add(result.refuse(reasons[i]) if i in reasons else result, content)

    def _choose(self) -> None:
        """Let the replies of the commonest kind count, and none of the others."""
        stepless = [kind for kind in self._groups if self.reading.step_key and not kind.step]
        for kind in stepless:
            self.without_step += [node for node, _ in self._groups.pop(kind).metrics]
        if self._groups:
            self.kind = max(
                self._groups, key=lambda kind: (self._groups[kind].stats.count, -len(kind.absent))
            )
            self._chosen = self._groups.pop(self.kind)
        for node in self.without_step:
            self._drop(node, f"{self.reading.step_key} is no positive number.")
        for kind, group in self._groups.items():
            for node, _ in group.metrics:
                self.unlike.append(node)
                self._drop(node, _difference(kind, self.kind))

    def keep_metrics(self, contents: Iterable[Content]) -> None:
        """Keep the metrics of evaluate replies, or note why not."""
        for node, content in contents:
            try:
                self.reading.weight(content)
            except wire.BadReply as error:
                self._drop(node, str(error))
            else:
                self._chosen.keep(node, content)

    def _read(self, node: int, content: RecordDict) -> ClientResult:
        result = self.reading.result(node, content, self.before)
        if self._may_overflow and result.kind:
            norm = update_norm(self.before, result.arrays, result.kind.trainable)
            try:
                wire.check_norm(norm)
            except wire.BadReply as error:
                return result.refuse(str(error))
        return result

    def _add(self, result: ClientResult, content: RecordDict) -> None:
        if result.kind is None:
            self._drop(result.node, result.refused)
            return
        kind, group = result.kind, self._group(result.kind)
        before = kind.part(self.before)
        norm = self.reading.norm(result.arrays, before, kind)
        group.stats = PseudoGradientStats.aggregate(
            before,
            [result.arrays],
            weights=[result.weight],
            trainable=kind.trainable,
            scales=[self.reading.scale(norm)],
            onto=group.stats,
        )
        group.norms.append(norm)
        group.keep(result.node, content)

    def _group(self, kind: wire.Kind) -> ReplyGroup:
        return self._groups.setdefault(kind, self._new_group())

    def _drop(self, node: int, reason: str) -> None:
        self.failures.append((node, reason))


def _difference(kind: wire.Kind, most: wire.Kind) -> str:
    if kind.absent != most.absent:
        names = sorted(kind.absent ^ most.absent)
        return f"it differs from most in which arrays it holds: {names[:3]}."
    if kind.form != most.form:
        return "it differs from most in the names, shapes and dtypes of its arrays."
    if kind.trainable != most.trainable:
        names = sorted(kind.trainable ^ most.trainable)
        return f"it differs from most in which arrays are buffers: {names[:3]}."
    return f"its local step is {kind.step}, most have {most.step}."
