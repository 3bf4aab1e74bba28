import numpy as np
import pytest

from fedexp.strategies import FedAvg, FedExP
from fedexp.strategies.attendance import Attendance, by_reason, merged
from tests.builders import content, grid_of, partition, record


def test_who_was_asked_and_never_came_is_missing_and_nobody_else():
    attendance = Attendance()
    attendance.ask([2, 3, 4])
    attendance.came([2])
    assert attendance.missing == {3, 4}
    attendance.ask([3, 5])
    attendance.came([3, 5])
    attendance.ask([2, 5])  # both fail, but have contributed before
    assert attendance.missing == {4}


def test_a_checkpoint_holds_it():
    attendance, restored = Attendance(), Attendance()
    attendance.ask([2, 2**63 + 1, 4])  # Flower's node ids have 64 bits
    attendance.came([2**63 + 1])
    restored.restore(attendance.state())
    assert restored.missing == {2, 4}
    assert restored.contributed == {2**63 + 1}
    assert all(x.dtype == np.uint64 for x in attendance.state().values())


def test_reasons_that_differ_in_their_numbers_are_one():
    failures = [(2, "norm 1.5 is over 3 x."), (5, "norm 2e+07 is over 3 x."), (3, "array 'w1' nan")]
    assert by_reason(failures) == {"norm 1.5 is over 3 x.": [2, 5], "array 'w1' nan": [3]}
    assert by_reason([(2, "array 'w1'"), (3, "array 'w2'")]).keys() == {"array 'w1'", "array 'w2'"}
    assert list(merged([{"a": [1]}, {"b": [1, 2]}, {"a": [1]}])) == ["b", "a"]


def clients(broken, num_nodes=8):
    """Every client adds 100; those for whom ``broken(partition, round)`` is a text raise it."""

    def train(message, context):
        server_round = message.content["config"]["server-round"]
        if reason := broken(partition(context), server_round):
            raise ValueError(reason)
        return content({"w": message.content["arrays"]["w"].numpy() + 100.0})

    return grid_of(num_nodes, train)


def start(strategy, grid, num_rounds):
    return strategy.start(grid, record({"w": np.zeros(2)}), num_rounds=num_rounds)


def lines(logged, word="dropped"):
    return [line for line in logged if word in line]


@pytest.mark.parametrize("cls", [FedAvg, FedExP])
def test_equal_failures_of_a_round_are_one_line_with_its_nodes(cls, logged):
    grid = clients(lambda p, _: "no disk" if p < 6 else "no time" if p == 6 else "")
    strategy = cls(fraction_evaluate=0.0, seed=0)
    start(strategy, grid, 1)
    first, second = lines(logged)
    assert "Replies of 6 clients dropped (nodes 2, 3, 4, 5, 6, ...): ValueError: no disk" in first
    assert "Reply of node 8 dropped: ValueError: no time" in second
    assert strategy.attendance.missing == set(range(2, 9))
    assert sorted(map(len, strategy.attendance.reasons.values())) == [1, 6]


def test_a_reason_is_a_warning_once_and_an_information_after_that():
    import logging

    levels = []
    handler = logging.Handler()
    handler.emit = lambda r: "dropped" in r.getMessage() and levels.append(r.levelname)
    logging.getLogger("flwr").addHandler(handler)
    try:
        start(FedAvg(fraction_evaluate=0.0), clients(lambda p, r: "x" if p == r else ""), 3)
    finally:
        logging.getLogger("flwr").removeHandler(handler)
    assert levels == ["WARNING", "INFO", "INFO"]


def test_another_run_of_the_same_strategy_starts_afresh():
    strategy = FedAvg(fraction_evaluate=0.0)
    start(strategy, clients(lambda p, _: "x" if p == 0 else ""), 1)
    assert strategy.attendance.missing == {2}
    start(strategy, clients(lambda p, _: ""), 1)
    assert strategy.attendance.missing == set()


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_step_that_is_not_finite_is_nobodys_contribution():
    strategy = FedAvg(fraction_evaluate=0.0, server_learning_rate=1e308)
    start(strategy, clients(lambda p, _: "x" if p == 3 else "", 4), 2)
    assert strategy.attendance.missing == {2, 3, 4, 5}
    overflow, raised = strategy.attendance.reasons  # most clients first
    assert "ValueError" in raised
    assert overflow == "the server step 1e+308 gives a model that is not finite."
