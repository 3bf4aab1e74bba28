"""The loop over rounds, one round at a time, so that each can be recorded, stopped or resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from logging import WARNING
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedexp import keys
from fedexp.foreign_draws import seeded
from fedexp.merged import Failure, Merged, MergingGrid
from fedexp.records import num_bytes, records_of
from fedexp.strategies.evaluation import EvaluateFn
from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.streaming import unwrapped

TrainConfig = Callable[[int], Mapping[str, Any]]


@dataclass(eq=False)
class Exchange:
    """Messages to clients, and what came back, noted while the strategy reads it.

    Attributes:
        asked: nodes, in the order of the messages.
        answers: node and metrics of each sound reply; a merged reply is none.
        failures: node and reason of each error reply.
        bytes_down: of arrays, as a network would carry them: one model a message.
        bytes_up: likewise of the sound replies.
        waited: seconds until they came, while clients worked or their replies travelled.
        worked: seconds of it in which clients worked, if the grid knows (``busy``).
    """

    asked: list[int] = field(default_factory=list)
    answers: list[tuple[int, MetricRecord]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    waited: float = 0.0
    worked: float | None = None

    def send(
        self, grid: Grid, messages: Iterable[Message], timeout: float
    ) -> Iterable[Message] | Merged:
        """What ``grid.send_and_receive`` gives, a list as it is or one by one."""
        sizes: dict[int, int] = {}  # the messages of a round share their content
        messages = list(messages) if not isinstance(messages, Sequence) else messages
        for message in messages:
            self.asked.append(message.metadata.dst_node_id)
            key = id(message.content)
            sizes[key] = sizes[key] if key in sizes else num_bytes(message.content)
            self.bytes_down += sizes[key]
        start = time.perf_counter()
        replies = grid.send_and_receive(messages, timeout=timeout)
        self.waited += time.perf_counter() - start
        if isinstance(replies, Merged):
            self._note_merged(replies, grid)
            return replies
        noted = self._noted(iter(replies), grid)
        return list(noted) if isinstance(replies, list) else noted

    def _note_merged(self, replies: Merged, grid: Grid) -> None:
        self.failures += replies.failures
        self.worked = _busy(grid)
        # For as many clients, each of which would have sent a model over a network.
        sound = len(self.asked) - len(self.failures)
        self.bytes_up = self.bytes_down // max(1, len(self.asked)) * sound

    def _noted(self, replies: Iterator[Message], grid: Grid) -> Iterator[Message]:
        while True:
            start = time.perf_counter()
            reply = next(replies, None)
            self.waited += time.perf_counter() - start
            if reply is None:
                break
            self._note(reply)
            yield reply
            del reply  # only the strategy may hold it while the next one is in the making
        self.worked = _busy(grid)

    def _note(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        if reply.has_error():
            self.failures.append((node, reply.error.reason or f"error {reply.error.code}"))
            return
        self.bytes_up += num_bytes(reply.content)
        for metrics in records_of(reply.content, MetricRecord).values():
            self.answers.append((node, metrics))


def _busy(grid: Grid) -> float | None:
    """Seconds in which clients worked for the last messages, if ``grid`` knows."""
    inner = unwrapped(grid)
    return inner.busy if isinstance(inner, MergingGrid) else None


def lost_losses(metrics: MetricRecord | None) -> list[str]:
    """Names of losses of the last iterate that are not finite, such as ``test-loss``."""
    return [
        name
        for name, value in (metrics or {}).items()
        if name.split("-")[-1] == "loss" and not name.startswith("mean-")
        if isinstance(value, float) and not math.isfinite(value)
    ]


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """The server's evaluation of a round, and what it remembered before."""

    server_round: int
    evaluate_fn: EvaluateFn
    memory: Any

    def again(self, arrays: ArrayRecord) -> MetricRecord | None:
        """The evaluation of another model in place of the round's."""
        if self.memory is not None:  # an average must not go through a model that is given up
            self.evaluate_fn.memory = self.memory  # type: ignore[attr-defined]
        return self.evaluate_fn(self.server_round, arrays)


def _undone(
    strategy: Strategy, evaluated: _Evaluated, before: ArrayRecord, server: MetricRecord | None
) -> tuple[MetricRecord, MetricRecord | None] | None:
    """Undo a step; the train and server metrics of the round then. None if it has to stay.

    It stays where the loss was no better before. Under privacy it stays too: what the round cost
    is spent, and must stay counted. So it does with a strategy around another one, whose state
    cannot be seen from here.
    """
    ours = strategy if isinstance(strategy, FedOpt) else None
    if ours.extensions.is_private if ours else hasattr(strategy, "strategy"):
        return None
    after = getattr(evaluated.evaluate_fn, "memory", None)
    again = evaluated.again(before)
    if lost_losses(again):
        if after is not None:
            evaluated.evaluate_fn.memory = after  # type: ignore[attr-defined]
        return None
    (name, *_) = lost_losses(server)
    reason = f"the server step makes {name} not finite; use a smaller learning rate or step."
    log(WARNING, "Round %d is undone: %s", evaluated.server_round, reason)
    if ours is None:
        return MetricRecord(), again
    ours.undo(reason)
    counts: dict[str, Any] = {
        keys.NUM_CLIENTS: 0,
        keys.NUM_FAILURES: sum(map(len, ours.attendance.reasons.values())),
    }
    return MetricRecord(counts), again


