import time
import weakref

import numpy as np
import pytest
from builders import content, grid_of, record
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedexp.merged import Merged, merging
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.strategies import STRATEGIES, FedAvg, FedExP, streaming
from fedexp.strategies.streaming import stream


class SlowGrid:
    """As Flower's grids: replies are there when they are there, pulled by message id."""

    def __init__(self, num_nodes, silent=(), late=()):
        self.num_nodes, self.silent, self.late = num_nodes, set(silent), set(late)
        self.alive, self.most_alive, self.pulls, self.sent = weakref.WeakSet(), 0, [], {}

    def get_node_ids(self):
        return range(2, 2 + self.num_nodes)

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"id-{message.metadata.dst_node_id}"
            self.sent[message.metadata.message_id] = message
        return [*self.sent, ""]  # Flower gives no id to a message that it refused

    def pull_messages(self, message_ids):
        self.pulls.append(list(message_ids))
        replies = [reply for i in message_ids if (reply := self._reply(i))]
        self.alive.update(replies)
        self.most_alive = max(self.most_alive, len(self.alive))
        return replies

    def _reply(self, message_id):
        message = self.sent[message_id]
        node = message.metadata.dst_node_id
        if node in self.silent:
            return None
        if node in self.late:
            self.late.remove(node)
            return None
        return Message(content({"w": np.full(2, float(node))}), reply_to=message)


Grid.register(SlowGrid)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(streaming, "_PAUSE", 0.01)


def messages(num_nodes):
    return [Message(RecordDict(), node, "train") for node in range(2, 2 + num_nodes)]


def nodes(replies):
    return sorted(reply.metadata.src_node_id for reply in replies)


def test_every_reply_comes_once_though_some_are_late():
    replies = list(stream(SlowGrid(10, late=[3, 9, 11])).send_and_receive(messages(10)))
    assert nodes(replies) == list(range(2, 12))


def test_at_most_four_replies_are_alive_however_many_clients_there_are():
    grid = SlowGrid(40, late=range(5, 30))
    FedAvg(fraction_evaluate=0.0).start(grid, record({"w": np.zeros(2)}), num_rounds=1)
    # The last of a slice is still held while the next slice is pulled.
    assert grid.most_alive <= 5
    assert max(len(ids) for ids in grid.pulls) <= 4


def test_silent_nodes_are_given_up_after_the_timeout():
    start = time.monotonic()
    replies = list(stream(SlowGrid(5, silent=[4])).send_and_receive(messages(5), timeout=0.1))
    assert nodes(replies) == [2, 3, 5, 6]
    assert 0.1 <= time.monotonic() - start < 2


def test_messages_leave_at_once_and_nothing_is_pulled_before_somebody_reads():
    grid = SlowGrid(3)
    replies = stream(grid).send_and_receive(iter(messages(3)))
    assert len(grid.sent) == 3
    assert grid.pulls == []
    assert nodes(replies) == [2, 3, 4]


def test_a_stream_is_a_grid_and_passes_everything_else_on():
    grid = SlowGrid(3)
    streamed = stream(grid)
    assert isinstance(streamed, Grid)
    assert streamed.get_node_ids() == range(2, 5)
    assert stream(streamed).grid is grid


def test_a_grid_that_streams_is_asked_to():
    grid, asked = grid_of(2, lambda message, context: RecordDict()), messages(2)
    grid.send_and_stream = lambda messages, timeout: (messages, timeout)
    assert stream(grid).send_and_receive(iter(asked), timeout=3) == (asked, 3)


class Counting:
    """As two of Flower's example apps do: look at the replies, count them, then aggregate."""

    def aggregate_train(self, server_round, replies):
        usable = [reply for reply in replies if reply.has_content()]
        self.counts = [len(replies), sum(1 for _ in replies), len(usable)]
        return super().aggregate_train(server_round, usable)

    def aggregate_evaluate(self, server_round, replies):
        self.evaluated = len(replies), sum(1 for _ in replies)
        return super().aggregate_evaluate(server_round, replies)


def answering(num_nodes):
    """Clients that move by their number, on a grid that merges."""

    def own(message, context):
        return content({"w": np.full(2, float(message.metadata.dst_node_id))})

    return grid_of(
        num_nodes, own, lambda m, c: RecordDict({"m": MetricRecord({"num-examples": 1})})
    )


