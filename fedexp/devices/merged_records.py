"""Sums of several clients as records that travel, and what a server believes of them.

A server cannot see what an edge has added up. It checks that the sums have the form of the model,
that they are finite, that every client is named once, and that their norms can be those of the sum;
a sum that is longer than the bounds of its clients allow is scaled down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedexp.arrays import Arrays, first_non_finite, sq_norm
from fedexp.merged import ClientSums, Merged
from fedexp.records import from_record, to_record
from fedexp.simulation.merge_tree import Span
from fedexp.stats import PseudoGradientStats
from fedexp.sums import tree_sum
from fedexp.wire import BadReply, Kind, ReplyFormat, check_metrics

ARRAYS, TEXT = "merged-sums", "merged"
"""Records of a merged reply: the sums by name, and all else as JSON."""
_CLOSE = 1e-6  # of numbers that two machines computed from the same sums


def reading_text(reading: ReplyFormat) -> str:
    """How replies are to be read, for an edge."""
    return json.dumps({**asdict(reading), "trainable": sorted(reading.trainable)})


def reading_of(text: str) -> ReplyFormat:
    """The inverse of ``reading_text``.

    Raises:
        ValueError: it is none.

    Example:
        >>> from fedexp.devices.merged_records import reading_of, reading_text
        >>> from fedexp.wire import ReplyFormat
        >>> reading = ReplyFormat("num-examples", False, frozenset("w"), "arrays", max_norm=0.1)
        >>> reading_of(reading_text(reading)) == reading
        True
    """
    try:
        given = json.loads(text)
        return ReplyFormat(**{**given, "trainable": frozenset(map(str, given["trainable"]))})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the request to add up cannot be read: {error}.") from None


def content_of_sums(parts: Mapping[Span, Merged]) -> RecordDict:
    """Sums by subtree of the cohort as the content of a reply.

    Raises:
        ValueError: the clients had no model to measure updates from.
    """
    arrays: dict[str, Any] = {}
    told = []
    for i, (span, merged) in enumerate(parts.items()):
        sums = []
        for j, (kind, one) in enumerate(merged.sums.items()):
            if kind.form:
                raise ValueError("an edge adds nothing up without a model. Send one.")
            for part in ("update", "buffers"):
                own = getattr(one.stats, part)
                arrays |= {f"{i}/{j}/{part}/{name}": np.asarray(x) for name, x in own.items()}
            sums.append(_told(kind, one))
        told.append({"span": span, "failures": merged.failures, "sums": sums})
    text = ConfigRecord({"json": json.dumps(told)})
    return RecordDict({ARRAYS: to_record(arrays), TEXT: text})


_NUMBERS = ("count", "weight", "sq_norm", "norm", "num_clipped")


def _told(kind: Kind, sums: ClientSums) -> dict[str, Any]:
    named = {"trainable": sorted(kind.trainable), "absent": sorted(kind.absent), "step": kind.step}
    metrics = [[node, dict(own)] for node, own in sums.metrics]
    numbers = {name: getattr(sums.stats, name) for name in _NUMBERS}
    return {"kind": named, "metrics": metrics, "norms": sums.norms, **numbers}


def sums_in(
    content: RecordDict,
    asked: Mapping[Span, Sequence[int]],
    reading: ReplyFormat,
    before: Arrays,
) -> dict[Span, Merged]:
    """The sums that an edge sent, checked and bounded.

    Args:
        content: of its reply.
        asked: the subtrees that it was asked for, and their clients' nodes.
        reading: how it was told to read its clients' replies.
        before: the model that was broadcast.

    Raises:
        BadReply: they cannot be what was asked for.
    """
    try:
        arrays = from_record(_record(content, ARRAYS, ArrayRecord))
        told = json.loads(str(_record(content, TEXT, ConfigRecord)["json"]))
        parts = {(int(x["span"][0]), int(x["span"][1])): (i, x) for i, x in enumerate(told)}
        if parts.keys() != asked.keys():
            raise BadReply(f"it answers for {list(parts)}, not for {list(asked)}.")
        used = _Arrays(arrays)
        found = {
            span: _part(used, *parts[span], nodes, reading, before) for span, nodes in asked.items()
        }
        used.check_empty()
    except BadReply:
        raise
    except Exception as error:  # whoever sent it may have sent anything
        raise BadReply(f"its sums cannot be read: {type(error).__name__}: {error}.") from error
    return found


def _record(content: RecordDict, key: str, kind: type[Any]) -> Any:
    record = content.get(key)
    if not isinstance(record, kind):
        raise BadReply(f"it has no {key}: it was to add up.")
    return record


class _Arrays:
    """The arrays of a reply, each of which is used once."""

    def __init__(self, arrays: Arrays) -> None:
        self.rest = dict(arrays)

    def take(self, prefix: str, like: Arrays) -> dict[str, Any]:
        """The arrays with the names and shapes of ``like``."""
        taken = {}
        for name, x in like.items():
            found = self.rest.pop(f"{prefix}/{name}", None)
            if found is None or found.shape != x.shape or found.dtype != np.float64:
                what = "is missing" if found is None else f"is {found.dtype} of {found.shape}"
                raise BadReply(f"sum {name!r} {what}, must be float64 of {x.shape}.")
            taken[name] = found
        if bad := first_non_finite(taken):
            raise BadReply(f"sum {bad!r} holds NaN or infinity.")
        return taken

    def check_empty(self) -> None:
        if self.rest:
            raise BadReply(f"it holds sums that nobody asked for: {sorted(self.rest)[:3]}.")


def _part(
    arrays: _Arrays,
    number: int,
    told: Mapping[str, Any],
    nodes: Sequence[int],
    reading: ReplyFormat,
    before: Arrays,
) -> Merged:
    failures = tuple((int(node), str(reason)[:500]) for node, reason in told["failures"])
    sums: dict[Kind, ClientSums] = {}
    for j, one in enumerate(told["sums"]):
        kind = _kind(one["kind"], reading, before)
        own = kind.part(before)
        moving = {name: x for name, x in own.items() if name in kind.trainable}
        fixed = {name: x for name, x in own.items() if name not in kind.trainable}
        stats = PseudoGradientStats(
            update=arrays.take(f"{number}/{j}/update", moving),
            buffers=arrays.take(f"{number}/{j}/buffers", fixed),
            **{name: one[name] for name in _NUMBERS},
        )
        metrics = tuple((int(node), dict(values)) for node, values in one["metrics"])
        norms = tuple(float(norm) for norm in one["norms"])
        sums[kind] = _checked(ClientSums(stats, metrics, norms), reading)
    answered = [node for x in sums.values() for node, _ in x.metrics]
    if sorted([*answered, *(node for node, _ in failures)]) != sorted(nodes):
        raise BadReply(f"it answers for nodes {answered[:5]}, was asked for {list(nodes)[:5]}.")
    return Merged(sums, failures)


def _kind(told: Mapping[str, Any], reading: ReplyFormat, before: Arrays) -> Kind:
    trainable, absent = (frozenset(map(str, told[name])) for name in ("trainable", "absent"))
    step = float(told["step"])
    whole = reading.trainable - absent
    sound = trainable <= whole if reading.narrows else trainable == whole
    if (
        not sound
        or (reading.whole and absent)
        or not absent < before.keys()
        or not 0 <= step < math.inf
    ):
        raise BadReply("it adds up other arrays than those of the model.")
    return Kind(trainable, step, absent)


def _checked(sums: ClientSums, reading: ReplyFormat) -> ClientSums:
    """``sums`` whose numbers are those of its clients, scaled down to their bounds."""
    stats, count = sums.stats, len(sums.metrics)
    for _, metrics in sums.metrics:
        check_metrics(metrics)
    weights = [reading.share(metrics) for _, metrics in sums.metrics]
    weight = float(tree_sum(weights))
    bounded = math.isfinite(reading.max_norm)
    numbers = [stats.weight, stats.sq_norm, stats.norm, *sums.norms]
    if not all(isinstance(x, int | float) and 0 <= x < math.inf for x in numbers) or count < 1:
        raise BadReply("its weight or norms are no positive, finite numbers.")
    if stats.count != count or len(sums.norms) != count or not _alike(stats.weight, weight):
        raise BadReply(f"it counts {stats.count} clients of weight {stats.weight}, names {count}.")
    scales = [reading.scale(norm) for norm in sums.norms]
    if not 0 <= stats.num_clipped <= count:
        raise BadReply(f"it bounded {stats.num_clipped} of {count} clients.")
    length = sq_norm(stats.update) ** 0.5
    # Jensen: the mean of squared norms is no less than the squared norm of the mean.
    if length**2 > stats.sq_norm * weight * (1 + _CLOSE) + _CLOSE**2:
        raise BadReply(f"its sum has norm {length:.3g}, too long for sq-norm {stats.sq_norm:.3g}.")
    if not bounded:
        return sums
    own = [scale * norm for scale, norm in zip(scales, sums.norms, strict=True)]
    expected = sum(p * x * x for p, x in zip(weights, own, strict=True))
    if not _alike(stats.sq_norm, expected):
        raise BadReply(
            f"its sq-norm is {stats.sq_norm:.3g}, its clients' norms give {expected:.3g}."
        )
    most = sum(p * x for p, x in zip(weights, own, strict=True))
    if length <= most * (1 + _CLOSE):
        return sums
    update = {name: x * (most / length) for name, x in stats.update.items()}
    return replace(sums, stats=replace(stats, update=update))


def _alike(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-12)
