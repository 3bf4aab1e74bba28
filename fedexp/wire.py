"""What a client returns in a round, and how the server reads it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp import keys
from fedexp.arrays import Arrays, cast_alike, check_alike, clip_scale, first_non_finite, update_norm
from fedexp.records import R, from_record, records_of

_MAX_WEIGHT, _MAX_NORM = 1e15, 1e100  # so that sums of products and squares stay finite
_MAX_METRICS = 10_000
_MAX_INT = 1 << 63


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


@dataclass(frozen=True, eq=False)
class ClientResult:
    """What one client returned in a round, or why the server does not use it.

    The one form of a client's answer from its local loop to the sums of the round.

    Attributes:
        node: id of the client's node.
        arrays: its model after the local steps; nobody writes to them any more.
        metrics: as the client reported them.
        buffers: names among ``arrays`` that only the client knows to be no parameters.
        kind: what it can be added to; None until ``ReplyFormat.admitted`` has set it.
        weight: ``pᵢ``; likewise.
        refused: why it is not used; empty if it is.

    Example:
        >>> from fedexp.wire import ClientResult
        >>> ClientResult(7, metrics={"num-examples": 3}).refuse("it came too late").refused
        'it came too late'
    """

    node: int
    arrays: Arrays = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    kind: Kind | None = None
    weight: float = 0.0
    refused: str = ""

    @classmethod
    def of_error(cls, node: int, error: BaseException) -> Self:
        """The result of a client that raised."""
        return cls(node, refused=reason_of(error))

    def refuse(self, reason: str) -> ClientResult:
        """The same client, of whose answer nothing is used."""
        return ClientResult(self.node, refused=reason)


@dataclass(frozen=True)
class ReplyFormat:
    """How replies of a round are to be read.

    Attributes:
        weighted_by: key of the weight in the reply's MetricRecord.
        uniform: give every client weight 1 in the step, whatever its examples.
        trainable: names that move; the rest are buffers.
        arrays_key: record key of what was broadcast.
        max_norm: ``C``; a longer update counts as ``Δᵢ C/‖Δᵢ‖``.
        max_weight: ``P``; a client that claims more counts with ``P``.
        divided_by: metric by which a client's weight is divided, a positive number, of which less
            than 1 counts as 1: no client gains weight by it; empty for none.
        narrows: a client may name buffers of its own among ``trainable`` (record ``keys.BUFFERS``).
        step_key: metric that brings ``Kind.step``, a positive number; empty for none.
        whole: a reply must hold all arrays of the model; by default a part of them will do.
        noise: ``σ`` of the noise that a client must report to have added; 0 for none.
    """

    weighted_by: str
    uniform: bool
    trainable: frozenset[str]
    arrays_key: str
    max_norm: float = math.inf
    narrows: bool = False
    step_key: str = ""
    max_weight: float = math.inf
    divided_by: str = ""
    whole: bool = False
    noise: float = 0.0

    def result(
        self, node: int, content: RecordDict, before: Arrays, *, look_at_updates: bool = True
    ) -> ClientResult:
        """The result that a reply of this content holds, admitted or refused.

        It is refused unless there are one ArrayRecord and one MetricRecord, with names and shapes
        that ``before`` has, finite numbers and a positive weight.

        Args:
            node: that it came from.
            content: of the reply.
            before: what was broadcast.
            look_at_updates: look for NaN and infinity in trainable arrays too. A caller that
                adds up several clients saves this pass over memory: they show in the norm.
        """
        try:
            arrays = from_record(_only(content, ArrayRecord))
            metrics = dict(_only(content, MetricRecord))
        except ValueError as error:
            return ClientResult(node, refused=str(error))
        result = ClientResult(node, arrays, metrics, self.buffers(content))
        return self.admitted(result, before, look_at_updates=look_at_updates)

    def admitted(
        self, result: ClientResult, before: Arrays, *, look_at_updates: bool = False
    ) -> ClientResult:
        """``result`` with its ``kind`` and ``weight``, or refused; see ``result``."""
        if result.refused:
            return result
        try:
            arrays = self._alike(result.arrays, before)
            moved = frozenset() if look_at_updates else self._moved(result.buffers)
            looked_at = {name: x for name, x in arrays.items() if name not in moved}
            if name := first_non_finite(looked_at):
                raise BadReply(f"array {name!r} holds NaN or infinity.")
            check_metrics(result.metrics)
            weight = self.share(result.metrics)
            kind = self.kind(arrays, result.metrics, before, result.buffers)
            self._check_length(arrays, before, kind)
        except ValueError as error:
            return result.refuse(str(error))
        node, metrics, buffers = result.node, result.metrics, result.buffers
        return ClientResult(node, arrays, metrics, buffers, kind, weight)

    def _alike(self, received: Arrays, before: Arrays) -> Arrays:
        """``received`` in the dtypes of ``before``, or of the part of it that it has."""
        expected = before or received  # an empty model takes any
        is_part = 0 < len(received) < len(expected) and received.keys() <= expected.keys()
        if is_part and not self.whole:
            expected = {name: x for name, x in expected.items() if name in received}
        check_alike(received, expected)
        return cast_alike(received, expected)

    def kind(
        self,
        arrays: Arrays,
        metrics: Mapping[str, Any],
        before: Arrays,
        buffers: frozenset[str] = frozenset(),
    ) -> Kind:
        """What a reply of these ``arrays`` and ``metrics`` adds up with.

        Args:
            arrays: in the dtypes of ``before``.
            metrics: of the reply.
            before: what was broadcast.
            buffers: what the reply names as such.
        """
        step = metrics.get(self.step_key, 0.0)
        sound = isinstance(step, int | float) and 1 / _MAX_WEIGHT < step < _MAX_WEIGHT
        absent = frozenset(before.keys() - arrays.keys())
        form = () if before else tuple((k, x.shape, x.dtype) for k, x in arrays.items())
        moved = self._moved(buffers) if before else frozenset()
        return Kind(moved - absent, float(step) if sound else 0.0, absent, form)

    def buffers(self, content: RecordDict) -> frozenset[str]:
        """What a reply names as buffers, if it may."""
        record = records_of(content, ConfigRecord).get(keys.BUFFERS) if self.narrows else None
        names = record.get("names") if record else None
        return frozenset(map(str, names)) if isinstance(names, list) else frozenset()

    def _moved(self, buffers: frozenset[str]) -> frozenset[str]:
        return self.trainable - buffers if self.narrows and buffers else self.trainable

    def norm(self, after: Arrays, before: Arrays, kind: Kind | None = None) -> float:
        """``‖Δᵢ‖`` of what a client returned; 0 if there is no bound that asks for it."""
        if math.isinf(self.max_norm):
            return 0.0
        return update_norm(before, after, (kind or self).trainable)

    def scale(self, norm: float) -> float:
        """``sᵢ = min(1, C/‖Δᵢ‖)`` of an update of length ``norm``."""
        return clip_scale(norm, self.max_norm)

    def weight(self, content: RecordDict) -> float:
        """The client's weight as it reported it.

        Raises:
            BadReply: not one MetricRecord, or metrics that are of no use.
        """
        metrics = _only(content, MetricRecord)
        check_metrics(metrics)
        return self._weight(metrics)

    def share(self, metrics: Mapping[str, Any]) -> float:
        """``pᵢ``, the client's weight in the step."""
        weight = self._weight(metrics)
        if self.noise and metrics.get(keys.LOCAL_NOISE) != self.noise:
            raise BadReply(
                "it has not hidden its update. Use fedexp.clients.client_app, of this version."
            )
        share = 1.0 if self.uniform else min(weight, self.max_weight)
        return share / self.divisor(metrics) if self.divided_by else share

    def _check_length(self, after: Arrays, before: Arrays, kind: Kind) -> None:
        """Refuse an update that is longer than the noise makes any that was bounded before it.

        The length of the noise exceeds ``σ (√d + 8)`` with probability ``e^-32``, and the bound was
        less than ``2 σ``; twice of it all leaves room for what half precision rounds.
        """
        if not self.noise or kind.form:
            return
        size = sum(x.size for name, x in before.items() if name in kind.trainable)
        norm, most = update_norm(before, after, kind.trainable), 2 * self.noise * (size**0.5 + 10)
        if not norm <= most:
            raise BadReply(f"its update has norm {norm:.3g}, with its noise at most {most:.3g}.")

    def divisor(self, metrics: Mapping[str, Any]) -> float:
        """What the client's weight is divided by."""
        value = metrics.get(self.divided_by)
        if not isinstance(value, int | float) or not 0 < value < _MAX_WEIGHT:
            raise BadReply(
                f"{self.divided_by} is {value}, it must be a positive number below 1e15."
            )
        return max(1.0, float(value))

    def _weight(self, metrics: Mapping[str, Any]) -> float:
        value = metrics.get(self.weighted_by)
        if isinstance(value, list) or value is None or not 0 < value < _MAX_WEIGHT:
            raise BadReply(
                f"{self.weighted_by} is {value}, it must be a positive number below 1e15."
            )
        loss = metrics.get(keys.FINAL_LOSS, 0.0)
        if isinstance(loss, list) or not math.isfinite(loss):
            raise BadReply(f"{keys.FINAL_LOSS} is {loss}, it must be a finite number.")
        return float(value)


