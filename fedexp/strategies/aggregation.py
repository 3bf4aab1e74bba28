"""The arithmetic of a round: what is sent, how replies are read, and the server step.

``FedOpt`` is this behind Flower's Message API, ``legacy.FedOpt`` behind the older one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from logging import INFO, WARNING
from typing import Any, Literal

import numpy as np
from flwr.common.logger import log
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedexp import keys, wire
from fedexp.arrays import Arrays, first_non_finite, has_batch_norm, sq_norm, trainable_names
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.attendance import Attendance
from fedexp.strategies.attributes import OfExtension
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Extension, Extensions, Received, RoundInProgress, Sent
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.optimizer import ServerOptimizer, limited
from fedexp.strategies.privacy import check_untouched
from fedexp.strategies.private import Private
from fedexp.strategies.private_layers import PrivateLayers
from fedexp.strategies.rate_sharing import RateSharing
from fedexp.strategies.replies import Replies
from fedexp.strategies.robustness import Clip, DropBeyond
from fedexp.strategies.scaffold import ServerControlVariate
from fedexp.strategies.step_sharing import StepSharing
from fedexp.strategies.step_sizes import StepSize
from fedexp.strategies.waiting import Rests, Waiting

_BUFFERS = "buffers"
_BATCH_NORM_MAX_STEP = 1.5  # the best of those tried in experiments/batch_norm.py


@dataclass(frozen=True, eq=False)
class _Before:
    """What a step has changed, as it was, and the nodes whose replies made the step."""

    round: RoundInProgress | None
    state: State
    released: Any
    attendance: Arrays
    nodes: tuple[int, ...]


class Aggregation(FlowerFedAvg):
    """A round as ``begin``, ``ask``, ``replies`` and ``finish``; ``FedOpt`` is what users make.

    Its attributes are documented there.
    """

    optimizer: ServerOptimizer
    weighted: bool
    trainable: frozenset[str] | None
    buffers: Literal["average", "keep"]
    client_config: dict[str, Any]
    extensions: Extensions
    waiting: Waiting
    min_replies: int = 1
    rests: Rests
    state: State
    round: RoundInProgress | None = None
    attendance: Attendance
    released: Any  # the model as it was handed to the API in front: an ArrayRecord or Parameters
    clip = OfExtension(Clip)
    bounds = OfExtension(MedianBounds)
    drop_beyond = OfExtension(DropBeyond, "multiple")

    _before: _Before | None = None
    _limits_batch_norm: bool
    _warned = False

    @property
    def control_variates(self) -> bool:
        """Whether clients get SCAFFOLD's control variates."""
        return self.extensions.find(ServerControlVariate) is not None

    def restart(self) -> None:
        """Forget earlier rounds, as every run does in round 1."""
        self.state, self.attendance, self.released = {}, Attendance(), None
        self.rests = Rests(self.waiting)

    def check_untouched(self, given: Any, arrays_of: Callable[[Any], Arrays]) -> None:
        """Raise unless the model that is to be sent is what our step ``released``, see ``privacy``.

        Raises:
            ValueError: somebody has changed it, and noise that was made for a mean is too small.
        """
        check_untouched(self.optimizer, self.extensions, self.released, given, arrays_of)

    def begin(self, params: Arrays, server_round: int = 0) -> None:
        """Take ``params`` as the model of the coming round; name its buffers in the log, once."""
        named = self._sent_trainable() or frozenset()
        if self.round is None and params and named - params.keys():
            raise ValueError(
                f"FedOpt(trainable={sorted(named - params.keys())}): the model has no "
                f"such arrays. It has {sorted(params)[:5]}, ..."
            )
        reading = self._reading(params)
        self.round = RoundInProgress(params, reading, server_round, dict(self.client_config))
        names = [name for name in params if name not in reading.trainable]
        if names and not self._warned:
            self._warned = True
            log(WARNING, "Not moved by the server step (buffers=%r): %s", self.buffers, names)
            if self._limits_batch_norm and has_batch_norm(params):
                log(WARNING, "Step at most %s: the model has batch norm.", _BATCH_NORM_MAX_STEP)

    def ask(self, nodes: Sequence[int], num_nodes: int, sampling_rate: float = 0.0) -> Sent:
        """What goes to ``nodes`` beside the model, of ``num_nodes`` connected ones.

        Raises:
            ValueError: only some clients are asked in round 1, and the server rule needs all.
        """
        self.round = replace(
            self._round(), nodes=tuple(nodes), num_nodes=num_nodes, sampling_rate=sampling_rate
        )
        # In later rounds a client may rest or be away; that is no reason to end a run.
        first = self.round.server_round <= 1
        if first:
            self.check_cohort(len(nodes), num_nodes)
        self.attendance.ask(nodes)
        self._before = None  # what was before the last round need not stay in memory
        sent = self.extensions.send(self.round, self.state)
        self.state = self.state | sent.state
        return sent

    def check_cohort(self, num_asked: int, num_nodes: int) -> None:
        """Raise ``ValueError`` if the server rule needs all clients and only some are asked."""
        if num_asked < num_nodes and self.optimizer.needs_all_clients:
            raise ValueError(
                f"{type(self).__name__}: {num_asked} of {num_nodes} clients train, but the step "
                "compares rounds of the same clients. Let all of them train (fraction-train 1), or "
                "try it with sampled=True."
            )

    def reading(self) -> wire.ReplyFormat:
        """How the replies of this round are read."""
        reading: wire.ReplyFormat = self._round().reading
        return reading

    def replies(self) -> Replies:
        """Where the replies of this round are added up.

        Raises:
            AggregationError: the model of the round is not known, and the step depends on it.
        """
        needed = self.extensions.needs_updates or not self.optimizer.is_mean
        if self.round is None and needed:
            raise AggregationError(
                f"{type(self).__name__}.aggregate_train: the model that the clients started from "
                "is not known. Call configure_train first, or set current_arrays."
            )
        whole = self.train_metrics_aggr_fn is not aggregate_metricrecords
        return Replies(self._round().params, self.reading(), whole=whole, bounds=self.bounds)

    def absent(self, server_round: int, replies: Replies) -> list[int]:
        """Nodes that had not replied when the round ended; those that fail again and again rest."""
        sound = [node for node, _ in replies.metrics]
        failed = [node for node, _ in replies.failures]
        late = sorted({*self._round().nodes} - {*sound, *failed})
        if late:
            asked = len(self._round().nodes)
            log(INFO, "Round %d: %d of %d nodes are late.", server_round, len(late), asked)
        missed = [] if len(sound) >= self.waiting.enough else late
        for node in self.rests.note(server_round, sound, [*failed, *missed]):
            rounds = self.waiting.rest_rounds
            log(
                WARNING, "Node %d has failed again and again and rests for %d rounds.", node, rounds
            )
        return late

    def finish(
        self, server_round: int, replies: Replies
    ) -> tuple[Arrays, dict[str, int | float]] | None:
        """Take the server step: the new model, and what there is to report of the round.

        Both of Flower's APIs come here. With fewer than ``min_replies`` usable replies, or if the
        new model is not finite, the answer is None, and the state is what it was.

        Raises:
            ValueError: the clients do not fit an extension.
        """
        kind, stats = replies.kind, replies.stats
        received = Received(
            replace(self._round(), server_round=server_round),
            stats,
            nodes=[node for node, _ in replies.metrics],
            metrics=[metrics for _, metrics in replies.metrics],
            norms=replies.norms,
            step=kind.step,
            unlike=replies.unlike,
            without_step=replies.without_step,
        )
        self.attendance.fail(replies.failures)
        self.extensions.check(received, self.state)
        if not (stats.count or self.extensions.samples):  # whether one replied is a secret too
            return None
        if stats.count < self.min_replies and not self.extensions.samples:
            few = f"{stats.count} of at least min-replies={self.min_replies} replies were good"
            self._refuse(received, f"{few}: the round is undone.")
            return None
        self._learn_buffers(kind)
        params, state, metrics = self._step(received, replies.with_loss(), kind)
        eta = metrics.get(keys.SERVER_STEP_SIZE, 1.0)
        # What is new in the state as well: it would stay there, and fail every later round.
        new = [x for key, x in state.items() if x is not self.state.get(key)]
        if not math.isfinite(eta) or any(map(first_non_finite, [params, *new])):
            self._refuse(received, f"the server step {eta:.3g} gives a model that is not finite.")
            return None
        self._before = _Before(
            self.round, self.state, self.released, self.attendance.state(), tuple(received.nodes)
        )
        self.attendance.came(received.nodes)
        self.state = state
        self.begin(params)
        return params, metrics

    def undo(self, reason: str) -> None:
        """Take back the step of the last round; the replies that made it do not count.

        Raises:
            ValueError: there was none since the last that was taken back.
        """
        if self._before is None:
            raise ValueError(f"{type(self).__name__}.undo: there is no step to take back.")
        before, self._before = self._before, None
        self.round, self.state, self.released = before.round, before.state, before.released
        self.attendance.restore(before.attendance)
        self.attendance.fail([(node, reason) for node in before.nodes])

    def _refuse(self, received: Received, reason: str) -> None:
        """Note why the good replies of a round do not count."""
        self.attendance.fail([(node, reason) for node in received.nodes])

    def _step(
        self, received: Received, stats: PseudoGradientStats, kind: wire.Kind
    ) -> tuple[Arrays, State, dict[str, Any]]:
        # As with Flower's FedAvg, arrays that the clients do not send back leave the model.
        params = kind.part(received.round.params)
        optimizer, extensions = self.optimizer, self.extensions
        if kind.form:
            # The model was empty or is not known, so that there is nothing to measure updates from.
            # The clients' mean is the first model.
            optimizer = ServerOptimizer()
            extensions = Extensions(one for one in extensions if not one.needs_updates)
        elif self.buffers == "keep":
            stats = replace(stats, buffers={})
        if self._limits_batch_norm and has_batch_norm(params):
            optimizer = limited(optimizer, max_step_size=_BATCH_NORM_MAX_STEP)
        stats, state, own = extensions.aggregate(received, stats, self.state)
        params, state, eta = optimizer.step(params, stats, state)
        if kind.form:
            return params, state, {keys.NUM_CLIENTS: stats.count, **own}
        metrics = {
            keys.SERVER_STEP_SIZE: eta,
            keys.UPDATE_NORM: sq_norm(stats.mean_update) ** 0.5,
            keys.MEAN_UPDATE_NORM: stats.mean_norm,
            keys.NUM_CLIENTS: stats.count,
        }
        if math.isnan(stats.norm):  # a private round that does not release it
            del metrics[keys.MEAN_UPDATE_NORM]
        return params, state, {**metrics, **own}

    def _round(self) -> RoundInProgress:
        return self.round or RoundInProgress({}, self._reading({}), settings=self.client_config)

    def _reading(self, params: Arrays) -> wire.ReplyFormat:
        trainable = trainable_names(params).difference(self.state.get(_BUFFERS, {}))
        reading = wire.ReplyFormat(
            self.weighted_by_key,
            not self.weighted,
            trainable if self.trainable is None else self._sent_trainable() or frozenset(),
            self.arrayrecord_key,
            narrows=self.trainable is None and _BUFFERS not in self.state,
        )
        return replace(reading, **self.extensions.reading(self.state))

    def _sent_trainable(self) -> frozenset[str] | None:
        """``trainable`` without the layers that stay at the clients."""
        layers = self.extensions.find(PrivateLayers)
        if self.trainable is None or layers is None:
            return self.trainable
        return self.trainable - layers.among(self.trainable)

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


def completed(
    given: list[Extension], weighted: bool, control_variates: bool, step_size: StepSize
) -> Extensions:
    """The extensions that are ``given``, and those that a strategy has anyway.

    Raises:
        ValueError: two of them bound updates, or one shows what another hides.
    """
    bounds = Extensions(given).find(MedianBounds)
    if control_variates:
        given = [*given, ServerControlVariate(bounds if weighted else None)]
    private = Extensions(given).find(Private)
    if private:
        given = private.fitted(given, step_size)
    bounding = [str(extension) for extension in given if "max_norm" in extension.reading({})]
    if len(bounding) > 1:
        raise ValueError(f"FedOpt({', '.join(bounding)}): both bound updates. Use one.")
    if private:
        return Extensions(given)
    return Extensions([*given, RateSharing(bounds), StepSharing(bounds)])
