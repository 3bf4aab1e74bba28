"""Learning rates that clients tune, as the server sees them."""

import numpy as np
import pytest
from builders import content, grid_of, partition, record
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedexp.rounds import rounds
from fedexp.strategies import FedAvg, FedExP
from fedexp.strategies.rate_sharing import cohort_rates, spread

ARRAYS = {"w": np.zeros(3, np.float32)}
AVERAGE = {"hyper-between-rounds": "average"}


def rated(seen=None):
    """Clients that end at twice the rate they were sent, times 1 + their partition."""

    def train(message, context):
        config, p = message.content["config"], partition(context)
        start = config.get("mean-learning-rate", 0.1)
        if seen is not None:
            seen.append(dict(config))
        rate = start * (1 + p)
        return content(ARRAYS, num_examples=1 + p, learning_rate=rate)

    return grid_of(3, train)


def run(strategy, grid, num_rounds=1):
    return list(rounds(strategy, grid, record(ARRAYS), num_rounds=num_rounds))


def test_the_spread_is_numpys_weighted_one():
    rng = np.random.default_rng(0)
    rates, weights = rng.random(20), rng.integers(1, 30, 20).astype(float)
    mean, std = spread(list(rates), list(weights))
    assert mean == pytest.approx(np.average(rates, weights=weights), rel=1e-12)
    assert std == pytest.approx(np.cov(rates, aweights=weights, ddof=0) ** 0.5, rel=1e-12)


@given(st.floats(1e-12, 1e3), st.lists(st.floats(1, 100), min_size=1, max_size=9))
def test_equal_rates_have_no_spread(rate, weights):
    assert spread([rate] * len(weights), weights) == (rate, 0.0)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(1, 50)), min_size=1, max_size=9))
def test_the_order_of_the_replies_changes_no_bit(pairs):
    forwards, backwards = (spread(*zip(*p, strict=True)) for p in (pairs, pairs[::-1]))
    assert forwards == backwards


def test_there_is_no_spread_where_no_client_reports_a_rate():
    assert cohort_rates([{"n": 1}, {"learning-rate": [0.1], "n": 1}], "n") is None
    assert cohort_rates([{"learning-rate": 0.1, "n": 0}], "n") is None


def test_clients_without_a_sound_rate_do_not_hide_those_of_the_others():
    odd = [{"n": 9, "learning-rate": x} for x in ([0.1], float("nan"), -1.0)]
    rates = [{"n": 1, "learning-rate": x} for x in (0.1, 0.3)]
    assert cohort_rates([*rates, *odd, {"n": 9}], "n") == pytest.approx((0.2, 0.1))


def test_a_round_reports_mean_and_spread_of_the_rates():
    (only,) = run(FedExP(), rated())
    rates, weights = np.array([0.1, 0.2, 0.3]), np.array([1, 2, 3])
    mean = np.average(rates, weights=weights)
    assert only.train["learning-rate"] == pytest.approx(mean)
    variance = np.average((rates - mean) ** 2, weights=weights)
    assert only.train["learning-rate-std"] == pytest.approx(variance**0.5)


def test_the_mean_goes_back_to_the_clients_where_it_is_asked_for():
    seen = []
    found = run(FedAvg(client_config=AVERAGE), rated(seen), num_rounds=3)
    sent = [config.get("mean-learning-rate") for config in seen[::3]]
    assert sent[0] is None
    assert sent[1:] == pytest.approx([r.train["learning-rate"] for r in found[:2]])


def test_the_mean_is_in_the_state_so_that_a_run_can_go_on():
    whole, begun = FedAvg(client_config=AVERAGE), FedAvg(client_config=AVERAGE)
    rows = run(whole, rated(), num_rounds=3)
    run(begun, rated(), num_rounds=2)
    resumed = FedAvg(client_config=AVERAGE)
    resumed.state = dict(begun.state)
    (last,) = rounds(resumed, rated(), record(ARRAYS), num_rounds=3, first=3)
    assert last.train["learning-rate"] == rows[-1].train["learning-rate"]


def test_a_new_run_of_the_same_strategy_starts_afresh():
    strategy, seen, config = FedAvg(client_config=AVERAGE), [], ConfigRecord()
    for _ in range(2):
        strategy.start(rated(seen), record(ARRAYS), num_rounds=2, train_config=config)
    assert ["mean-learning-rate" in c for c in seen[::3]] == [False, True, False, True]


@pytest.mark.parametrize("policy", ["fresh", "carry"])
def test_nothing_is_sent_back_otherwise(policy):
    seen = []
    run(FedAvg(client_config={"hyper-between-rounds": policy}), rated(seen), num_rounds=2)
    assert not any("mean-learning-rate" in config for config in seen)
    assert all(("run-id" in config) == (policy == "carry") for config in seen)


def test_clients_without_a_rate_are_averaged_as_ever():
    grid = grid_of(2, lambda m, c: content(ARRAYS))
    (only,) = run(FedAvg(client_config=AVERAGE), grid)
    assert "learning-rate-std" not in only.train
