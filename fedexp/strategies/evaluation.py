"""What FedExP reports: the mean of the last two iterates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fedexp.arrays import Arrays, trainable_names
from fedexp.records import from_record, to_record

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class MeanOfLastTwo:
    """Evaluate ``(wₜ₋₁ + wₜ)/2`` in place of ``wₜ``.

    FedExP's iterates swing around the solution along flat directions; their mean does not. The
    mean is for evaluation only and never enters training. Rounds 0 and 1 evaluate ``w₀`` and
    ``w₁`` alone; buffers are those of ``wₜ``. Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604.

    Attributes:
        evaluate_fn: Flower's ``(server_round, arrays) -> metrics``.
        previous: ``wₜ₋₁``; save it to resume.
    """

    def __init__(self, evaluate_fn: EvaluateFn) -> None:
        self.evaluate_fn = evaluate_fn
        self.previous: Arrays | None = None

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate round ``server_round`` whose iterate is ``arrays``."""
        if server_round <= 1:
            self.previous = None
        current = from_record(arrays)
        mean = current if self.previous is None else mean_of_two(self.previous, current)
        self.previous = current
        return self.evaluate_fn(server_round, to_record(mean))


def mean_of_two(a: Arrays, b: Arrays) -> Arrays:
    """``(a + b)/2`` of trainable arrays, in their dtype; buffers of ``b``."""
    trainable = trainable_names(b)
    return {
        name: np.asarray((a[name] + x) / 2, dtype=x.dtype) if name in trainable else x
        for name, x in b.items()
    }
