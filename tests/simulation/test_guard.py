"""What client code may raise: everything ends that client, nothing the others or the driver."""

import asyncio
import builtins
import os
import signal
import sys
import threading
from bdb import BdbQuit

import numpy as np
import pytest
import torch
from builders import content, grid_of, merging_if, partition, record
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedexp.clients import Examples, client_app, module_arrays
from fedexp.records import to_record
from fedexp.simulation import SerialGrid, guard
from fedexp.simulation.jobs import jobs_of
from fedexp.simulation.worker import Worker
from fedexp.strategies import FedAvg, FedExP
from fedexp.wire import ReplyFormat


def raising(error):
    def do():
        raise error

    return do


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no text")


ENDS = {
    "sys.exit": lambda: sys.exit(3),
    "exit": lambda: builtins.exit(),
    "KeyboardInterrupt": raising(KeyboardInterrupt),
    "GeneratorExit": raising(GeneratorExit),
    "StopIteration": raising(StopIteration),
    "CancelledError": raising(asyncio.CancelledError),
    "BaseException": raising(BaseException("anything")),
    "an exception without a text": raising(Wordless("anything")),
}
ends = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)


def one_of_three(end):
    def train(message, context):
        if partition(context) == 0:
            end()
        return content({"w": np.ones(2)})

    return train


@ends
@pytest.mark.parametrize("merges", [True, False])
def test_a_client_that_ends_itself_is_one_failure(end, merges):
    grid = grid_of(3, one_of_three(end))
    grid = merging_if(merges, grid)
    strategy = FedExP(fraction_evaluate=0.0)
    result = strategy.start(grid, record({"w": np.zeros(2)}), num_rounds=2)
    counts = [
        (m["num-clients"], m["num-failures"]) for m in result.train_metrics_clientapp.values()
    ]
    assert counts == [(2, 1), (2, 1)]


def stock(end):
    """Our client on a linear model; the client of partition 0 ends itself where it reads data."""
    rng = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(20, 4, generator=rng), torch.arange(20) % 3)

    def data(context):
        if partition(context) == 0:
            end()
        return examples, examples

    return client_app(lambda context: nn.Linear(4, 3), data)


@ends
def test_a_client_of_ours_that_ends_itself_is_one_failure_alone_and_in_a_group(end):
    model = to_record(module_arrays(nn.Linear(4, 3)))
    result = FedAvg(fraction_evaluate=0.0).start(SerialGrid(stock(end), 3), model, num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 1)
    worker = Worker(stock(end), 3, {}, "on")
    body = RecordDict({"arrays": model})
    contents, jobs = jobs_of([Message(body, node, "train") for node in (2, 3, 4)], {})
    reading = ReplyFormat(
        "num-examples", False, frozenset(module_arrays(nn.Linear(4, 3))), "arrays"
    )
    assert worker.group_size(3)[0] > 1
    outcome = worker.merge(contents, jobs, (0, 3), reading, 3)
    merged = outcome.merged[0, 3]
    assert sum(sums.stats.count for sums in merged.sums.values()) == 2
    assert [node for node, _ in merged.failures] == [2]


@pytest.mark.parametrize("merges", [True, False])
def test_ctrl_c_while_a_client_runs_ends_the_run(merges):
    ran = []

    def train(message, context):
        ran.append(partition(context))
        if partition(context) == 1:
            signal.raise_signal(signal.SIGINT)  # as the terminal does
        return content({"w": np.ones(2)})

    grid = merging_if(merges, grid_of(3, train))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        FedAvg(fraction_evaluate=0.0, seed=0).start(grid, record({"w": np.zeros(2)}), num_rounds=1)
    assert ran == [0, 1]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_ends_the_run_though_a_client_turns_it_into_another_error():
    def train(message, context):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("stopped") from None

    with pytest.raises(KeyboardInterrupt):
        list(grid_of(1, train).send_and_receive([Message(RecordDict(), 2, "train")]))


def test_leaving_the_debugger_ends_the_run():
    with pytest.raises(BdbQuit):
        list(
            grid_of(1, lambda m, c: raising(BdbQuit)()).send_and_receive(
                [Message(RecordDict(), 2, "train")]
            )
        )


def test_in_a_worker_a_debugger_left_in_a_client_ends_that_client(monkeypatch):
    monkeypatch.setattr(guard, "_unattended", [])
    guard.nobody_debugs()
    (reply,) = grid_of(1, lambda m, c: raising(BdbQuit)()).send_and_receive(
        [Message(RecordDict(), 2, "train")]
    )
    assert reply.error.reason.startswith("BdbQuit")


def forged(message, context):
    reply = Message(content({"w": np.ones(2)}), reply_to=message)
    reply.metadata.__dict__.update(_src_node_id=3, _reply_to_message_id="another's")
    return reply


def another_node(message, context):
    context.node_id = 3
    context.state["own"] = MetricRecord({"a": 1.0})
    return Message(content({"w": np.ones(2)}), reply_to=message)


def no_state(message, context):
    context.state = None
    return Message(content({"w": np.ones(2)}), reply_to=message)


def odd_error(message, context):
    return Message(Error(2, 5), reply_to=message)  # its reason is no text


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize(
    ("train", "counts"),
    [(forged, (3, 0)), (another_node, (3, 0)), (no_state, (2, 1)), (odd_error, (2, 1))],
)
def test_a_client_answers_for_its_own_node_alone(train, counts, merges):
    def first_is_odd(message, context):
        if partition(context) == 0:
            return train(message, context)
        return Message(content({"w": np.ones(2)}), reply_to=message)

    app = ClientApp()
    app.train()(first_is_odd)
    grid = SerialGrid(app, 3)
    grid = merging_if(merges, grid)
    strategy = FedExP(fraction_evaluate=0.0)
    result = strategy.start(grid, record({"w": np.zeros(2)}), num_rounds=2)
    for metrics in result.train_metrics_clientapp.values():
        assert (metrics["num-clients"], metrics["num-failures"]) == counts
    assert strategy.attendance.contributed == ({2, 3, 4} if counts[1] == 0 else {3, 4})
    assert set(grid.states) <= {2}


def test_a_handler_that_a_client_sets_is_left_to_it():
    def train(message, context):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGINT)
        return RecordDict()

    before = signal.getsignal(signal.SIGINT)
    try:
        (reply,) = grid_of(1, train).send_and_receive([Message(RecordDict(), 2, "train")])
        assert reply.has_content()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_a_keyboard_interrupt_is_the_clients_own():
    replies = []

    def ask():
        grid = grid_of(3, one_of_three(raising(KeyboardInterrupt)))
        replies.extend(grid.send_and_receive([Message(RecordDict(), n, "train") for n in (2, 3)]))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert [reply.has_error() for reply in replies] == [True, False]
