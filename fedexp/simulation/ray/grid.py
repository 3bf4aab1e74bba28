"""Flower's Grid on Ray: one task per worker and round."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from fedexp.merged import Merged
from fedexp.records import records_of
from fedexp.simulation.division import Costs, chunks, split_work
from fedexp.simulation.grid import FIRST_NODE_ID, LocalGrid, too_late
from fedexp.simulation.jobs import ClientJob, ShareOutcome, jobs_of, reply_of
from fedexp.simulation.merge_tree import Span, combine, subtrees_up_to
from fedexp.simulation.ray.workers import RayWorkers, Ticket, WorkerDied, WorkerHangs
from fedexp.simulation.transport import Packed, packed_bytes
from fedexp.wire import NEEDS_LESS_MEMORY, ReplyFormat

_CHUNK_BYTES = 1 << 26  # of replies that one task returns
_ONE_BY_ONE = 3  # the attempt in which a worker notes each client that it runs
_ENDED = f"its worker process ended whenever it ran. If memory ran out: {NEEDS_LESS_MEMORY}"
_MOST_LOST = 10  # clients of a task that end its worker, before all the others are given up too


@dataclass(frozen=True, eq=False)
class _Task:
    """Neighbours of a cohort on their way through a worker."""

    worker: int
    jobs: Mapping[int, ClientJob]
    method: str
    args: tuple[Any, ...]
    attempt: int = 1

    def give_up_on(self, positions: Iterable[int], reason: str) -> _Task:
        """The same, without running these clients."""
        jobs = {p: self.jobs[p] for p in positions}
        refused = {p: job._replace(given_up=job.given_up or reason) for p, job in jobs.items()}
        return replace(self, jobs={**self.jobs, **refused})


class RayGrid(LocalGrid):
    """Flower's Grid on persistent Ray actors.

    Any Flower ServerApp, strategy and ClientApp runs on it as it is. The model of a round goes
    to every worker once. For strategies of ours each worker answers once for all its clients,
    and the result is the same to the last bit for any number of workers. ``Context.state`` lives
    here, so a worker that dies takes nothing with it. This process and the workers keep memory
    that they free, up to a GiB. Several grids of one process share Ray and its CPUs.

    Args:
        client_app: what the nodes run.
        num_nodes: how many there are; node ``p + 2`` is the client of partition ``p``.
        run_config: ``context.run_config`` of every node.
        num_workers: by default one per CPU of this machine, or of the cluster.
        num_gpus: shared evenly by the workers.
        ray_address: of a running Ray cluster, ``auto`` or ``host:port``.
        vectorize: train groups of clients at once: ``auto``, ``on`` or ``off``.
        worker_log: print here what clients print, with the worker's process before each line. Of
            grids that share Ray the first decides.

    Raises:
        ValueError: more workers or GPUs than there are.
        ModuleNotFoundError: Ray is not installed.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        num_workers: int | None = None,
        num_gpus: float = 0,
        ray_address: str | None = None,
        vectorize: str = "auto",
        worker_log: bool = False,
    ) -> None:
        super().__init__(client_app, num_nodes, run_config=run_config)
        self._workers = RayWorkers(
            client_app,
            num_nodes,
            self.run_config,
            vectorize,
            num_workers=num_workers,
            num_gpus=num_gpus,
            address=ray_address,
            shows_log=worker_log,
        )
        self._costs = Costs()
        self._group_size: int | None = None

    def close(self) -> None:
        """End the workers, and Ray if a grid started it and this is the last one open."""
        self._workers.close()

    def _execute(self, messages: list[Message], timeout: float) -> Iterator[Message]:
        contents, jobs = self._jobs(messages)
        size = max(1, _CHUNK_BYTES // max(1, _num_bytes(messages[0])))
        spans = split_work(self._cost_of(messages), self._workers.count)
        tasks = [
            _Task(worker, _part(jobs, chunk), "replies", (contents,))
            for worker, span in enumerate(spans)
            for chunk in chunks(span, size)
        ]
        for outcome in self._outcomes(tasks, timeout):
            for position, reply in sorted(outcome.replies.items()):
                yield reply_of(messages[position], reply)

    def _merge(self, messages: list[Message], reading: ReplyFormat, timeout: float) -> Merged:
        contents, jobs = self._jobs(messages)
        whole, size = (0, len(messages)), self._size_of_groups(timeout)
        groups = subtrees_up_to(size, whole)
        spans = split_work(self._cost_of(messages), self._workers.count, groups)
        tasks = [
            _Task(worker, _part(jobs, span), "merge", (contents, whole, reading, size))
            for worker, span in enumerate(spans)
        ]
        parts: dict[Span, Merged] = {}
        for outcome in self._outcomes(tasks, timeout):
            parts |= outcome.merged
        return combine(whole, parts)

    def _jobs(self, messages: Sequence[Message]) -> tuple[Any, dict[int, ClientJob]]:
        contents, jobs = jobs_of(messages, self.states)
        return self._workers.put(contents, sum(map(packed_bytes, contents))), jobs

    def _outcomes(self, tasks: Sequence[_Task], timeout: float) -> Iterator[ShareOutcome]:
        """Outcomes in the order of ``tasks``, which run at the same time."""
        tickets = [self._submit(task, timeout) for task in tasks]
        start = time.monotonic()
        busy = dict.fromkeys((task.worker for task in tasks), 0.0)
        for task, ticket in zip(tasks, tickets, strict=True):
            outcome = self._outcome(task, ticket, start, timeout)
            busy[task.worker] += outcome.busy
            self.busy = max(busy.values())
            for node, state in outcome.states.items():
                self.states[node] = _own(state)
            self._costs.learn(outcome.seconds)
            yield outcome

    def _submit(self, task: _Task, timeout: float) -> Ticket:
        contents, *args = task.args
        careful = task.attempt == _ONE_BY_ONE
        if careful and task.method == "merge":
            args[-1] = 1  # in place of groups
        return self._workers.submit(
            task.worker, task.method, contents, task.jobs, *args, seconds=timeout, noted=careful
        )

    def _outcome(self, task: _Task, ticket: Ticket, start: float, timeout: float) -> ShareOutcome:
        """The outcome of a task; a worker that died or hangs is replaced, its clients retried."""
        while True:
            left = max(0.0, start + timeout - time.monotonic())
            try:
                return self._workers.wait(ticket, left)  # type: ignore[no-any-return]
            except WorkerDied:
                reason = _ENDED
                noted = task.attempt == _ONE_BY_ONE
            except WorkerHangs:
                reason, noted = too_late(timeout), True
                # If nobody is known to hang, waiting for it once more as it is would not help.
                task = replace(task, attempt=max(task.attempt, _ONE_BY_ONE - 1))
            log(WARNING, "Worker %d is replaced (%s).", task.worker, reason.rstrip("."))
            task = _again(task, self._workers.running(ticket) if noted else None, reason)
            self._workers.replace(task.worker, ticket)
            ticket, start = self._submit(task, timeout), time.monotonic()

    def _size_of_groups(self, timeout: float) -> int:
        if self._group_size is None:
            for _ in range(2):
                ticket = self._workers.submit(0, "group_size", FIRST_NODE_ID)
                try:
                    self._group_size, difference = self._workers.wait(ticket, timeout)
                    if difference:
                        log(WARNING, "Clients train one by one: %s.", difference)
                    return self._group_size
                except (WorkerDied, WorkerHangs):
                    self._workers.replace(0, ticket)
            log(WARNING, "Clients train one by one: trying a group ended its worker.")
            self._group_size = 1
        return self._group_size

    def _cost_of(self, messages: Sequence[Message]) -> list[float]:
        return self._costs.of([message.metadata.dst_node_id for message in messages])


def _again(task: _Task, position: int | None, reason: str) -> _Task:
    """The task for another attempt, without the client at ``position``, which ended this one.

    If that is not known, it is tried once more as it is, and then client by client, so that the
    one to blame shows. Without that one the others train in their groups again, so that their
    results do not depend on whose worker it was.
    """
    lost = sum(bool(job.given_up) for job in task.jobs.values())
    if position is not None and not task.jobs[position].given_up and lost < _MOST_LOST:
        return replace(task.give_up_on([position], reason), attempt=_ONE_BY_ONE - 1)
    if task.attempt < _ONE_BY_ONE and lost < _MOST_LOST:
        return replace(task, attempt=task.attempt + 1)
    if lost == len(task.jobs):
        raise RuntimeError(f"Workers cannot start: {reason}. Run on SerialGrid to see why.")
    return task.give_up_on(list(task.jobs), reason)


def _part(jobs: Mapping[int, ClientJob], span: Span) -> dict[int, ClientJob]:
    return {p: jobs[p] for p in range(*span)}


def _num_bytes(message: Message) -> int:
    records = records_of(message.content, ArrayRecord).values()
    # As if it were float32: an app's own tensor format cannot be looked into.
    return sum(4 * math.prod(x.shape) for record in records for x in record.values())


def _own(state: Packed) -> Packed:
    """A copy that does not pin the object it came in."""
    return {
        key: {name: np.array(x) for name, x in record.items()}
        if isinstance(record, dict)
        else record
        for key, record in state.items()
    }