def reason_of(error: BaseException) -> str:
    """What is said of an exception of a client: its class, text and place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    name = last.filename.rsplit("/", 1)[-1]
    said = f"{type(error).__name__}: {text_of(error)} ({name}, line {last.lineno})"
    return f"{said}. {NEEDS_LESS_MEMORY}" if _is_of_memory(error) else said


NEEDS_LESS_MEMORY = "Use a smaller --batch-size, or fewer --num-workers."
"""What to do where memory runs out."""


def _is_of_memory(error: BaseException) -> bool:
    """PyTorch has no class of its own for it on CPUs."""
    text = text_of(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def text_of(error: BaseException) -> str:
    """What an exception says, if it can be asked: its ``__str__`` is client code as well."""
    try:
        return str(error)
    except Exception:
        return "it cannot be shown"


def check_metrics(metrics: Mapping[Any, Any]) -> None:
    """Raise ``BadReply`` unless ``metrics`` are what may come over a network.

    In a simulation nobody has looked: an integer may be too long for a float, or for a text.
    """
    if len(metrics) > _MAX_METRICS:
        raise BadReply(f"it has {len(metrics)} metrics, at most {_MAX_METRICS} are read.")
    for key, value in metrics.items():
        if not isinstance(key, str):
            raise BadReply(f"metric {key!r} has a name that is no text.")
        for x in value if isinstance(value, list) else (value,):
            if not isinstance(x, int | float):
                raise BadReply(f"metric {key!r} is {str(x)[:30]}, no number.")
            if isinstance(x, int) and not -_MAX_INT <= x < _MAX_INT:
                raise BadReply(f"metric {key!r} is an integer of more than 64 bits.")


def check_norm(norm: float) -> None:
    """Raise ``BadReply`` for an update of a ``norm`` whose square would drown the sums."""
    if not norm < _MAX_NORM:
        raise BadReply(f"its update has norm {norm:.3g}, it must be below {_MAX_NORM:g}.")


def _only(content: RecordDict, kind: type[R]) -> R:
    records = records_of(content, kind)
    if len(records) != 1:
        raise BadReply(f"it has {len(records)} records of kind {kind.__name__}, expected one.")
    return next(iter(records.values()))