def _begin_round(grid: Grid, server_round: int) -> None:
    if hasattr(inner := unwrapped(grid), "begin_round"):
        inner.begin_round(server_round)


@dataclass(frozen=True, eq=False)
class Round:
    """What came of a round.

    Attributes:
        server_round: its number, from 1.
        arrays: the model after it.
        failed: no usable reply, too few, or a step that was undone; ``arrays`` is the model from
            before.
        train, evaluate, server: metrics of the clients' training, of their evaluation and of
            ``evaluate_fn``; empty where there was none.
        seconds: of wall time, evaluation included.
        training, evaluation: the exchanges with the clients.
    """

    server_round: int
    arrays: ArrayRecord
    failed: bool
    train: MetricRecord
    evaluate: MetricRecord
    server: MetricRecord
    seconds: float
    training: Exchange = field(default_factory=Exchange)
    evaluation: Exchange = field(default_factory=Exchange)


def evaluate_clients(grid: Grid, arrays: ArrayRecord, timeout: float) -> Exchange:
    """Let every client of ``grid`` evaluate ``arrays`` once, whatever a strategy would ask."""
    content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
    _begin_round(grid, 0)  # in which everyone is there
    nodes = grid.get_node_ids()
    exchange = Exchange()
    messages = [Message(content, node, MessageType.EVALUATE) for node in nodes]
    list(cast(Iterable[Message], exchange.send(grid, messages, timeout)))
    return exchange


def rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    *,
    num_rounds: int,
    first: int = 1,
    timeout: float = 3600,
    evaluate_fn: EvaluateFn | None = None,
    train_config: TrainConfig | None = None,
    seed: int | None = None,
) -> Iterator[Round]:
    """What ``strategy.start`` does, handing over every round when it ends.

    A step to a model whose loss is not finite at the server, where that of the model before is, is
    undone: the round has failed.

    Args:
        strategy: any strategy of Flower's Message API.
        grid: any grid.
        arrays: the model before round ``first``.
        num_rounds: the number of the last round.
        first: the number of the first; more than 1 continues an earlier run.
        timeout: seconds to wait for replies.
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``, after each round.
        train_config: ``server_round -> settings`` for the clients that train in that round.
        seed: fixes what strategies other than ``FedOpt`` draw with Python's and NumPy's own
            generators, as Flower's do.
    """
    draws: Callable[[int], AbstractContextManager[None]] = partial(seeded, seed)
    if isinstance(strategy, FedOpt):  # a wrapper may need every single reply
        grid, draws = strategy.streamed(grid), lambda _: nullcontext()
    clients = _Clients(strategy, grid, timeout)
    for server_round in range(first, num_rounds + 1):
        start, before = time.perf_counter(), arrays
        memory = getattr(evaluate_fn, "memory", None)
        _begin_round(grid, server_round)
        with draws(server_round):
            told = train_config(server_round) if train_config else {}
            new, train, training = clients.train(server_round, before, told)
            arrays = before if new is None else new
            server = evaluate_fn(server_round, arrays) if evaluate_fn else None
            if evaluate_fn and new is not None and lost_losses(server):
                evaluated = _Evaluated(server_round, evaluate_fn, memory)
                if undone := _undone(strategy, evaluated, before, server):
                    arrays, new, (train, server) = before, None, undone
            evaluate, evaluation = clients.evaluate(server_round, arrays)
        yield Round(
            server_round,
            arrays,
            new is None,
            train or MetricRecord(),
            evaluate or MetricRecord(),
            server or MetricRecord(),
            time.perf_counter() - start,
            training,
            evaluation,
        )


class _Clients:
    """What a strategy does with its clients in a round: let them train, let them evaluate."""

    def __init__(self, strategy: Strategy, grid: Grid, timeout: float) -> None:
        self.strategy, self.grid, self.timeout = strategy, grid, timeout
        self._train_config, self._evaluate_config = ConfigRecord(), ConfigRecord()

    def train(
        self, server_round: int, arrays: ArrayRecord, told: Mapping[str, Any]
    ) -> tuple[ArrayRecord | None, MetricRecord | None, Exchange]:
        """The next model, if there is one, and the round's metrics."""
        strategy, exchange = self.strategy, Exchange()
        self._train_config.update(told)  # one record for all rounds, as Flower's `start` has it
        messages = strategy.configure_train(server_round, arrays, self._train_config, self.grid)
        # Only a FedOpt's grid answers with Merged, which its aggregate_train takes.
        replies = cast(Iterable[Message], exchange.send(self.grid, messages, self.timeout))
        return *strategy.aggregate_train(server_round, replies), exchange

    def evaluate(
        self, server_round: int, arrays: ArrayRecord
    ) -> tuple[MetricRecord | None, Exchange]:
        """Metrics of the clients that are asked; None where none is."""
        strategy, exchange, config = self.strategy, Exchange(), self._evaluate_config
        messages = strategy.configure_evaluate(server_round, arrays, config, self.grid)
        replies = cast(Iterable[Message], exchange.send(self.grid, messages, self.timeout))
        return strategy.aggregate_evaluate(server_round, replies), exchange
