"""What one worker does with its share of a cohort; knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedexp.records import from_record, records_of
from fedexp.simulation.conditions import Conditions, Fate
from fedexp.simulation.flower.messages import identify, message_with
from fedexp.simulation.grid import (
    RUN_ID,
    answer,
    context_of,
    error_reply,
    fate_of,
    too_late,
)
from fedexp.simulation.guard import ClientRaised, guarded
from fedexp.simulation.jobs import ClientJob, ErrorReply, ShareOutcome
from fedexp.simulation.merge_tree import Span, subtrees
from fedexp.simulation.transport import Packed, pack, unpack
from fedexp.simulation.worker_share import WorkerShare, models_at_once
from fedexp.threads import one_thread
from fedexp.wire import ClientResult, ReplyFormat

if TYPE_CHECKING:  # they need PyTorch, and a ClientApp of NumPy does without
    from fedexp.clients.client import Client
    from fedexp.clients.groups.group import ClientGroup


class Worker:
    """Runs clients one after the other, or a group at once where that is faster.

    Args:
        client_app: what the nodes run.
        num_nodes: how many there are.
        run_config: ``context.run_config`` of every node.
        vectorize: ``auto``, ``on`` or ``off``, see ``ClientGroup.of``.
        timeout: seconds after which a client that ran alone is of no use.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, Any],
        vectorize: str,
        timeout: float = math.inf,
    ) -> None:
        identify(RUN_ID)
        self.client_app = client_app
        self.num_nodes = num_nodes
        self.run_config = run_config
        self.vectorize = vectorize
        self.conditions = Conditions.of(run_config)
        self.timeout = timeout
        self.group: ClientGroup | None = None
        self.position: int | None = None  # of the client that runs now

    def begins(self, position: int | None) -> None:
        """The client at ``position`` is about to run; or nobody is."""
        self.position = position

    def group_size(self, node: int) -> tuple[int, str]:
        """How many neighbours train at once; shares to merge are made of whole groups.

        Also, where groups were tried on this node and are of no use, why.
        """
        if self.vectorize != "on" and not _client_of(self.client_app):
            return 1, ""  # clients of others, which may do without PyTorch
        from fedexp.clients.groups.group import ClientGroup

        context = context_of(node, self.num_nodes, self.run_config, None)
        try:
            with one_thread(), guarded():
                self.group, difference = ClientGroup.tried(self.client_app, self.vectorize, context)
        except ClientRaised as raised:
            if isinstance(raised.error, Exception):
                raise raised.error from None
            return 1, f"node {node} raised {type(raised.error).__name__} when a group was tried"
        return (self.group.size if self.group else 1), difference

    def replies(self, contents: Sequence[Packed], jobs: Mapping[int, ClientJob]) -> ShareOutcome:
        """Run ``jobs`` (by position in the cohort) and keep every reply."""
        start = time.perf_counter()
        work = _Work(self, contents, jobs)
        with one_thread():
            replies = {p: work.answer(p) for p in jobs}
        packed = {p: _failure(r) if r.has_error() else pack(r.content) for p, r in replies.items()}
        busy = time.perf_counter() - start
        return ShareOutcome(replies=packed, states=work.states, seconds=work.seconds, busy=busy)

    def merge(
        self,
        contents: Sequence[Packed],
        jobs: Mapping[int, ClientJob],
        whole: Span,
        reading: ReplyFormat,
        group_size: int,
    ) -> ShareOutcome:
        """Run ``jobs``, neighbours in the cohort ``whole``, and add their results up."""
        start = time.perf_counter()
        client = _client_of(self.client_app)
        if group_size > 1 and self.group is None and client:  # not the worker that was asked
            from fedexp.clients.groups.group import ClientGroup

            self.group = ClientGroup(client, group_size)
        span = min(jobs), max(jobs) + 1
        work = _Merging(self, contents, jobs, reading, jobs[span[0]].content)
        alone = group_size == 1
        share = WorkerShare(work.one_by_one if alone else work.at_once, reading, work.before)
        size = models_at_once(work.before) if alone else group_size
        with one_thread():
            merged = {part: share.merged(part, size) for part in subtrees(span, whole)}
        busy = time.perf_counter() - start
        return ShareOutcome(merged, {}, work.states, work.seconds, busy)


