"""The one Flower strategy: aggregate the replies of a round, then take a server step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any, Literal, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedexp import keys, wire
from fedexp.merged import Merged
from fedexp.records import from_record, to_record
from fedexp.strategies.aggregation import Aggregation, completed
from fedexp.strategies.arguments import check_flowers, check_kinds, check_replies, extensions_of
from fedexp.strategies.attributes import Current
from fedexp.strategies.client_metrics import largest_spent
from fedexp.strategies.extensions import Extension, run_number
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.optimizer import ServerOptimizer, limited
from fedexp.strategies.private_layers import PrivateLayers, Withheld
from fedexp.strategies.replies import Replies
from fedexp.strategies.robustness import Clip
from fedexp.strategies.sampling import cohort_size, draw, wait_for_nodes
from fedexp.strategies.step_sizes import Constant
from fedexp.strategies.streaming import stream
from fedexp.strategies.waiting import Waiting


class FedOpt(Aggregation):
    """Any server step ``w ← w - η d`` in place of FedAvg's, with FedAvg's arguments.

    Takes every argument of ``flwr.serverapp.strategy.FedAvg``, in the same order and with the
    same defaults, and these by keyword. By default replies are aggregated as they come, and each
    metric is the mean over the clients that report it as a finite number. A
    ``train_metrics_aggr_fn`` of one's own gets the whole replies, so that the server holds all of
    a round; it may return None. The train metrics of a round gain ``server-step-size`` (``η``),
    ``update-norm`` (``‖Δ̄‖``), ``mean-update-norm`` (``Σ pᵢ‖Δᵢ‖ / Σ pᵢ``), ``num-clients``,
    ``num-failures``, ``num-late`` if replies were missing when the round ended, and what the
    extensions report. Under central privacy the two counts of failures are left out.

    Args:
        *args: those of FedAvg.
        optimizer: the server rule; by default FedAvg's.
        weighted: weigh clients by ``weighted_by_key`` (``pᵢ``, the default) or equally.
        trainable: names of the arrays that the step moves. By default all floating-point arrays
            but batch-norm buffers, and but those that the clients of the first round name as
            buffers of theirs, as ``fedexp.clients`` do (``state["buffers"]``).
        seed: fixes which nodes are sampled, from the nodes in ascending order of id; by default
            they are Flower's draw.
        buffers: what becomes of arrays that the step does not move: the clients' mean in their own
            dtype (``"average"``), or the server's as they are (``"keep"``).
        max_step_size: a cap on ``η``, ``math.inf`` for none. By default none, but 1.5 for models
            with batch norm unless ``η`` is constant: with such models the step is what harms, far
            more than statistics that lag behind (``experiments/batch_norm.py``).
        relaxation: ``λ``, a factor of ``η``, applied before the cap.
        clip: a bound on the norm of each update, ``FixedClip`` or ``QuantileClip``.
        drop_beyond: drop updates longer than this multiple of the round's median norm. The server
            then holds all replies of a round.
        robust: bound updates, weights and the step that a rule chooses by what the median client
            does, see ``MedianBounds``; replies still merge.
        client_config: settings for the clients' train config record, e.g. ``proximal-mu``.
        private_layers: names of arrays, with ``*`` and ``?``, by comma, that stay at the clients,
            see ``PrivateLayers``; empty for none.
        control_variates: SCAFFOLD: send the server's control variate, see ``ServerControlVariate``.
        extensions: more additions to a round, after those that the arguments above stand for.
        min_replies: a round with fewer good replies leaves the model as it was, and has failed.
        waiting: when a round on real devices ends, and which devices rest, see ``Waiting``.
        **kwargs: those of FedAvg.

    Attributes:
        state: all that rules and extensions remember, a dict of dicts of arrays: with the model
            and the number of the round it is a checkpoint.
        extensions: all additions to a round.
        round: what is held from ``configure_train`` to ``aggregate_train``; None before.
        released: what ``aggregate_train`` returned last; None before.
        attendance: who contributed, and whose replies were dropped.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        FedAdam's direction with a step that is at most 0.1, on clipped updates:

        >>> from fedexp.strategies import Adam, Constant, FedOpt, FixedClip, ServerOptimizer
        >>> rule = ServerOptimizer(Adam(), Constant(0.5))
        >>> strategy = FedOpt(0.2, optimizer=rule, max_step_size=0.1, clip=FixedClip(1.0))
        >>> strategy.fraction_train, strategy.clip
        (0.2, FixedClip(max_norm=1.0))
    """

    current_arrays = Current()
    _withheld: Withheld | None = None

    def __init__(
        self,
        *args: Any,
        optimizer: ServerOptimizer | None = None,
        weighted: bool = True,
        trainable: Iterable[str] | None = None,
        seed: int | None = None,
        buffers: Literal["average", "keep"] = "average",
        max_step_size: float | None = None,
        relaxation: float = 1.0,
        clip: Clip | None = None,
        drop_beyond: float | None = None,
        robust: bool | MedianBounds = False,
        client_config: Mapping[str, int | float | bool | str] | None = None,
        private_layers: str = "",
        control_variates: bool = False,
        extensions: Iterable[Extension] = (),
        min_replies: int = 1,
        waiting: Waiting | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_kinds(
            **{"optimizer": optimizer, "weighted": weighted, "trainable": trainable, "seed": seed},
            **{"buffers": buffers, "max_step_size": max_step_size, "relaxation": relaxation},
            **{"clip": clip, "drop_beyond": drop_beyond, "robust": robust, "waiting": waiting},
            **{"client_config": client_config, "control_variates": control_variates},
            **{"min_replies": min_replies},
        )
        check_flowers(self)
        self.optimizer = limited(optimizer or ServerOptimizer(), relaxation, max_step_size)
        self.weighted, self.seed, self.buffers = weighted, seed, buffers
        self.trainable = None if trainable is None else frozenset(trainable)
        self.client_config = dict(client_config or {})
        given = extensions_of(clip, robust, drop_beyond, private_layers, extensions)
        self.extensions = completed(given, weighted, control_variates, self.optimizer.step_size)
        self.waiting, self.min_replies = waiting or Waiting(rest_after=0), min_replies
        check_replies(min_replies, self.waiting, is_secret=self.extensions.samples)
        # With batch norm the step is what harms, so one that a rule chooses is capped once the
        # first model shows such layers. A constant step is the user's own choice.
        constant = isinstance(self.optimizer.step_size, Constant)
        self._limits_batch_norm = max_step_size is None and not constant
        if self.bounds and self._limits_batch_norm:
            self.optimizer = limited(self.optimizer, max_step_size=self.bounds.step)
        self.restart()

    def summary(self) -> None:
        """Log the server rule, then FedAvg's settings."""
        log(INFO, "\t├──> %s settings:", type(self).__name__)
        log(INFO, "\t│\t├── Direction: %s", self.optimizer.direction)
        log(INFO, "\t│\t├── Step size: %s", self.optimizer.step_size)
        log(INFO, "\t│\t└── Clients weighted: %s", self.weighted)
        super().summary()

    def check_num_nodes(self, num_nodes: int) -> None:
        """Find out before the first round whether the server rule can do with a round's clients.

        Raises:
            ValueError: it needs all of the ``num_nodes`` clients, and only some are to train.
        """
        fraction, least = self.waiting.share(num_nodes, self.fraction_train, self.min_train_nodes)
        if self.fraction_train:
            self.check_cohort(cohort_size(num_nodes, fraction, least), num_nodes)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower's strategies do; replies are aggregated as they arrive."""
        return super().start(self.streamed(grid), *args, **kwargs)

    def streamed(self, grid: Grid) -> Grid:
        """``grid`` with replies that come one by one, or added up, where only our code reads them.

        A strategy around this one, or an override, may want to see every single reply.
        """
        own = {MessageType.TRAIN: "aggregate_train", MessageType.EVALUATE: "aggregate_evaluate"}
        types = [kind for kind, method in own.items() if self._is_ours(method)]
        return stream(grid, types, self._merge_by, self.waiting)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages with what the extensions send. Round 1 starts afresh."""
        if server_round == 1:
            self.restart()
        self.check_untouched(arrays, from_record)
        arrays = self._without_private(arrays)
        self.begin(from_record(arrays), server_round)
        # A copy: the caller has one record for all rounds, and what an extension sends in one
        # round must not reach the clients of the next.
        own = ConfigRecord({**config, **self.client_config})
        messages = self._messages(MessageType.TRAIN, server_round, arrays, own, grid)
        nodes = [message.metadata.dst_node_id for message in messages]
        sent = self.ask(
            nodes,
            len(list(grid.get_node_ids())) if nodes or self._sampling_rate else 0,
            self._sampling_rate,
        )
        for content in {id(message.content): message.content for message in messages}.values():
            cast(ConfigRecord, content[self.configrecord_key]).update(sent.settings)
            content.update({key: to_record(x) for key, x in sent.arrays.items()})
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages."""
        self.check_untouched(arrays, from_record)
        if layers := self.extensions.find(PrivateLayers):
            arrays = self._without_private(arrays)
            run = run_number(self.state).settings
            config = ConfigRecord({**config, **layers.told(), **run})
        return self._messages(MessageType.EVALUATE, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message] | Merged
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up ``replies``, unless a grid has done it, and take the server step.

        A reply that cannot be used is logged with its node and dropped; if fewer than
        ``min_replies`` are left the model is unchanged and the metrics say ``num-clients`` 0.

        Raises:
            ValueError: the clients do not fit an extension, e.g. take unlike steps for SCAFFOLD.
            AggregationError: the model of the round is not known, and the step depends on it.
        """
        usable = self.replies()
        usable.take(replies, self.extensions.drop)
        count, lost = usable.stats.count, usable.num_failures
        log(INFO, "aggregate_train: Received %s results and %s failures", count, lost)
        late = self.absent(server_round, usable)
        own_late = {keys.NUM_LATE: len(late)} if late else {}
        step = self.finish(server_round, usable)
        # What clients report of themselves carries no noise.
        told = not self.extensions.is_private
        # Where it is a secret who was asked, so is how many of them failed.
        secret = self.extensions.samples
        if step is None:
            why = "the step is undone" if count else "no usable reply"
            # The step is undone, what clients have spent is not.
            left: dict[str, int | float] = {
                **({} if secret else {keys.NUM_FAILURES: lost + count, **own_late}),
                **(largest_spent([metrics for _, metrics in usable.metrics]) if told else {}),
            }
            return self._nothing(server_round, why, left)
        params, own = step
        metrics = (told and usable.aggregated(self.train_metrics_aggr_fn)) or MetricRecord()
        metrics.update(own if secret else {**own, keys.NUM_FAILURES: lost, **own_late})
        whole = self._withheld.whole(params) if self._withheld else params
        self.released = released = to_record(whole)
        return released, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the metrics of the usable replies."""
        whole = self.evaluate_metrics_aggr_fn is not aggregate_metricrecords
        usable = Replies({}, self.reading(), whole=whole, bounds=self.bounds)
        usable.keep_metrics(usable.contents(replies))
        self.attendance.tell(usable.failures)
        return usable.aggregated(self.evaluate_metrics_aggr_fn) if usable.metrics else None

    def _without_private(self, arrays: ArrayRecord) -> ArrayRecord:
        """What of the model is sent; the rest is remembered, to be put back after the step."""
        layers = self.extensions.find(PrivateLayers)
        if not layers:
            return arrays
        layers.check_names(arrays)
        private = layers.among(arrays)
        whole = from_record(arrays)
        self._withheld = Withheld(tuple(whole), {name: whole[name] for name in private})
        return to_record({name: x for name, x in whole.items() if name not in private})

    def _messages(
        self, use: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages; with a ``seed``, to the nodes that it draws."""
        trains = use == MessageType.TRAIN
        if trains and self._sampling_rate:
            nodes = wait_for_nodes(grid, self.min_available_nodes)
            chosen = self.extensions.sample(nodes, self._sampling_rate, server_round)
            return self._to(chosen or [], server_round, arrays, config, use)
        if self.seed is None:
            make = super().configure_train if trains else super().configure_evaluate
            return list(make(server_round, arrays, config, grid))
        fraction = self.fraction_train if trains else self.fraction_evaluate
        if fraction == 0.0:
            return []
        least = self.min_train_nodes if trains else self.min_evaluate_nodes
        nodes = wait_for_nodes(grid, max(least, self.min_available_nodes))
        if trains:
            nodes = self.rests.awake(nodes, server_round, least)
            fraction, least = self.waiting.share(len(nodes), fraction, least)
        chosen = draw(nodes, fraction, least, seed=self.seed, server_round=server_round, use=use)
        return self._to(chosen, server_round, arrays, config, use)

    def _to(
        self,
        chosen: Sequence[int],
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        use: str,
    ) -> list[Message]:
        config[keys.SERVER_ROUND] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return list(self._construct_messages(record, list(chosen), use))

    @property
    def _sampling_rate(self) -> float:
        """With which an extension asks each node; 0 where they are drawn as usual."""
        return self.fraction_train if self.extensions.samples else 0.0

    def _merge_by(self) -> wire.ReplyFormat | None:
        """How a grid may add the replies up; None where single replies are looked at.

        Without a model there is nothing to measure updates from.
        """
        merges = (
            self._is_ours("aggregate_train")
            and self.train_metrics_aggr_fn is aggregate_metricrecords
            and self.extensions.drop is None
            and bool(self._round().params)
        )
        return self.reading() if merges else None

    def _is_ours(self, method: str) -> bool:
        """Whether neither a subclass nor a caller has put another method in its place."""
        return getattr(getattr(self, method), "__func__", None) is getattr(FedOpt, method)

    def _nothing(
        self, server_round: int, why: str, left: Mapping[str, int | float]
    ) -> tuple[None, MetricRecord | None]:
        if self.fraction_train == 0.0:  # nobody was asked
            return None, None
        log(WARNING, "Round %d: %s, the model is unchanged.", server_round, why)
        return None, MetricRecord({keys.NUM_CLIENTS: 0, **left})
