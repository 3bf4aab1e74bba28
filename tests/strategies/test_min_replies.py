"""A round with fewer good replies than ``min_replies`` leaves all as it was."""

import numpy as np
import pytest
from builders import content, grid_of, merging_if, partition

from fedexp.config import Config
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.strategies import CentralPrivacy, FedAvg, FedAvgM, Waiting
from fedexp.strategy_factory import strategy_of

CLIENTS = 4
FLOWERS = "flwr.serverapp.strategy:FedAvg"


def run(strategy, failing, merges=True):
    """A round for each set of clients that fail in it."""

    def train(message, context):
        server_round = int(message.content["config"]["server-round"])
        if partition(context) in failing[server_round - 1]:
            raise OSError("gone")
        return content({"w": from_record(message.content["arrays"])["w"] + 1.0})

    grid = merging_if(merges, grid_of(CLIENTS, train))
    return list(rounds(strategy, grid, to_record({"w": np.zeros(2)}), num_rounds=len(failing)))


@pytest.mark.parametrize("merges", [True, False])
def test_a_round_with_fewer_changes_nothing_and_has_failed(merges):
    strategy = FedAvg(fraction_evaluate=0.0, min_replies=3)
    found = run(strategy, [{0}, {0, 1}, {3}], merges)
    assert [x.failed for x in found] == [False, True, False]
    assert [from_record(x.arrays)["w"][0] for x in found] == [1.0, 1.0, 2.0]
    lost = [(x.train["num-clients"], x.train["num-failures"]) for x in found]
    assert lost == [(3, 1), (0, 4), (3, 1)]


def test_the_replies_that_do_not_count_say_why():
    strategy = FedAvg(fraction_evaluate=0.0, min_replies=3)
    run(strategy, [{0, 1}])
    reasons = {
        reason.partition(" (")[0]: nodes for reason, nodes in strategy.attendance.reasons.items()
    }
    few = "2 of at least min-replies=3 replies were good: the round is undone."
    assert reasons == {"OSError: gone": [2, 3], few: [4, 5]}
    assert strategy.attendance.contributed == set()


def test_an_undone_round_leaves_the_momentum_as_it_was():
    settings = {"server_learning_rate": 1.0, "server_momentum": 0.5, "fraction_evaluate": 0.0}
    with_gap, without = FedAvgM(**settings, min_replies=3), FedAvgM(**settings)
    one = run(with_gap, [set(), {0, 1}, set()])[-1]
    other = run(without, [set(), set()])[-1]
    np.testing.assert_array_equal(from_record(one.arrays)["w"], from_record(other.arrays)["w"])


def test_as_many_as_that_are_enough():
    assert not run(FedAvg(fraction_evaluate=0.0, min_replies=CLIENTS), [set()])[0].failed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_replies": 0}, "min_replies=0.: must be at least 1"),
        ({"min_replies": None}, "min_replies=None.: cannot be that. Use min_replies=2"),
        ({"min_replies": 9, "waiting": Waiting(sample=10, enough=8)}, "ends with enough=8"),
        ({"min_replies": 2, "extensions": [CentralPrivacy()]}, "a secret"),
    ],
)
def test_a_number_that_cannot_be_is_one_line(settings, words):
    with pytest.raises(ValueError, match=words):
        FedAvg(**settings)


def test_the_flag_and_the_setting_are_the_argument():
    def found(key, **fields):
        config = Config(strategy=key, fraction_train=0.4, **fields)
        return strategy_of(config, key, 10).min_replies

    assert [found("fedexp"), found("fedexp", min_replies=4)] == [1, 4]
    assert found("fedadam(min-replies=2)", min_replies=4) == 2
    with pytest.raises(ValueError, match="FedAvg would ignore it"):
        strategy_of(Config(strategy=FLOWERS, min_replies=4), FLOWERS, 10)


def test_more_than_a_round_asks_are_refused():
    line = r"min-replies=5.: a round asks 4 of 10 clients, so that every round would fail"
    for strategy, fields in (("fedexp", {"min_replies": 5}), ("fedavg(min_replies=5)", {})):
        with pytest.raises(ValueError, match=line):
            strategy_of(Config(strategy=strategy, fraction_train=0.4, **fields), strategy, 10)


def test_what_private_clients_have_spent_is_told_of_an_undone_round_too():
    def train(message, context):
        if not partition(context):
            raise OSError("gone")
        return content(from_record(message.content["arrays"]), epsilon_spent=0.5)

    strategy = FedAvg(fraction_evaluate=0.0, min_replies=4)
    (only,) = rounds(strategy, grid_of(4, train), to_record({"w": np.zeros(2)}), num_rounds=1)
    assert only.failed
    assert only.train["largest-epsilon-spent"] == 0.5
