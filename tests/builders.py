"""Small rounds for tests: statistics of given updates, and clients that are functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexp.merged import OrderedGrid
from fedexp.simulation import SerialGrid
from fedexp.stats import PseudoGradientStats, total

Answer = Callable[[Message, Context], RecordDict]


def stats_of(*updates: Any, weights: Sequence[float] | None = None) -> PseudoGradientStats:
    """The statistics of a round in which client ``i`` had the pseudo-gradient ``updates[i]``."""
    before = {"w": np.zeros(np.shape(updates[0]))}
    return total(
        PseudoGradientStats.of(
            before, {"w": -np.asarray(x, float)}, weight=p, trainable=frozenset("w")
        )
        for x, p in zip(updates, weights or [1.0] * len(updates), strict=True)
    )


def record(arrays: Mapping[str, Any]) -> ArrayRecord:
    """Flower's own encoding of ``arrays``."""
    return ArrayRecord({name: Array(np.asarray(x)) for name, x in arrays.items()})


def content(arrays: Mapping[str, Any], **metrics: Any) -> RecordDict:
    """What a Flower client replies; ``num_examples`` is 1 unless given."""
    values = {"num-examples": 1} | {key.replace("_", "-"): x for key, x in metrics.items()}
    return RecordDict({"arrays": record(arrays), "metrics": MetricRecord(values)})


def reply(body: RecordDict, node: int = 2) -> Message:
    """``body`` as the reply of ``node``."""
    return Message(body, reply_to=Message(RecordDict(), node, "train"))


def grid_of(num_nodes: int, train: Answer, evaluate: Answer | None = None) -> SerialGrid:
    """A grid of clients that answer ``train(message, context)``."""
    app = ClientApp()
    app.train()(lambda message, context: Message(train(message, context), reply_to=message))
    if evaluate:
        app.evaluate()(lambda m, context: Message(evaluate(m, context), reply_to=m))
    return SerialGrid(app, num_nodes)


def partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


class Single:
    """A grid that hides that it could answer with sums, as Flower's own cannot."""

    def __init__(self, grid: Any) -> None:
        self.grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)


OrderedGrid.register(Single)


def merging_if(merges: bool, grid: Any) -> Any:
    """``grid`` as it is, or such that every client answers singly."""
    return grid if merges else Single(grid)
