"""Evaluation on the server of the last iterate, of an average of iterates, or of both."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, MetricRecord

from fedexp.arrays import Arrays, trainable_names
from fedexp.records import from_record, to_record
from fedexp.strategies.averages import Average, MeanOfLast, Memory

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class MeanOfIterates:
    """Evaluate an average of the iterates in place of the last one.

    It is an ``evaluate_fn`` for ``strategy.start``. Rounds 0 and 1 evaluate ``w₀`` and ``w₁``
    alone, since the initial model is not part of the average.

    Args:
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``.
        average: how to average; by default the mean of the last two, as in the FedExP paper.
        trainable: names of the arrays to average, by default all floating-point arrays but
            batch-norm buffers. The other arrays are those of the last iterate.

    Attributes:
        memory: what the average remembers; save it to resume a run.

    Example:
        >>> import numpy as np
        >>> from flwr.app import ArrayRecord, MetricRecord
        >>> from fedexp.strategies import MeanOfIterates
        >>> def loss(server_round, arrays):
        ...     (w,) = arrays.to_numpy_ndarrays()
        ...     return MetricRecord({"loss": w.item() ** 2})
        >>> evaluate = MeanOfIterates(loss)
        >>> dict(evaluate(1, ArrayRecord([np.array([3.0])])))
        {'loss': 9.0}
        >>> dict(evaluate(2, ArrayRecord([np.array([-3.0])])))  # of w = 0, the mean of 3 and -3
        {'loss': 0.0}
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
        # What came before round 1 is the initial model, which no training has seen.
        before = self.memory if server_round > 1 else {}
        self.memory = self.average.update(before, current)
        return self.evaluate_fn(server_round, to_record(self.mean))

    @property
    def mean(self) -> Arrays:
        """The averaged model after the last call, by array name."""
        *_, last = self.memory.values()
        trainable = trainable_names(last) if self.trainable is None else self.trainable
        return self.average.mean(self.memory, trainable)


class MeanOfLastTwo(MeanOfIterates):
    """Evaluate ``(wₜ₋₁ + wₜ)/2`` in place of ``wₜ``, as Jhunjhunwala, Wang & Joshi 2023 do.

    Args:
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``.

    Example:
        >>> import numpy as np
        >>> from flwr.app import ArrayRecord
        >>> from fedexp.strategies import MeanOfLastTwo
        >>> evaluate = MeanOfLastTwo(lambda server_round, arrays: None)
        >>> for server_round, w in ((1, 1.0), (2, 4.0)):
        ...     _ = evaluate(server_round, ArrayRecord([np.array([w])]))
        >>> [x.tolist() for x in evaluate.mean.values()]
        [[2.5]]
    """

    def __init__(self, evaluate_fn: EvaluateFn) -> None:
        super().__init__(evaluate_fn, MeanOfLast(2))


class BothIterates(MeanOfIterates):
    """Evaluate the last iterate and the average of the iterates.

    Metrics of the last iterate keep their names; those of the average get the prefix ``mean-``.
    Arguments and attributes are those of ``MeanOfIterates``.

    Example:
        >>> import numpy as np
        >>> from flwr.app import ArrayRecord, MetricRecord
        >>> from fedexp.strategies import BothIterates
        >>> def loss(server_round, arrays):
        ...     (w,) = arrays.to_numpy_ndarrays()
        ...     return MetricRecord({"loss": w.item() ** 2})
        >>> evaluate = BothIterates(loss)
        >>> _ = evaluate(1, ArrayRecord([np.array([3.0])]))
        >>> dict(evaluate(2, ArrayRecord([np.array([-1.0])])))
        {'loss': 1.0, 'mean-loss': 1.0}
    """

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate round ``server_round`` twice."""
        mean = super().__call__(server_round, arrays) or MetricRecord()
        last = self.evaluate_fn(server_round, arrays) or MetricRecord()
        return MetricRecord({**last, **{f"mean-{name}": value for name, value in mean.items()}})
