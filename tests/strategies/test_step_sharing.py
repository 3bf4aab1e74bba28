"""Learned step sizes, as the server sees them."""

import math

import numpy as np
import pytest
from builders import content, grid_of, partition, record
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedexp.rounds import rounds
from fedexp.strategies import FedAvg, FedExP
from fedexp.strategies.step_sharing import StepSharing, log_mean

ARRAYS = {"w": np.zeros(3, np.float32)}
SIZES = st.floats(1e-6, 1e3)


def reporting(found, seen=None, rounds_of=(1, 3), weights=(1, 2, 3)):
    """Clients that report ``found`` of their partition in some rounds."""

    def train(message, context):
        config, p = dict(message.content["config"]), partition(context)
        if seen is not None:
            seen.append(config)
        due = config["server-round"] in rounds_of
        own = {"learned_step_size": found[p]} if due and found[p] is not None else {}
        return content(ARRAYS, num_examples=weights[p], **own)

    return grid_of(len(found), train)


def run(strategy, grid, num_rounds=1, **options):
    return list(rounds(strategy, grid, record(ARRAYS), num_rounds=num_rounds, **options))


def learned(found):
    return [r.train.get("learned-step-size") for r in found]


def test_the_mean_is_the_weighted_one_of_the_logarithms():
    found, weights = [0.01, 0.1, 0.8], [1, 2, 3]
    (only,) = run(FedExP(), reporting(found))
    logs = np.log(found)
    assert only.train["learned-step-size"] == pytest.approx(
        np.exp(np.average(logs, weights=weights))
    )
    spread = np.cov(logs, aweights=weights, ddof=0) ** 0.5
    assert only.train["learned-step-size-spread"] == pytest.approx(spread)


def test_clients_weigh_as_they_do_in_the_model():
    (only,) = run(FedAvg(weighted=False), reporting([0.01, 0.1, 0.1]))
    assert only.train["learned-step-size"] == pytest.approx(0.1 * 10 ** (-1 / 3))


@given(SIZES, st.lists(st.floats(1, 100), min_size=1, max_size=9))
def test_identical_clients_have_the_step_size_of_one(size, weights):
    assert log_mean([size] * len(weights), weights, 3.0) == (size, 0.0)


@given(st.lists(st.tuples(SIZES, st.floats(1, 50)), min_size=1, max_size=9))
def test_the_order_of_the_replies_changes_no_bit(pairs):
    assert log_mean(*map(list, zip(*pairs, strict=True))) == log_mean(
        *map(list, zip(*pairs[::-1], strict=True))
    )


def test_every_later_round_is_sent_the_last_mean_and_reports_it():
    seen = []
    found = learned(run(FedAvg(), reporting([0.01, 0.1, 0.8], seen), num_rounds=4))
    sent = [config.get("learned-step-size") for config in seen[::3]]
    assert sent[0] is None
    assert sent[1:] == found[:3]
    assert found[0] == found[1] is not None


def test_the_mean_is_in_the_state_so_that_a_run_can_go_on():
    found = [0.01, 0.1, 0.8]
    whole, begun, resumed = FedAvg(), FedAvg(), FedAvg()
    rows = run(whole, reporting(found), num_rounds=2)
    run(begun, reporting(found), num_rounds=1)
    resumed.state = dict(begun.state)
    (last,) = run(resumed, reporting(found), num_rounds=2, first=2)
    assert learned([last]) == learned(rows[1:])


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0, 1e300, 1e-300, [0.1, 0.1], 1e14])
def test_a_hostile_report_moves_the_mean_by_a_bounded_factor_or_not_at_all(bad, robust):
    found = [bad, *[0.1] * 9]
    (only,) = run(FedAvg(robust=robust), reporting(found, weights=[1] * 10))
    factor = (3 if robust else 100) ** 0.1 if bad == 1e14 else 1
    assert only.train["learned-step-size"] == pytest.approx(0.1 * factor)


def test_a_minority_sets_no_step_size_in_a_round_in_which_the_others_do_not_tune():
    grid = reporting([0.1, 0.1, 0.1])
    strategy = FedAvg()
    run(strategy, grid)
    (only,) = run(strategy, reporting([900.0, None, None], rounds_of=(2,)), 2, first=2)
    assert only.train["learned-step-size"] == pytest.approx(0.1)
    (only,) = run(FedAvg(), reporting([900.0, None, None]))
    assert "learned-step-size-spread" not in only.train


def test_runs_without_learned_steps_are_as_ever():
    seen = []
    (only,) = run(FedAvg(), reporting([None] * 3, seen))
    assert not [key for key in only.train if "learned" in key]
    assert not any("learned-step-size" in config for config in seen)
    assert StepSharing().keeps_mean


def test_a_strategy_of_flowers_averages_the_reports_and_sends_nothing():
    seen = []
    found = run(FlowerFedAvg(min_available_nodes=3), reporting([0.1] * 3, seen), num_rounds=2)
    assert found[0].train["learned-step-size"] == pytest.approx(0.1)
    assert not any("learned-step-size" in config for config in seen)
