"""The one Flower strategy: fold the replies of a round, then take a server step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Result

from fedexp import wire
from fedexp.arrays import Arrays, sq_norm, trainable_names
from fedexp.records import from_record, to_record
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.rules import ServerOptimizer, State
from fedexp.strategies.sampling import sample, wait_for_nodes
from fedexp.strategies.streaming import stream


class FedOpt(FlowerFedAvg):
    """Any server step ``w ← w - η d`` in place of FedAvg's, with FedAvg's arguments.

    Takes every argument of ``flwr.serverapp.strategy.FedAvg``, in the same order and with the
    same defaults, and these by keyword. The train metrics of a round gain
    ``server-step-size`` (``η``), ``update-norm`` (``‖Δ̄‖``), ``mean-update-norm``
    (``Σ pᵢ‖Δᵢ‖ / Σ pᵢ``), ``num-clients`` and ``num-failures``.

    Args:
        *args: FedAvg's.
        optimizer: the server rule; FedAvg's if left out.
        weighted: weigh clients by ``weighted_by_key`` (``pᵢ``, the default) or equally.
        trainable: names of the arrays that the step moves. By default all floating-point arrays
            but batch-norm buffers. The others become the clients' mean in their own dtype.
        seed: fixes which nodes are sampled, from the nodes in ascending order of id; by default
            they are Flower's draw.
        **kwargs: FedAvg's.
    """

    mean_of_last_two = False
    """Whether the method's authors report the mean of the last two iterates."""

    def __init__(
        self,
        *args: Any,
        optimizer: ServerOptimizer | None = None,
        weighted: bool = True,
        trainable: Iterable[str] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.optimizer = optimizer or ServerOptimizer()
        self.weighted = weighted
        self.trainable = None if trainable is None else frozenset(trainable)
        self.seed = seed
        self.state: State = {}
        self.params: Arrays = {}

    def summary(self) -> None:
        """Log the server rule, then FedAvg's settings."""
        log(INFO, "\t├──> %s settings:", type(self).__name__)
        log(INFO, "\t│\t├── Direction: %s", self.optimizer.direction)
        log(INFO, "\t│\t├── Step size: %s", self.optimizer.step_size)
        log(INFO, "\t│\t└── Clients weighted: %s", self.weighted)
        super().summary()

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower's strategies do; replies are folded as they arrive."""
        return super().start(stream(grid), *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages; remembers what is broadcast. Round 1 starts afresh."""
        if server_round == 1:
            self.state = {}
        self.params = from_record(arrays)
        if self.seed is None:
            messages = list(super().configure_train(server_round, arrays, config, grid))
        else:
            sizes = self.fraction_train, self.min_train_nodes
            messages = self._draw(server_round, arrays, config, grid, MessageType.TRAIN, *sizes)
        return self._ask_to_merge(messages, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages."""
        if self.seed is None:
            return list(super().configure_evaluate(server_round, arrays, config, grid))
        sizes = self.fraction_evaluate, self.min_evaluate_nodes
        return self._draw(server_round, arrays, config, grid, MessageType.EVALUATE, *sizes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold ``replies``, one at a time, and take the server step.

        A reply that cannot be used is logged with its node and left out; if none is left the
        model is unchanged and the metrics say ``num-clients`` 0.
        """
        round_ = _Round(self.params, self._reading())
        for reply in replies:
            round_.take(reply)
        log(
            INFO,
            "aggregate_train: Received %s results and %s failures",
            round_.stats.count,
            round_.num_failures,
        )
        if not round_.stats.count:
            return self._nothing(server_round, round_.num_failures)
        params, self.state, eta = self.optimizer.step(self.params, round_.stats, self.state)
        metrics = self.train_metrics_aggr_fn(round_.alike(), self.weighted_by_key)
        metrics.update(_step_metrics(round_.stats, eta, round_.num_failures))
        return to_record(params), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the metrics of the usable replies."""
        round_ = _Round({}, self._reading())
        for reply in replies:
            round_.take_metrics(reply)
        if not round_.metrics:
            return None
        return self.evaluate_metrics_aggr_fn(round_.alike(), self.weighted_by_key)

    def _draw(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        message_type: str,
        fraction: float,
        minimum: int,
    ) -> list[Message]:
        """FedAvg's configure_train and configure_evaluate, with a draw that ``seed`` fixes."""
        if fraction == 0.0:
            return []
        nodes = wait_for_nodes(grid, max(minimum, self.min_available_nodes))
        size = max(int(len(nodes) * fraction + 1e-9), minimum)
        assert self.seed is not None
        chosen = sample(nodes, size, seed=self.seed, server_round=server_round, use=message_type)
        log(INFO, "%s: Sampled %s nodes (out of %s)", message_type, size, len(nodes))
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return list(self._construct_messages(record, chosen, message_type))

    def _reading(self) -> wire.Reading:
        trainable = trainable_names(self.params) if self.trainable is None else self.trainable
        return wire.Reading(
            self.weighted_by_key, not self.weighted, trainable, self.arrayrecord_key
        )

    def _ask_to_merge(self, messages: list[Message], grid: Grid) -> list[Message]:
        """Let a grid that can do it answer once for all clients (see ``wire.Merged``)."""
        if messages and getattr(grid, "merges", False):
            messages[0].content[wire.REQUEST] = self._reading().to_record()
        return messages

    def _nothing(self, server_round: int, num_failures: int) -> tuple[None, MetricRecord | None]:
        log(WARNING, "Round %d: no usable reply, the model is unchanged.", server_round)
        if not num_failures:
            return None, None
        return None, MetricRecord({"num-clients": 0, "num-failures": num_failures})


class _Round:
    """The running sums of one round."""

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
            return
        try:
            after, weight = self.reading.read(content, self.before)
        except wire.BadReply as error:
            return self._leave_out(reply, str(error))
        self.stats = PseudoGradientStats.fold(
            self.before,
            [after],
            weights=[weight],
            trainable=self.reading.trainable,
            onto=self.stats,
        )
        self._keep_metrics(reply, content)

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

    def _content(self, reply: Message) -> RecordDict | None:
        if reply.has_error():
            self._leave_out(reply, reply.error.reason or f"error {reply.error.code}")
            return None
        return reply.content

    def _keep_metrics(self, reply: Message, content: RecordDict) -> None:
        (metrics,) = content.metric_records.values()
        self.metrics.append((reply.metadata.src_node_id, dict(metrics)))

    def _leave_out(self, reply: Message, reason: str) -> None:
        self.num_failures += 1
        log(WARNING, "Reply of node %d left out: %s", reply.metadata.src_node_id, reason)


def _step_metrics(stats: PseudoGradientStats, eta: float, num_failures: int) -> dict[str, Any]:
    return {
        "server-step-size": eta,
        "update-norm": sq_norm(stats.mean_update) ** 0.5,
        "mean-update-norm": stats.mean_norm,
        "num-clients": stats.count,
        "num-failures": num_failures,
    }
