"""The one Flower strategy: fold the replies of a round, then take a server step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any, Literal, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedexp import wire
from fedexp.arrays import Arrays, first_non_finite, has_batch_norm, sq_norm, trainable_names
from fedexp.merged import Merged
from fedexp.records import from_record, to_record
from fedexp.strategies.attendance import Attendance
from fedexp.strategies.attributes import Current
from fedexp.strategies.control import (
    MAX_NORM,
    MAX_WEIGHT,
    NODES,
    ROUNDS,
    STEP,
    VARIATE,
    Clients,
    check_steps,
    limits,
    next_variate,
    server_variate,
)
from fedexp.strategies.directions import State
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.optimizer import ServerOptimizer, limited
from fedexp.strategies.privacy import check_untouched
from fedexp.strategies.replies import Replies
from fedexp.strategies.robustness import Clip
from fedexp.strategies.sampling import sample, wait_for_nodes
from fedexp.strategies.step_sizes import Constant
from fedexp.strategies.streaming import stream
from fedexp.strategies.tuning import BETWEEN, MEAN, cohort_rates, next_config, remembered

_RUN, _BUFFERS = "run-id", "buffers"
_BATCH_NORM_MAX_STEP = 1.5  # the best of those tried in experiments/batch_norm.py


class FedOpt(FlowerFedAvg):
    """Any server step ``w ← w - η d`` in place of FedAvg's, with FedAvg's arguments.

    Takes every argument of ``flwr.serverapp.strategy.FedAvg``, in the same order and with the
    same defaults, and these by keyword. A ``train_metrics_aggr_fn`` of one's own gets the whole
    replies, so that the server holds all of a round; it may return None. By default replies are
    folded as they come, and each metric is the mean over the clients that report it as a finite
    number. The train metrics of a round gain
    ``server-step-size`` (``η``), ``update-norm`` (``‖Δ̄‖``), ``mean-update-norm``
    (``Σ pᵢ‖Δᵢ‖ / Σ pᵢ``), ``num-clients`` and ``num-failures``; with ``clip`` or ``robust`` also
    ``max-update-norm`` (``C``) and ``num-clipped``, and with clients that
    report a ``learning-rate`` its weighted spread ``learning-rate-std``.

    Attribute ``state`` is all that the rules remember, a dict of dicts of arrays: with the model
    and the round's number it is a checkpoint.

    Args:
        *args: FedAvg's.
        optimizer: the server rule; FedAvg's if left out.
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
        clip: a bound on the norm of each update, see ``robustness``; none by default.
        drop_beyond: leave out updates longer than this multiple of the round's median norm. The
            server then holds all replies of a round.
        robust: bound updates, weights and the step that a rule chooses by what the median client
            does, see ``MedianBounds``; replies still merge.
        client_config: settings for the clients' train config record, e.g. ``proximal-mu``.
        control_variates: SCAFFOLD: send the server's variate, see ``control``.
        **kwargs: FedAvg's.

    Raises:
        ValueError: an argument is out of its range.
    """

    current_arrays = Current()

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
        control_variates: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if buffers not in ("average", "keep"):
            raise ValueError(f"FedOpt(buffers={buffers!r}): unknown. Use 'average' or 'keep'.")
        if drop_beyond is not None and not drop_beyond >= 1:
            raise ValueError(f"FedOpt(drop_beyond={drop_beyond}): must be >= 1. Use 5.0.")
        self.bounds = MedianBounds() if robust is True else robust or None
        if self.bounds and clip:
            raise ValueError(f"FedOpt(robust=True, clip={clip}): both bound updates. Use one.")
        self.optimizer = limited(optimizer or ServerOptimizer(), relaxation, max_step_size)
        constant = isinstance(self.optimizer.step_size, Constant)
        self._limits_batch_norm = max_step_size is None and not constant
        if self.bounds and self._limits_batch_norm:
            self.optimizer = limited(self.optimizer, max_step_size=self.bounds.step)
        self.weighted = weighted
        self.trainable = None if trainable is None else frozenset(trainable)
        self.seed = seed
        self.buffers = buffers
        self.clip = clip
        self.drop_beyond = drop_beyond
        self.client_config = dict(client_config or {})
        self.control_variates = control_variates
        self.state: State = {}
        self.attendance = Attendance()
        self.params: Arrays = {}
        self.has_begun = False
        self._num_nodes = 0
        self._released: ArrayRecord | None = None
        self._warned = False

    def summary(self) -> None:
        """Log the server rule, then FedAvg's settings."""
        log(INFO, "\t├──> %s settings:", type(self).__name__)
        log(INFO, "\t│\t├── Direction: %s", self.optimizer.direction)
        log(INFO, "\t│\t├── Step size: %s", self.optimizer.step_size)
        log(INFO, "\t│\t└── Clients weighted: %s", self.weighted)
        super().summary()

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower's strategies do; replies are folded as they arrive."""
        return super().start(self.streamed(grid), *args, **kwargs)

    def streamed(self, grid: Grid) -> Grid:
        """``grid`` with replies that come one by one, or added up, where only our code reads them.

        A strategy around this one, or an override, may want to see every single reply.
        """
        own = {MessageType.TRAIN: "aggregate_train", MessageType.EVALUATE: "aggregate_evaluate"}
        types = [kind for kind, method in own.items() if self._is_ours(method)]
        return stream(grid, types, self._merge_by)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages; remembers what is broadcast. Round 1 starts afresh."""
        if server_round == 1:
            self.state, self._released, self.attendance = {}, None, Attendance()
        self._check_untouched(arrays)
        self.begin(from_record(arrays))
        self._tell(config)
        if self.seed is None:
            messages = list(super().configure_train(server_round, arrays, config, grid))
        else:
            sizes = self.fraction_train, self.min_train_nodes
            messages = self._draw(server_round, arrays, config, grid, MessageType.TRAIN, *sizes)
        if self.control_variates:
            self._num_nodes = len(list(grid.get_node_ids()))
            self._send_variate(messages, server_round)
        self.attendance.ask(message.metadata.dst_node_id for message in messages)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages."""
        self._check_untouched(arrays)
        if self.seed is None:
            return list(super().configure_evaluate(server_round, arrays, config, grid))
        sizes = self.fraction_evaluate, self.min_evaluate_nodes
        return self._draw(server_round, arrays, config, grid, MessageType.EVALUATE, *sizes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message] | Merged
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up ``replies``, unless a grid has done it, and take the server step.

        A reply that cannot be used is logged with its node and left out; if none is left the
        model is unchanged and the metrics say ``num-clients`` 0.

        Raises:
            ValueError: with control variates, clients that use none or take unlike steps.
            AggregationError: the model of the round is not known, and the step depends on it.
        """
        folded = self.replies()
        folded.take(replies, drop_beyond=self.drop_beyond)
        self.attendance.fail(folded.failures)
        log(
            INFO,
            "aggregate_train: Received %s results and %s failures",
            folded.stats.count,
            folded.num_failures,
        )
        if self.control_variates and VARIATE not in self.state:
            check_steps(folded.stats.count, folded.unlike, folded.without_step)
        if not folded.stats.count:
            return self._nothing(server_round, folded.num_failures)
        self._learn_buffers(folded.kind)
        state = self.state
        variate = self._next_variate(server_round, folded) if self.control_variates else {}
        params, own = self.advance(folded)
        eta = own.get("server-step-size", 1.0)
        if not math.isfinite(eta) or first_non_finite(params):
            self.state = state
            reason = f"the server step {eta:.3g} gives a model that is not finite."
            self.attendance.fail([(node, reason) for node, _ in folded.metrics])
            return self._nothing(server_round, folded.num_failures + folded.stats.count)
        self.state = self.state | variate
        self.attendance.came(node for node, _ in folded.metrics)
        metrics = folded.aggregated(self.train_metrics_aggr_fn) or MetricRecord()
        metrics.update({**own, **self._rates(folded), "num-failures": folded.num_failures})
        self.params = params
        self._released = to_record(params)
        return self._released, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the metrics of the usable replies."""
        whole = self.evaluate_metrics_aggr_fn is not aggregate_metricrecords
        folded = Replies({}, self.reading(), whole=whole, bounds=self.bounds)
        folded.fold_metrics(folded.contents(replies))
        self.attendance.tell(folded.failures)
        if not folded.metrics:
            return None
        return folded.aggregated(self.evaluate_metrics_aggr_fn)

    def begin(self, params: Arrays) -> None:
        """Take ``params`` as what is broadcast; name its buffers in the log, once."""
        self.params, self.has_begun = params, True
        names = [name for name in params if name not in self.reading().trainable]
        if names and not self._warned:
            self._warned = True
            log(WARNING, "Not moved by the server step (buffers=%r): %s", self.buffers, names)
            if self._limits_batch_norm and has_batch_norm(params):
                log(WARNING, "Step at most %s: the model has batch norm.", _BATCH_NORM_MAX_STEP)

    def reading(self) -> wire.Reading:
        """How the replies of this round are read."""
        trainable = trainable_names(self.params).difference(self.state.get(_BUFFERS, {}))
        reading = wire.Reading(
            self.weighted_by_key,
            not self.weighted,
            trainable if self.trainable is None else self.trainable,
            self.arrayrecord_key,
            narrows=self.trainable is None and _BUFFERS not in self.state,
            step_key=STEP if self.control_variates else "",
        )
        if self.bounds:
            return replace(reading, **self.bounds.limits(self.state))
        return replace(reading, max_norm=self.clip.bound(self.state)) if self.clip else reading

    def replies(self) -> Replies:
        """Where the replies of this round are added up.

        Raises:
            AggregationError: the model of the round is not known, and the step depends on it.
        """
        bounds = self.bounds
        if not self.has_begun and (self.clip or bounds or not self.optimizer.is_mean):
            raise AggregationError(
                f"{type(self).__name__}.aggregate_train: the model that the clients started from "
                "is not known. Call configure_train first, or set current_arrays."
            )
        whole = self.train_metrics_aggr_fn is not aggregate_metricrecords
        return Replies(self.params, self.reading(), whole=whole, bounds=bounds)

    def advance(self, folded: Replies) -> tuple[Arrays, dict[str, Any]]:
        """The server step after a round: new parameters, and what there is to report.

        Both of Flower's APIs come here; ``begin`` gave the parameters, and ``state`` moves on.
        As with Flower's FedAvg, arrays that the clients do not send back leave the model, and
        clients that got an empty model give the first one, their mean.
        """
        stats, params = folded.with_loss(), folded.kind.part(self.params)
        if folded.kind.form:
            return ServerOptimizer().step(params, stats, {})[0], {"num-clients": stats.count}
        if self.buffers == "keep":
            stats = replace(stats, buffers={})
        clipping: dict[str, Any] = {}
        state = self.state
        if self.clip:
            clipping = {"max-update-norm": self.clip.bound(state), "num-clipped": stats.num_clipped}
            state = self.clip.adapt(stats, state)
        if self.bounds:
            stats, state, clipping = self.bounds.settle(stats, folded.reports, state)
        optimizer = self.optimizer
        if self._limits_batch_norm and has_batch_norm(params):
            optimizer = limited(optimizer, max_step_size=_BATCH_NORM_MAX_STEP)
        params, self.state, eta = optimizer.step(params, stats, state)
        return params, {
            "server-step-size": eta,
            "update-norm": sq_norm(stats.mean_update) ** 0.5,
            "mean-update-norm": stats.mean_norm,
            "num-clients": stats.count,
            **clipping,
        }

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

    def _merge_by(self) -> wire.Reading | None:
        """How a grid may add the replies up; None where single replies are looked at.

        Without a model there is nothing to measure updates from.
        """
        merges = (
            self._is_ours("aggregate_train")
            and self.train_metrics_aggr_fn is aggregate_metricrecords
            and self.drop_beyond is None
            and bool(self.params)
        )
        return self.reading() if merges else None

    def _is_ours(self, method: str) -> bool:
        """Whether neither a subclass nor a caller has put another method in its place."""
        return getattr(getattr(self, method), "__func__", None) is getattr(FedOpt, method)

    def _tell(self, config: ConfigRecord) -> None:
        """Settings for the clients; to those that keep something, this run's number."""
        policy = self.client_config.get(BETWEEN)
        for key in (MEAN, NODES, ROUNDS, MAX_NORM, MAX_WEIGHT):  # of an earlier round or run
            config.pop(key, None)
        config.update({**self.client_config, **next_config(policy, self.state)})
        if self.control_variates or policy == "carry":
            if _RUN not in self.state:
                this: State = {_RUN: {"id": np.asarray(float(time.time_ns()))}}
                self.state = self.state | this
            config[_RUN] = float(self.state[_RUN]["id"])
        if self.control_variates:
            reading = self.reading()
            config.update(limits(reading.max_norm, reading.max_weight, reading.uniform))

    def _rates(self, folded: Replies) -> dict[str, float]:
        """How the clients' learning rates spread; their mean is kept where it is sent back."""
        within = self.bounds.weight if self.bounds else math.inf
        rates = cohort_rates(folded.bounded(), self.weighted_by_key, within)
        if not rates:
            return {}
        if self.client_config.get(BETWEEN) == "average":
            self.state = self.state | remembered(rates[0])
        return {"learning-rate-std": rates[1]}

    def _send_variate(self, messages: list[Message], server_round: int) -> None:
        """Add the server's variate, and what clients need to know to keep their own."""
        variate = to_record(server_variate(self.params, self.reading().trainable, self.state))
        clients = Clients.of(self.state)
        lost = clients.ask([m.metadata.dst_node_id for m in messages], server_round)
        self.state = self.state | clients.entry()
        for content in {id(m.content): m.content for m in messages}.values():
            content[VARIATE] = variate
            cast(ConfigRecord, content[self.configrecord_key]).update(lost)

    def _next_variate(self, server_round: int, folded: Replies) -> State:
        clients, reading = Clients.of(self.state), self.reading()
        before = clients.total
        weights = {node: reading.share(metrics) for node, metrics in folded.metrics}
        if self.weighted and reading.uniform:  # the first round of ``bounds``, which knows none
            rows = zip(weights, folded.bounded(), strict=True)
            weights = {node: float(m[self.weighted_by_key]) for node, m in rows}
        clients.apply(weights, server_round, self._num_nodes)
        sums = {"step": folded.kind.step, "before": before, "total": clients.total}
        return {**next_variate(folded.stats, self.state, **sums), **clients.entry()}

    def _learn_buffers(self, kind: wire.Kind) -> None:
        """Remember which arrays the clients of the first round name as buffers, and say so."""
        reading = self.reading()
        if not reading.narrows or kind.form:
            return
        buffers = sorted(reading.trainable - kind.trainable - kind.absent)
        learned: State = {_BUFFERS: {name: np.zeros(0) for name in buffers}}
        self.state = self.state | learned
        if buffers:
            log(WARNING, "Not moved by the server step, as the clients say: %s", buffers)
        else:
            log(INFO, "Moved by the server step: %d arrays, by name.", len(kind.trainable))

    def _check_untouched(self, arrays: ArrayRecord) -> None:
        if self._is_ours("aggregate_train"):  # else it knows what it changes
            robust = self.bounds is not None
            check_untouched(self.optimizer, self._released, arrays, from_record, robust=robust)

    def _nothing(self, server_round: int, num_failures: int) -> tuple[None, MetricRecord | None]:
        if self.fraction_train == 0.0:  # nobody was asked
            return None, None
        log(WARNING, "Round %d: no usable reply, the model is unchanged.", server_round)
        return None, MetricRecord({"num-clients": 0, "num-failures": num_failures})
