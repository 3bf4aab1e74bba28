"""Evaluation on the server: of the last iterate, of an averaged one, or of both alike."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, MetricRecord

from fedexp.arrays import Arrays, trainable_names
from fedexp.records import from_record, to_record
from fedexp.strategies.averages import Average, MeanOfLast, Memory

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class MeanOfIterates:
    """Evaluate an average of the iterates in place of the last one.

    An ``evaluate_fn`` for ``strategy.start``. Rounds 0 and 1 evaluate ``w₀`` and ``w₁`` alone:
    the initial model has no part in the average.

    Args:
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``.
        average: of the iterates; by default the mean of the last two, as in the FedExP paper.
        trainable: names to average, by default all floating-point arrays but batch-norm buffers;
            the others are the last iterate's.

    Attributes:
        memory: what the average remembers; save it to resume.
    """

    def __init__(
        self,
        evaluate_fn: EvaluateFn,
        average: Average | None = None,
        trainable: frozenset[str] | None = None,
    ) -> None:
        self.evaluate_fn = evaluate_fn
        self.average = average or MeanOfLast(2)
        self.trainable = trainable
        self.memory: Memory = {}

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate round ``server_round`` whose iterate is ``arrays``."""
        current = from_record(arrays)
        before = self.memory if server_round > 1 else {}
        self.memory = self.average.update(before, current)
        return self.evaluate_fn(server_round, to_record(self.mean))

    @property
    def mean(self) -> Arrays:
        """The averaged model after the last call."""
        *_, last = self.memory.values()
        trainable = trainable_names(last) if self.trainable is None else self.trainable
        return self.average.mean(self.memory, trainable)


class MeanOfLastTwo(MeanOfIterates):
    """Evaluate ``(wₜ₋₁ + wₜ)/2`` in place of ``wₜ``, as Jhunjhunwala, Wang & Joshi 2023 do.

    Args:
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``.
    """

    def __init__(self, evaluate_fn: EvaluateFn) -> None:
        super().__init__(evaluate_fn, MeanOfLast(2))


class BothIterates(MeanOfIterates):
    """Evaluate the last iterate and the averaged one: every strategy is scored both ways.

    Metrics of the last iterate keep their names; those of the average gain the prefix ``mean-``.
    Arguments and attributes are those of ``MeanOfIterates``.
    """

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate round ``server_round`` twice."""
        mean = super().__call__(server_round, arrays) or MetricRecord()
        last = self.evaluate_fn(server_round, arrays) or MetricRecord()
        return MetricRecord({**last, **{f"mean-{name}": value for name, value in mean.items()}})