class _Work:
    """The jobs of one call, and what running them leaves behind."""

    def __init__(
        self, worker: Worker, contents: Sequence[Packed], jobs: Mapping[int, ClientJob]
    ) -> None:
        self.worker, self.jobs = worker, jobs
        self.states: dict[int, Packed] = {}
        self.seconds: dict[int, float] = {}
        self.contents = [unpack(content) for content in contents]

    def message(self, position: int) -> Message:
        job = self.jobs[position]
        return message_with(job.metadata, self.contents[job.content])

    def answer(self, position: int) -> Message:
        """The reply of the client at ``position``."""
        message, job = self.message(position), self.jobs[position]
        if job.given_up:
            return error_reply(message, job.given_up)
        with self.running(position) as context:
            reply = answer(self.worker.client_app, message, context, self.fate(position))
        return error_reply(message, self.too_late) if self.is_late(context) else reply

    def fate(self, position: int) -> Fate:
        """What becomes of the client at ``position``."""
        conditions = self.worker.conditions
        return fate_of(conditions, self.message(position)) if conditions else Fate()

    @contextmanager
    def running(self, position: int) -> Iterator[Context]:
        """The context of the client at ``position`` while it runs; kept and timed afterwards."""
        job = self.jobs[position]
        self.worker.begins(position)
        start = time.perf_counter()
        context = self.context(job)
        yield context
        context.node_id = job.metadata.dst_node_id  # whatever the client has made of it
        self.seconds[context.node_id] = time.perf_counter() - start
        if not self.is_late(context):
            self.keep(job, context)
        self.worker.begins(None)

    def is_late(self, context: Context) -> bool:
        """Whether the client has taken too long."""
        return self.seconds[context.node_id] > self.worker.timeout

    @property
    def too_late(self) -> str:
        return too_late(self.worker.timeout)

    def context(self, job: ClientJob) -> Context:
        state = unpack(job.state) if job.state else RecordDict()
        worker = self.worker
        return context_of(job.metadata.dst_node_id, worker.num_nodes, worker.run_config, state)

    def keep(self, job: ClientJob, context: Context) -> None:
        if context.state or job.state:  # a client may empty its own
            self.states[context.node_id] = pack(context.state)


class _Merging(_Work):
    """Jobs whose replies are added up. Clients of ours then need no messages of their own."""

    def __init__(
        self,
        worker: Worker,
        contents: Sequence[Packed],
        jobs: Mapping[int, ClientJob],
        reading: ReplyFormat,
        content: int,
    ) -> None:
        super().__init__(worker, contents, jobs)
        self.reading = reading
        self.content = self.contents[content]
        self.before = from_record(records_of(self.content, ArrayRecord)[reading.arrays_key])
        alike = all(
            job.content == content and job.metadata.message_type == MessageType.TRAIN
            for job in jobs.values()
        )
        self.client = _client_of(worker.client_app) if alike else None

    def one_by_one(self, span: Span) -> list[ClientResult]:
        """The results of the clients at these positions, each trained alone."""
        return [self._one(p) for p in range(*span)]

    def _one(self, position: int) -> ClientResult:
        job = self.jobs[position]
        if self.client is None or job.given_up:
            return self._of_reply(self.answer(position))
        with self.running(position) as context:
            node, fate = context.node_id, self.fate(position)
            try:
                with guarded():
                    fate.begin()
                    result = self._fitted(self.client, context)
            except ClientRaised as raised:
                result = ClientResult.of_error(node, raised.error)
        if self.is_late(context):
            return result.refuse(self.too_late)
        return self.reading.admitted(fate.result(result, self.before), self.before)

    def _fitted(self, client: Client, context: Context) -> ClientResult:
        config = client.config(self.content, context)
        if self.worker.vectorize == "off":
            return client.fit(config, self.before, self.content, context)
        from fedexp.clients.groups import one_step

        return one_step.fit(client, config, self.before, self.content, context)

    def _of_reply(self, reply: Message) -> ClientResult:
        node = reply.metadata.src_node_id
        if reply.has_error():
            return ClientResult(node, refused=reply.error.reason or f"error {reply.error.code}")
        return self.reading.result(node, reply.content, self.before, look_at_updates=False)

    def at_once(self, span: Span) -> list[ClientResult]:
        """The results of the clients at these positions, trained together."""
        group = self.worker.group
        given_up = any(self.jobs[p].given_up for p in range(*span))
        if self.client is None or group is None or given_up:
            return self.one_by_one(span)
        fates = [self.fate(p) for p in range(*span)]
        if self._differ(fates):
            return self.one_by_one(span)
        contexts = [self.context(self.jobs[p]) for p in range(*span)]
        self.worker.begins(None)  # no one of them: whoever hangs is to be found one by one
        results: list[ClientResult] = []
        try:
            with guarded():
                config = self.client.config(self.content, contexts[0])
                if group.takes(config):
                    results = group.fit(config, self.before, self.content, contexts)
        except ClientRaised:  # one of them; alone, it becomes one error reply
            return self.one_by_one(span)
        if not results:
            return self.one_by_one(span)
        for p, context in zip(range(*span), contexts, strict=True):
            self.keep(self.jobs[p], context)
        results = [fate.result(x, self.before) for fate, x in zip(fates, results, strict=True)]
        return [self.reading.admitted(result, self.before) for result in results]

    def _differ(self, fates: Sequence[Fate]) -> bool:
        """Whether a group cannot train at once: one crashes, or takes other steps than the rest."""
        conditions = self.worker.conditions
        own_steps = conditions is not None and conditions.profiles.local_steps is not None
        return own_steps or any(fate.fault == "crash" for fate in fates)


def _failure(reply: Message) -> ErrorReply:
    return reply.error.code, reply.error.reason or ""


def _client_of(app: ClientApp) -> Client | None:
    """As ``client_of``, which only an app of ours needs to import."""
    if not hasattr(app, "trainer"):
        return None
    from fedexp.clients.client import client_of

    return client_of(app)
