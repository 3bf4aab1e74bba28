"""What one worker does with its share of a cohort; knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

from fedexp.clients.vectorized import GROUP, Cohort
from fedexp.simulation import cohort
from fedexp.simulation.cohort import Span
from fedexp.simulation.grid import answer, context_of, error_reply, identify, one_thread
from fedexp.simulation.transport import Packed, pack, unpack
from fedexp.wire import Merged, Reading

Failure = tuple[int, str]
"""Code and reason of an error reply."""


@dataclass(frozen=True, eq=False)
class Job:
    """A message to one client.

    Attributes:
        metadata: of the message.
        content: index into the contents that travel beside the jobs.
        state: the node's ``Context.state``, if it has any.
        lost: why the client must not run again; it is answered by an error with this reason.
    """

    metadata: Metadata
    content: int
    state: Packed | None = None
    lost: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a worker sends back for a share.

    Attributes:
        merged: sums by subtree, where the share was to be merged.
        replies: content or failure by position in the cohort, otherwise.
        failures: by position, of replies that could not be merged.
        states: ``Context.state`` by node, of those that have any.
        seconds: by node.
    """

    merged: Mapping[Span, Merged] = field(default_factory=dict)
    replies: Mapping[int, Packed | Failure] = field(default_factory=dict)
    failures: Mapping[int, Failure] = field(default_factory=dict)
    states: Mapping[int, Packed] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)


class Worker:
    """Runs clients one after the other, or a group at once where that is faster.

    Args:
        client_app: what the nodes run.
        num_nodes: how many there are.
        run_config: ``context.run_config`` of every node.
        vectorize: ``auto``, ``on`` or ``off``, see ``Cohort.of``.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any], vectorize: str
    ) -> None:
        identify()
        self.client_app = client_app
        self.num_nodes = num_nodes
        self.run_config = run_config
        self.vectorize = vectorize
        self.cohort: Cohort | None = None
        self.position: int | None = None  # of the client that runs now

    def unit(self, node: int) -> int:
        """How many neighbours train at once; shares to merge are made of whole units."""
        context = context_of(node, self.num_nodes, self.run_config, None)
        self.cohort = Cohort.of(self.client_app, self.vectorize, context)
        return GROUP if self.cohort else 1

    def replies(self, contents: Sequence[Packed], jobs: Mapping[int, Job]) -> Outcome:
        """Run ``jobs`` (by position in the cohort) and keep every reply."""
        work = _Work(self, contents, jobs)
        with one_thread():
            replies = {p: work.answer(p) for p in jobs}
        packed = {p: _failure(r) if r.has_error() else pack(r.content) for p, r in replies.items()}
        return Outcome(replies=packed, states=work.states, seconds=work.seconds)

    def merge(
        self,
        contents: Sequence[Packed],
        jobs: Mapping[int, Job],
        whole: Span,
        reading: Reading,
        unit: int,
    ) -> Outcome:
        """Run ``jobs``, neighbours in the cohort ``whole``, and add their replies up."""
        work = _Work(self, contents, jobs)
        if unit > 1 and self.cohort is None:  # a worker that has replaced another
            self.unit(next(iter(jobs.values())).metadata.dst_node_id)
        span = min(jobs), max(jobs) + 1
        before = cohort.broadcast_of(work.messages[span[0]], reading)
        run = work.one_by_one if unit == 1 else work.at_once
        share = cohort.Share(run, reading, before)
        size = cohort.group_size(before) if unit == 1 else unit
        with one_thread():
            merged = {part: share.merged(part, size) for part in cohort.subtrees(span, whole)}
        position = {m.metadata.message_id: p for p, m in work.messages.items()}
        failures = {position[e.metadata.reply_to_message_id]: _failure(e) for e in share.errors}
        return Outcome(merged, {}, failures, work.states, work.seconds)


class _Work:
    """The jobs of one call, and what running them leaves behind."""

    def __init__(self, worker: Worker, contents: Sequence[Packed], jobs: Mapping[int, Job]) -> None:
        self.worker, self.jobs = worker, jobs
        self.states: dict[int, Packed] = {}
        self.seconds: dict[int, float] = {}
        records = [unpack(content) for content in contents]
        self.messages = {
            p: Message(metadata=job.metadata, content=records[job.content])  # type: ignore[call-overload]
            for p, job in jobs.items()
        }

    def one_by_one(self, span: Span) -> list[tuple[Message, Message]]:
        return [(self.messages[p], self.answer(p)) for p in range(*span)]

    def answer(self, position: int) -> Message:
        """The reply of the client at ``position``."""
        message, job = self.messages[position], self.jobs[position]
        if job.lost:
            return error_reply(message, job.lost)
        self.worker.position = position
        start = time.perf_counter()
        context = self._context(job)
        reply = answer(self.worker.client_app, message, context)
        self._keep(job, context)
        self.seconds[context.node_id] = time.perf_counter() - start
        self.worker.position = None
        return reply

    def at_once(self, span: Span) -> list[tuple[Message, Message]]:
        """The replies of neighbours, trained together."""
        if any(self.jobs[p].lost for p in range(*span)):
            return self.one_by_one(span)
        assert self.worker.cohort is not None
        messages = [self.messages[p] for p in range(*span)]
        contexts = [self._context(self.jobs[p]) for p in range(*span)]
        self.worker.position = span[0]
        try:
            replies = self.worker.cohort.train(messages, contexts)
        except Exception:  # one of them raises; alone, it becomes one error reply
            return self.one_by_one(span)
        self.worker.position = None
        for p, context in zip(range(*span), contexts, strict=True):
            self._keep(self.jobs[p], context)
        return list(zip(messages, replies, strict=True))

    def _context(self, job: Job) -> Context:
        state = unpack(job.state) if job.state else RecordDict()
        worker = self.worker
        return context_of(job.metadata.dst_node_id, worker.num_nodes, worker.run_config, state)

    def _keep(self, job: Job, context: Context) -> None:
        if context.state or job.state:  # a client may empty its own
            self.states[context.node_id] = pack(context.state)


def _failure(reply: Message) -> Failure:
    return reply.error.code, reply.error.reason or ""
