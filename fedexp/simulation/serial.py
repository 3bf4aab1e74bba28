"""Clients one after the other, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flwr.app import Message

from fedexp.simulation import cohort
from fedexp.simulation.grid import LocalGrid, answer, context_of, error_reply, one_thread, too_late
from fedexp.simulation.jobs import jobs_of
from fedexp.simulation.transport import pack, unpack
from fedexp.wire import Reading


class SerialGrid(LocalGrid):
    """Flower's Grid in one process and one thread.

    Needs no Ray; a breakpoint in a client works, and so does a notebook. Gives the same bits as
    ``RayGrid`` does when that trains its clients one by one. A client that takes longer than the
    timeout ends first, and is an error then.

    Args:
        client_app: what the nodes run.
        num_nodes: how many there are; node ``p + 2`` is the client of partition ``p``.
        run_config: ``context.run_config`` of every node.
    """

    def _execute(self, messages: list[Message], timeout: float) -> Iterator[Message]:
        return (self._answer(message, timeout) for message in messages)

    def _execute_merged(
        self, messages: list[Message], reading: Reading, timeout: float
    ) -> Iterator[Message]:
        from fedexp.simulation.worker import Worker  # imports PyTorch, which not every app needs

        worker = Worker(self.client_app, self.num_nodes, self.run_config, "off", timeout)
        contents, jobs = jobs_of(messages, self.states)
        whole = (0, len(messages))
        outcome = worker.merge(contents, jobs, whole, reading, 1)
        self.states |= outcome.states
        yield from cohort.replies(messages, outcome.merged[whole], outcome.failures)

    def _answer(self, message: Message, timeout: float) -> Message:
        node = message.metadata.dst_node_id
        state = unpack(self.states[node]) if node in self.states else None
        context = context_of(node, self.num_nodes, self.run_config, state)
        start = time.perf_counter()
        with one_thread():
            reply = answer(self.client_app, message, context)
        if time.perf_counter() - start > timeout:
            return error_reply(message, too_late(timeout))
        if context.state or node in self.states:
            self.states[node] = pack(context.state)
        return reply
