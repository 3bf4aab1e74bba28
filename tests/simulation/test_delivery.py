"""Messages on our grids as on Flower's, which docs and apps were written for."""

import time

import numpy as np
import pytest
from builders import content, grid_of, partition, record
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedexp.simulation.delivery import turns
from fedexp.strategies import FedAvg


def count(message, context):
    """Answers how often this node was asked."""
    state = context.state.setdefault("visits", MetricRecord({"n": 0}))
    state["n"] += 1
    return RecordDict({"m": MetricRecord({"n": state["n"]})})


def messages(*nodes, **options):
    return [Message(RecordDict(), node, "train", **options) for node in nodes]


def test_a_pushed_message_runs_though_nobody_pulls_its_reply():
    ran = []
    grid = grid_of(3, lambda m, c: ran.append(partition(c)) or RecordDict())
    grid.push_messages(iter(messages(2, 4)))
    assert ran == [0, 2]


def test_replies_are_pulled_once_in_any_order():
    grid = grid_of(3, count)
    first, second, third = grid.push_messages(messages(2, 3, 4))
    assert [r.metadata.src_node_id for r in grid.pull_messages([third])] == [4]
    replies = grid.pull_messages(iter([second, first, second]))
    assert [r.metadata.src_node_id for r in replies] == [3, 2]
    assert [r.content["m"]["n"] for r in replies] == [1, 1]


@pytest.mark.parametrize("again", [True, False])
def test_an_id_that_nobody_waits_for_gets_flowers_error(again):
    grid = grid_of(3, count)
    (known,) = grid.push_messages(messages(2))
    grid.pull_messages([known])
    asked = known if again else "never sent"
    (reply,) = grid.pull_messages([asked])
    assert (reply.error.code, reply.metadata.reply_to_message_id) == (3, asked)  # unavailable


def test_nothing_pushed_and_nothing_pulled_is_nothing():
    grid = grid_of(3, count)
    assert grid.push_messages([]) == []
    assert list(grid.pull_messages([])) == []


def test_several_messages_to_one_node_run_one_after_the_other():
    grid, sent = grid_of(3, count), messages(2, 3, 2, 2)
    by_id = {r.metadata.reply_to_message_id: r for r in grid.send_and_receive(sent)}
    assert [by_id[m.metadata.message_id].content["m"]["n"] for m in sent] == [1, 1, 2, 3]
    assert grid.states[2]["visits"]["n"] == 3


def test_turns_keep_every_nodes_order():
    sent = messages(7, 5, 7, 7, 5)
    assert turns(sent) == [[sent[0], sent[1]], [sent[2], sent[4]], [sent[3]]]
    assert turns([]) == []


def test_every_message_and_every_reply_has_an_id_of_its_own():
    grid, sent = grid_of(2, count), messages(2, 3, 2)
    replies = list(grid.send_and_receive(sent))
    ids = [m.metadata.message_id for m in [*sent, *replies]]
    assert all(ids)
    assert len(set(ids)) == 6
    assert {r.metadata.reply_to_message_id for r in replies} == set(ids[:3])


def test_node_ids_are_a_list_of_the_callers_own():
    grid = grid_of(3, count)
    nodes = grid.get_node_ids()
    nodes.remove(3)
    assert grid.get_node_ids() == [2, 3, 4]


def test_a_run_is_flowers_and_comes_back_as_a_copy():
    grid = grid_of(3, count)
    with pytest.raises(TypeError, match="must be an instance of Run, got int"):
        grid.set_run(7)
    run = grid.run
    run.run_id = 9
    assert grid.run.run_id != 9
    grid.set_run(run)
    assert grid.run.run_id == 9


def slow(message, context):
    count(message, context)
    time.sleep(0.25 * (partition(context) == 1))
    return content({"w": np.full(2, 1.0 + partition(context))})


def test_a_client_that_takes_too_long_is_an_error_and_the_others_are_not_blamed():
    grid = grid_of(3, slow)
    replies = list(grid.send_and_receive(messages(2, 3, 4), timeout=0.2))
    assert [r.has_error() for r in replies] == [False, True, False]
    assert replies[1].error.reason == "no reply within 0.2 s"
    assert sorted(grid.states) == [2, 4]  # as on RayGrid, where it is ended


def test_a_message_waits_no_longer_than_it_lives():
    replies = list(grid_of(3, slow).send_and_receive(messages(2, 3, ttl=0.2)))
    assert [r.has_error() for r in replies] == [False, True]


@pytest.mark.parametrize("make", [FedAvg, FlowerFedAvg])
def test_a_slow_client_counts_as_a_failure_of_the_round(make):
    grid = grid_of(3, slow)
    strategy, model = make(fraction_evaluate=0.0), record({"w": np.zeros(2)})
    arrays = strategy.start(grid, model, num_rounds=1, timeout=0.2).arrays
    np.testing.assert_array_equal(arrays["w"].numpy(), [2.0, 2.0])
    assert sorted(grid.states) == [2, 4]
