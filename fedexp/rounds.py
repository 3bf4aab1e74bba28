"""The loop over rounds, one round at a time, so that each can be recorded, stopped or resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedexp.strategies.fedopt import FedOpt
from fedexp.strategies.streaming import stream

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
TrainConfig = Callable[[int], Mapping[str, int | float | bool | str]]


@dataclass(frozen=True, eq=False)
class Round:
    """What came of a round.

    Attributes:
        server_round: its number, from 1.
        arrays: the model after it.
        failed: no usable reply; ``arrays`` is the model from before.
        train, evaluate, server: metrics of the clients' training, of their evaluation and of
            ``evaluate_fn``; empty where there was none.
        seconds: of wall time, evaluation included.
    """

    server_round: int
    arrays: ArrayRecord
    failed: bool
    train: MetricRecord
    evaluate: MetricRecord
    server: MetricRecord
    seconds: float


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
) -> Iterator[Round]:
    """What ``strategy.start`` does, handing over every round when it ends.

    Args:
        strategy: any strategy of Flower's Message API.
        grid: any grid.
        arrays: the model before round ``first``.
        num_rounds: the number of the last round.
        first: the number of the first; more than 1 continues an earlier run.
        timeout: seconds to wait for replies.
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``, after each round.
        train_config: ``server_round -> settings`` for the clients' train config record, such as
            the ``learning-rate`` of a schedule. A ``FedOpt``'s own ``client_config`` goes first.
    """
    if isinstance(strategy, FedOpt):  # a wrapper may need every single reply
        grid = stream(grid, strategy.read_once())
    told, evaluate_config = ConfigRecord(), ConfigRecord()
    for server_round in range(first, num_rounds + 1):
        start = time.perf_counter()
        told.update(train_config(server_round) if train_config else {})
        messages = strategy.configure_train(server_round, arrays, told, grid)
        replies = grid.send_and_receive(messages, timeout=timeout)
        new, train = strategy.aggregate_train(server_round, replies)
        arrays = arrays if new is None else new
        messages = strategy.configure_evaluate(server_round, arrays, evaluate_config, grid)
        replies = grid.send_and_receive(messages, timeout=timeout)
        evaluate = strategy.aggregate_evaluate(server_round, replies)
        server = evaluate_fn(server_round, arrays) if evaluate_fn else None
        yield Round(
            server_round,
            arrays,
            new is None,
            train or MetricRecord(),
            evaluate or MetricRecord(),
            server or MetricRecord(),
            time.perf_counter() - start,
        )
