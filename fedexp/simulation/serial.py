"""Clients one after the other, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from logging import WARNING
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from fedexp.extras import need
from fedexp.merged import Merged
from fedexp.simulation.grid import (
    FIRST_NODE_ID,
    LocalGrid,
    answer,
    check_vectorize,
    context_of,
    error_reply,
    fate_of,
    too_late,
)
from fedexp.simulation.jobs import jobs_of
from fedexp.simulation.transport import pack, unpack
from fedexp.simulation.worker import Worker
from fedexp.threads import one_thread
from fedexp.wire import ReplyFormat


class SerialGrid(LocalGrid):
    """Flower's Grid in one process and one thread.

    Needs no Ray; a breakpoint in a client works, and so does a notebook. Gives the same bits as
    ``RayGrid`` does with the same ``vectorize``. A client that takes longer than the timeout ends
    first, and is an error then.

    Args:
        client_app: what the nodes run.
        num_nodes: how many there are; node ``p + 2`` is the client of partition ``p``.
        run_config: ``context.run_config`` of every node.
        vectorize: train groups of clients at once: ``auto``, ``on`` or ``off``. Groups need
            PyTorch; without it ``auto`` trains clients one by one.

    Raises:
        ValueError: no nodes, a run config that an app of ours cannot take, or an unknown
            ``vectorize``.
        ModuleNotFoundError: ``vectorize`` is ``on``, and PyTorch is not installed.

    Example:
        A client that returns the model as it is:

        >>> import numpy as np
        >>> from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
        >>> from flwr.clientapp import ClientApp
        >>> from fedexp.simulation import SerialGrid
        >>> app = ClientApp()
        >>> @app.train()
        ... def train(message, context):
        ...     metrics = MetricRecord({"num-examples": 1, "node": context.node_id})
        ...     arrays = message.content["arrays"]
        ...     return Message(RecordDict({"arrays": arrays, "m": metrics}), reply_to=message)
        >>> with SerialGrid(app, num_nodes=2) as grid:
        ...     body = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2))})})
        ...     asked = [Message(body, node, "train") for node in grid.get_node_ids()]
        ...     replies = grid.send_and_receive(asked)
        >>> [reply.content["m"]["node"] for reply in replies]
        [2, 3]
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        vectorize: str = "off",
    ) -> None:
        super().__init__(client_app, num_nodes, run_config=run_config)
        check_vectorize("SerialGrid", vectorize)
        if vectorize == "on":
            need("torch", "torch")
        self._vectorize = vectorize
        self._worker: Worker | None = None
        self._group_size = 1

    def _execute(self, messages: list[Message], timeout: float) -> Iterator[Message]:
        self.busy = 0.0
        return (self._answer(message, timeout) for message in messages)

    def _merge(self, messages: list[Message], reading: ReplyFormat, timeout: float) -> Merged:
        worker = self._worker or self._new_worker()
        worker.timeout = timeout
        contents, jobs = jobs_of(messages, self.states)
        whole = (0, len(messages))
        outcome = worker.merge(contents, jobs, whole, reading, self._group_size)
        self.states |= outcome.states
        self.busy = outcome.busy
        return outcome.merged[whole]

    def _new_worker(self) -> Worker:
        worker = Worker(self.client_app, self.num_nodes, self.run_config, self._vectorize)
        if self._vectorize != "off" and find_spec("torch"):
            self._group_size, difference = worker.group_size(FIRST_NODE_ID)
            if difference:
                log(WARNING, "Clients train one by one: %s.", difference)
        self._worker = worker
        return worker

    def _answer(self, message: Message, timeout: float) -> Message:
        node = message.metadata.dst_node_id
        state = unpack(self.states[node]) if node in self.states else None
        context = context_of(node, self.num_nodes, self.run_config, state)
        start = time.perf_counter()
        with one_thread():
            reply = answer(self.client_app, message, context, fate_of(self.conditions, message))
        self.busy += time.perf_counter() - start
        if time.perf_counter() - start > timeout:
            return error_reply(message, too_late(timeout))
        if context.state or node in self.states:
            self.states[node] = pack(context.state)
        return reply
