"""Rounds on devices that are slow, silent or broken."""

import time
from collections import Counter

import numpy as np
import pytest
from builders import content, record
from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedexp.rounds import rounds
from fedexp.strategies import FedAvg, FedExP, Waiting, streaming
from fedexp.strategies.waiting import Rests

START = {"w": np.zeros(2)}


class Devices:
    """As Flower's grids: a device answers after ``slow[node]`` seconds, or with an error."""

    def __init__(self, num_nodes, slow=None, broken=()):
        self.num_nodes, self.slow, self.broken = num_nodes, slow or {}, set(broken)
        self.sent, self.asked, self.ttls = {}, Counter(), []

    def get_node_ids(self):
        return range(2, 2 + self.num_nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            ids.append(f"{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent[ids[-1]] = message, time.monotonic() + self.slow.get(node, 0.0)
            self.asked[node] += 1
            self.ttls.append(message.metadata.ttl)
        return ids

    def pull_messages(self, message_ids):
        return [reply for i in message_ids if (reply := self._reply(*self.sent[i]))]

    def _reply(self, message, ready):
        if time.monotonic() < ready:
            return None
        node = message.metadata.dst_node_id
        if node in self.broken:
            return Message(Error(0, "no data"), reply_to=message)
        return Message(content({"w": np.full(2, float(node))}), reply_to=message)


Grid.register(Devices)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(streaming, "_PAUSE", 0.01)


def run(grid, waiting, num_rounds=1, strategy=FedAvg, **options):
    options = {"fraction_evaluate": 0.0, "min_available_nodes": 1, "seed": 0} | options
    made = strategy(waiting=waiting, **options)
    return list(rounds(made, grid, record(START), num_rounds=num_rounds, timeout=60))


def test_a_round_ends_at_its_deadline_and_counts_who_is_late():
    grid = Devices(4, slow={3: 30})
    start = time.monotonic()
    (only,) = run(grid, Waiting(deadline=0.2))
    assert time.monotonic() - start < 5
    assert (only.train["num-clients"], only.train["num-late"]) == (3, 1)
    assert only.train["num-failures"] == 0
    # Mean of 2, 4 and 5, the nodes that answered.
    np.testing.assert_allclose(only.arrays["w"].numpy(), np.full(2, 11 / 3))


def test_messages_live_as_long_as_the_round_and_a_moment():
    grid = Devices(2)
    run(grid, Waiting(deadline=7))
    assert grid.ttls == [9, 9]
    grid = Devices(2)
    run(grid, None)
    assert grid.ttls == [62, 62]  # the timeout of the run


def test_a_round_of_which_nobody_answers_says_so_and_leaves_the_model():
    (only,) = run(Devices(3, slow=dict.fromkeys(range(2, 5), 30)), Waiting(deadline=0.1))
    assert only.failed
    assert (only.train["num-clients"], only.train["num-late"]) == (0, 3)
    np.testing.assert_array_equal(only.arrays["w"].numpy(), START["w"])


def test_enough_replies_end_a_round_long_before_its_deadline():
    start = time.monotonic()
    (only,) = run(Devices(10, slow={4: 30, 11: 30}), Waiting(deadline=60, enough=8))
    assert time.monotonic() - start < 5
    assert (only.train["num-clients"], only.train["num-late"]) == (8, 2)


def test_a_sample_is_asked_and_all_where_fewer_are_there():
    (only,) = run(Devices(10), Waiting(sample=6))
    assert only.train["num-clients"] == 6
    (only,) = run(Devices(4), Waiting(sample=6), min_train_nodes=1)
    assert only.train["num-clients"] == 4


def test_error_replies_are_not_enough():
    (only,) = run(Devices(5, broken=[2, 3]), Waiting(deadline=0.3, enough=3))
    assert (only.train["num-clients"], only.train["num-failures"]) == (3, 2)
    assert "num-late" not in only.train


def test_a_late_reply_does_not_enter_the_next_round():
    """Its pseudo-gradient is of an older model: the step is that of the devices in time alone."""
    slow = Devices(4, slow={5: 0.4})
    fast = Devices(3)
    waiting = Waiting(deadline=0.15, rest_after=0)
    # The reply of round 1 is there in round 3.
    mixed = run(slow, waiting, 5, FedExP)
    alone = run(fast, waiting, 5, FedExP)
    assert [x.train["server-step-size"] for x in mixed] == [
        x.train["server-step-size"] for x in alone
    ]


def test_a_device_that_fails_three_times_in_a_row_rests():
    grid = Devices(3, broken=[4])
    found = run(grid, Waiting(rest_after=3, rest_rounds=2), 8)
    # Rounds 1 to 3 fail, 4 and 5 are rest, 6 to 8 fail.
    assert [x.train["num-failures"] for x in found] == [1, 1, 1, 0, 0, 1, 1, 1]
    assert grid.asked == {2: 8, 3: 8, 4: 6}


def test_a_device_that_misses_deadlines_rests_but_a_spare_one_does_not():
    slow = {4: 30}
    grid = Devices(3, slow=slow)
    run(grid, Waiting(deadline=0.1, rest_after=1, rest_rounds=9), 3)
    assert grid.asked[4] == 1
    grid = Devices(3, slow=slow)
    run(grid, Waiting(deadline=30, enough=2, rest_after=1, rest_rounds=9), 3)
    assert grid.asked[4] == 3


def test_everybody_is_asked_where_too_few_are_awake():
    grid = Devices(2, broken=[2, 3])
    run(grid, Waiting(rest_after=1, rest_rounds=9), 3, min_train_nodes=2)
    assert grid.asked == {2: 3, 3: 3}


def test_a_sound_reply_ends_a_row_of_failures():
    rests = Rests(Waiting(rest_after=2))
    assert rests.note(1, [], [9]) == []
    assert rests.note(2, [9], []) == []
    assert rests.note(3, [], [9]) == []
    assert rests.note(4, [], [9]) == [9]


@pytest.mark.parametrize(
    "wrong", [{"sample": 0}, {"deadline": 0}, {"enough": 0}, {"rest_after": -1}, {"rest_rounds": 0}]
)
def test_what_cannot_be_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"Waiting\({name}={value}\): must be at least"):
        Waiting(**wrong)


def test_no_more_can_be_enough_than_are_asked():
    with pytest.raises(ValueError, match=r"Waiting\(enough=9\): no more than sample=8 are asked"):
        Waiting(sample=8, enough=9)


def test_a_simulation_gives_nobody_rest():
    grid = Devices(3, broken=[4])
    run(grid, None, 5)
    assert grid.asked == {2: 5, 3: 5, 4: 5}


def test_the_strategy_takes_nothing_else():
    with pytest.raises(ValueError, match="Use waiting=Waiting"):
        FedAvg(waiting=60)