@pytest.mark.parametrize("row", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("make", [SlowGrid, answering])
def test_a_subclass_may_count_its_replies_and_look_at_them_twice(row, make):
    if row.strategy().extensions.reading({}).keys() & {"step_key", "divided_by"}:
        pytest.skip("needs clients that report more")
    strategy = type("Counted", (Counting, row.strategy), {})()
    plain = row.strategy()
    model = record({"w": np.zeros(2)})
    for one in strategy, plain:
        one.client_config.pop("final-loss", None)
    result = strategy.start(make(5), model, num_rounds=1)
    assert strategy.counts == [5, 5, 5]
    assert strategy.evaluated == (5, 5)
    expected = plain.start(make(5), model, num_rounds=1)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected.arrays["w"].numpy())


def test_a_method_put_on_one_strategy_gets_a_list_too():
    strategy, seen = FedAvg(fraction_evaluate=0.0), []
    inner = strategy.aggregate_train
    strategy.aggregate_train = lambda t, replies: seen.append(len(replies)) or inner(t, replies)
    for make in SlowGrid, answering:
        list(rounds(strategy, make(5), record({"w": np.zeros(2)}), num_rounds=1))
    assert seen == [5, 5]


def test_only_the_replies_that_a_subclass_looks_at_are_a_list():
    class Evaluates(FedAvg):
        def aggregate_evaluate(self, server_round, replies):
            return super().aggregate_evaluate(server_round, replies)

    class Trains(FedAvg):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, replies)

    grid = SlowGrid(3)
    assert FedAvg().streamed(grid).types == {"train", "evaluate"}
    assert Evaluates().streamed(grid).types == {"train"}
    assert Trains().streamed(grid).types == {"evaluate"}


def test_a_stream_made_for_another_strategy_is_made_anew():
    grid = SlowGrid(3)
    assert stream(stream(grid, ["train"])).types == {"train", "evaluate"}
    assert stream(stream(grid, ["train"])).grid is grid


def test_a_grid_that_merges_answers_once_for_all():
    strategy = FedAvg()
    grid = strategy.streamed(answering(5))
    sent = strategy.configure_train(1, record({"w": np.zeros(2)}), ConfigRecord(), grid)
    merged = grid.send_and_receive(sent)
    assert isinstance(merged, Merged)
    arrays, metrics = strategy.aggregate_train(1, merged)
    np.testing.assert_allclose(arrays["w"].numpy(), 4.0)  # of nodes 2 to 6
    assert metrics["num-clients"] == 5
    assert len(list(stream(grid).send_and_receive(sent))) == 5  # nobody asks to merge


def test_two_messages_to_one_node_are_not_merged():
    asked = [Message(RecordDict(), 2, "train") for _ in range(2)]
    with pytest.raises(ValueError, match="two messages to one node"):
        answering(3).send_and_merge(asked, FedAvg().reading(), None)


def test_a_grid_that_looks_at_the_messages_gets_single_replies():
    class Recording(SerialGrid):
        def send_and_receive(self, messages, *, timeout=None):
            self.seen = list(messages)
            return super().send_and_receive(self.seen, timeout=timeout)

    inner = answering(5)
    grid = Recording(inner.client_app, 5)
    model = record({"w": np.zeros(2)})
    results = [FedExP(fraction_evaluate=0.0).start(g, model, num_rounds=1) for g in (grid, inner)]
    assert len(grid.seen) == 5
    a, b = (result.arrays["w"].numpy() for result in results)
    np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("strategy", [FedAvg, FedExP])
def test_clients_see_no_record_that_they_did_not_ask_for(strategy):
    seen = []

    def train(message, context):
        seen.append((sorted(message.content), dict(message.content["config"])))
        return content({"w": np.ones(2)})

    grid = grid_of(3, train)
    assert merging(grid)
    strategy(fraction_evaluate=0.0).start(grid, record({"w": np.zeros(2)}), num_rounds=2)
    assert seen == [(["arrays", "config"], {"server-round": t}) for t in (1, 1, 1, 2, 2, 2)]


def test_a_streamed_round_equals_a_round_on_the_serial_grid():
    def own(message, context):
        return content({"w": np.full(2, float(message.metadata.dst_node_id))})

    model = record({"w": np.zeros(2)})
    results = [
        FedAvg(fraction_evaluate=0.0, seed=0).start(grid, model, num_rounds=1)
        for grid in (SlowGrid(6), grid_of(6, own))
    ]
    a, b = (result.arrays["w"].numpy() for result in results)
    np.testing.assert_allclose(a, b, rtol=1e-12)
