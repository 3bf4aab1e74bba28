"""Reading clients' replies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.arrays import (
    Arrays,
    cast_alike,
    check_alike,
    first_non_finite,
    scale_to,
    update_norm,
)
from fedexp.records import R, from_record, records_of

FINAL_LOSS = "final-loss"
"""Metric: the client's loss at what it returns, for rules that need it."""

_MAX_WEIGHT, _MAX_NORM = 1e15, 1e100  # so that sums of products and squares stay finite
_MAX_METRICS = 10_000

BUFFERS = "fedexp-buffers"
"""Record key: names of a reply's floating-point arrays that are no parameters."""


class BadReply(ValueError):
    """A client's reply that cannot enter the round; its text says why."""


@dataclass(frozen=True)
class Kind:
    """What replies must have in common for their sums to mean something.

    Attributes:
        trainable: names that move; the rest are buffers.
        step: ``K η_l`` of SCAFFOLD's clients; 0 where it is unknown or not needed.
        absent: names of the model that are not sent back.
        form: name, shape and dtype of each array, where the model was not known before.
    """

    trainable: frozenset[str]
    step: float = 0.0
    absent: frozenset[str] = frozenset()
    form: tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...] = ()

    def part(self, before: Arrays) -> Arrays:
        """What of the model is sent back; without values where it was not known."""
        if self.form:
            return {name: np.broadcast_to(np.zeros((), d), shape) for name, shape, d in self.form}
        if not self.absent:
            return before
        return {name: x for name, x in before.items() if name not in self.absent}


@dataclass(frozen=True)
class Reading:
    """How replies of a round are to be read.

    Attributes:
        weighted_by: key of the weight in the reply's MetricRecord.
        uniform: give every client weight 1 in the step, whatever its examples.
        trainable: names that move; the rest are buffers.
        arrays_key: record key of what was broadcast.
        max_norm: ``C``; a longer update counts as ``Δᵢ C/‖Δᵢ‖``.
        max_weight: ``P``; a client that claims a larger weight counts with ``P``.
        narrows: a client may name buffers of its own among ``trainable`` (record ``BUFFERS``).
        step_key: metric that brings ``Kind.step``, a positive number; empty for none.
    """

    weighted_by: str
    uniform: bool
    trainable: frozenset[str]
    arrays_key: str
    max_norm: float = math.inf
    max_weight: float = math.inf
    narrows: bool = False
    step_key: str = ""

    def read(
        self, content: RecordDict, before: Arrays, *, look_at_updates: bool = True
    ) -> tuple[Arrays, float]:
        """What a client returned, and its weight ``pᵢ``.

        Args:
            content: of the reply.
            before: what was broadcast.
            look_at_updates: look for NaN and infinity in trainable arrays too. A caller that
                folds can save this pass over memory: they show in the norm.

        Raises:
            BadReply: not one ArrayRecord and one MetricRecord, names or shapes that ``before``
                has not, NaN or infinity, or a weight that is not a positive number.
        """
        try:
            received = from_record(_only(content, ArrayRecord))
        except BadReply:
            raise
        except ValueError as error:
            raise BadReply(str(error)) from error
        metrics = _only(content, MetricRecord)
        buffers = self.buffers(content)
        return self.taken(received, metrics, before, buffers, look_at_updates=look_at_updates)

    def taken(
        self,
        received: Arrays,
        metrics: Mapping[str, Any],
        before: Arrays,
        buffers: frozenset[str] = frozenset(),
        *,
        look_at_updates: bool = False,
    ) -> tuple[Arrays, float]:
        """As ``read``, of a reply's arrays, metrics and the buffers that it names."""
        expected = before or received  # an empty model takes any
        if 0 < len(received) < len(expected) and received.keys() <= expected.keys():
            expected = {name: x for name, x in expected.items() if name in received}
        try:
            check_alike(received, expected)
        except ValueError as error:
            raise BadReply(str(error)) from error
        arrays = cast_alike(received, expected)
        moved = frozenset() if look_at_updates else self._moved(buffers)
        looked_at = {name: x for name, x in arrays.items() if name not in moved}
        if name := first_non_finite(looked_at):
            raise BadReply(f"array {name!r} holds NaN or infinity.")
        return arrays, self.share(metrics)

    def kind(
        self,
        arrays: Arrays,
        metrics: Mapping[str, Any],
        before: Arrays,
        buffers: frozenset[str] = frozenset(),
    ) -> Kind:
        """What a reply of these ``arrays`` and ``metrics`` adds up with.

        Args:
            arrays: as ``read`` gave them.
            metrics: of the reply.
            before: what was broadcast.
            buffers: what the reply names as such.
        """
        step = metrics.get(self.step_key, 0.0)
        sound = isinstance(step, int | float) and 0 < step < math.inf
        absent = frozenset(before.keys() - arrays.keys())
        form = () if before else tuple((k, x.shape, x.dtype) for k, x in arrays.items())
        moved = self._moved(buffers) if before else frozenset()
        return Kind(moved - absent, float(step) if sound else 0.0, absent, form)

    def buffers(self, content: RecordDict) -> frozenset[str]:
        """What a reply names as buffers, if it may."""
        record = records_of(content, ConfigRecord).get(BUFFERS) if self.narrows else None
        names = record.get("names") if record else None
        return frozenset(map(str, names)) if isinstance(names, list) else frozenset()

    def _moved(self, buffers: frozenset[str]) -> frozenset[str]:
        return self.trainable - buffers if self.narrows and buffers else self.trainable

    def norm(self, after: Arrays, before: Arrays, kind: Kind | None = None) -> float:
        """``‖Δᵢ‖`` of what a client returned; 0 if there is no bound that needs it."""
        if math.isinf(self.max_norm):
            return 0.0
        return update_norm(before, after, (kind or self).trainable)

    def scale(self, norm: float) -> float:
        """``sᵢ = min(1, C/‖Δᵢ‖)`` of an update of length ``norm``."""
        return scale_to(self.max_norm, norm)

    def weight(self, content: RecordDict) -> float:
        """The client's weight as it reported it."""
        return self._weight(_only(content, MetricRecord))

    def share(self, metrics: Mapping[str, Any]) -> float:
        """``pᵢ``, the client's weight in the step."""
        weight = self._weight(metrics)
        return 1.0 if self.uniform else min(weight, self.max_weight)

    def _weight(self, metrics: Mapping[str, Any]) -> float:
        if len(metrics) > _MAX_METRICS:
            raise BadReply(f"it has {len(metrics)} metrics, at most {_MAX_METRICS} are read.")
        value = metrics.get(self.weighted_by)
        if isinstance(value, list) or value is None or not 0 < value < _MAX_WEIGHT:
            raise BadReply(
                f"{self.weighted_by} is {value}, it must be a positive number below 1e15."
            )
        loss = metrics.get(FINAL_LOSS, 0.0)
        if isinstance(loss, list) or not math.isfinite(loss):
            raise BadReply(f"{FINAL_LOSS} is {loss}, it must be a finite number.")
        return float(value)


def check_norm(norm: float) -> None:
    """Raise ``BadReply`` for an update of a ``norm`` whose square would drown the sums."""
    if not norm < _MAX_NORM:
        raise BadReply(f"its update has norm {norm:.3g}, it must be below {_MAX_NORM:g}.")


def _only(content: RecordDict, kind: type[R]) -> R:
    records = records_of(content, kind)
    if len(records) != 1:
        raise BadReply(f"it has {len(records)} records of kind {kind.__name__}, expected one.")
    return next(iter(records.values()))
