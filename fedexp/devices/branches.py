"""Results of devices and sums of edges, as branches of the tree that adds a cohort up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from flwr.app import Message

from fedexp.arrays import Arrays
from fedexp.devices.merged_records import sums_in
from fedexp.devices.requests import Request, printable
from fedexp.merged import Merged
from fedexp.simulation.merge_tree import Span, combine, halves, subtrees
from fedexp.simulation.worker_share import WorkerShare
from fedexp.wire import BadReply, ClientResult, ReplyFormat


class Branches:
    """Adds up the results of a cohort, which come in any order, along the cohort's tree.

    Args:
        nodes: ids of the cohort's clients, in its order.
        reading: how a client's reply is read.
        before: the model that was sent.
    """

    def __init__(self, nodes: Sequence[int], reading: ReplyFormat, before: Arrays) -> None:
        self.nodes, self.reading, self.before = nodes, reading, before
        self._whole: Span = (0, len(nodes))
        self._parts: dict[Span, Merged] = {}

    def add(self, request: Request, reply: Message) -> None:
        """Take the reply to a request, and add up all branches that are complete."""
        if request.is_edge:
            self._parts |= self._sums_of_edge(request.places, reply)
        else:
            result = self._result(self.nodes[request.places[0]], reply)
            share = WorkerShare(lambda _: [result], self.reading, self.before)
            self._parts[request.places] = share.merged(request.places, 1)
        _settle(self._whole, self._parts)

    def total(self) -> Merged:
        """The sum of all that came."""
        for part in _missing(self._whole, self._parts):  # those that are late add nothing
            self._parts[part] = Merged()
        merged = combine(self._whole, self._parts)
        failures = tuple((node, printable(reason)) for node, reason in merged.failures)
        return replace(merged, failures=failures)

    def _result(self, node: int, reply: Message) -> ClientResult:
        if reply.has_error():
            return ClientResult(node, refused=_reason(reply))
        return self.reading.result(node, reply.content, self.before, look_at_updates=False)

    def _sums_of_edge(self, places: Span, reply: Message) -> dict[Span, Merged]:
        """The sums of an edge by subtree, or failures of all its clients."""
        asked = {part: self.nodes[slice(*part)] for part in subtrees(places, self._whole)}
        if reply.has_error():
            reason = _reason(reply)
        else:
            try:
                return sums_in(reply.content, asked, self.reading, self.before)
            except BadReply as error:
                reason = str(error)
        return {
            part: Merged(failures=tuple((node, reason) for node in some))
            for part, some in asked.items()
        }


def _reason(reply: Message) -> str:
    return reply.error.reason or f"error {reply.error.code}"


def _missing(span: Span, parts: Mapping[Span, Merged]) -> Iterator[Span]:
    """The largest branches of the tree below ``span`` of which nothing has come."""
    if span in parts:
        return
    if not any(span[0] <= part[0] and part[1] <= span[1] for part in parts):
        yield span
        return
    for half in halves(span):
        yield from _missing(half, parts)


def _settle(span: Span, parts: dict[Span, Merged]) -> bool:
    """Add up what can be, so that no more sums are held than the tree has open branches."""
    if span in parts:
        return True
    if span[1] - span[0] < 2:
        return False
    left, right = halves(span)
    if all([_settle(left, parts), _settle(right, parts)]):
        parts[span] = parts.pop(left) + parts.pop(right)
        return True
    return False
