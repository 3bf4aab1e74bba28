"""A step to a model that has no finite loss, or is not finite itself, is as if it had not been."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from builders import content, grid_of, merging_if, partition
from flwr.app import MetricRecord, RecordDict

from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.strategies import BothIterates, FedAvg, FedAvgM, FedOpt, ServerOptimizer
from fedexp.strategies.attendance import by_kind

CLIENTS, BAD = 4, 3
FAR = 1e3


@dataclass(frozen=True)
class Overflowing:
    """A step of 1, but for one round, in which it is too long for any number."""

    def __call__(self, stats, direction, state):
        t = 1 + float(state.get("overflowing", {"t": 0.0})["t"])
        eta = 1e308 if t == BAD else 1.0
        return eta, {**state, "overflowing": {"t": np.array(t)}}


def loss(server_round, arrays):
    w = from_record(arrays)["w"]
    return MetricRecord({"test-loss": math.inf if abs(w).max() > FAR / 2 else float(w @ w)})


def run(strategy, in_bad_round, merges=True, evaluate=loss):
    """Five rounds; what clients do in the third one is ``in_bad_round(w, partition)``."""

    def train(message, context):
        w = from_record(message.content["arrays"])["w"]
        if message.content["config"]["server-round"] == BAD:
            return content({"w": in_bad_round(w, partition(context))})
        return content({"w": w + 1.0 + partition(context)})

    evaluation = BothIterates(evaluate)
    grid = merging_if(merges, grid_of(CLIENTS, train))
    first = to_record({"w": np.zeros(2)})
    return list(rounds(strategy, grid, first, num_rounds=5, evaluate_fn=evaluation)), evaluation


def model(round_):
    return from_record(round_.arrays)["w"]


def failing(w, p):
    raise OSError("gone")


def far(w, p):
    return w + FAR


def momentum():
    return FedAvgM(server_learning_rate=1.0, server_momentum=0.5, fraction_evaluate=0.0)


@pytest.mark.parametrize("merges", [True, False])
def test_a_step_without_a_finite_loss_is_a_round_in_which_nobody_replied(merges):
    strategy, other = momentum(), momentum()
    found, evaluation = run(strategy, far, merges)
    expected, plain = run(other, failing, merges)
    failed = [False, False, True, False, False]
    assert [x.failed for x in found] == [x.failed for x in expected] == failed
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(model(mine), model(theirs))
        assert dict(mine.server) == dict(theirs.server)
    np.testing.assert_array_equal(evaluation.mean["w"], plain.mean["w"])
    assert strategy.attendance.contributed == other.attendance.contributed
    bad = found[BAD - 1].train
    assert dict(bad) == {"num-clients": 0, "num-failures": CLIENTS}


def test_it_says_why_and_what_helps(logged):
    run(FedAvg(fraction_evaluate=0.0), far)
    (line,) = [line for line in logged if "undone" in line]
    assert "Round 3 is undone: the server step makes test-loss not finite" in line
    assert "smaller learning rate" in line


def test_nobody_counts_as_having_contributed_to_a_step_that_is_undone():
    strategy = FedAvg(fraction_evaluate=0.0)
    steps = iter([True])

    def first_is_bad(server_round, arrays):
        bad = from_record(arrays)["w"].any() and next(steps, False)
        return MetricRecord({"test-loss": math.nan if bad else 0.0})

    grid = grid_of(2, lambda m, c: content({"w": np.ones(2)}))
    (only,) = rounds(
        strategy, grid, to_record({"w": np.zeros(2)}), num_rounds=1, evaluate_fn=first_is_bad
    )
    assert only.failed
    assert strategy.attendance.missing == {2, 3}
    assert by_kind(strategy.attendance.reasons) == {"undone": 2}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("merges", [True, False])
def test_a_rule_that_overflows_loses_its_round_and_the_run_goes_on(merges):
    rule = ServerOptimizer(step_size=Overflowing())
    strategy = FedOpt(optimizer=rule, fraction_evaluate=0.0)
    found, _ = run(strategy, lambda w, p: w + 1.0, merges)
    # The rule's own count is undone as well, so that it overflows again.
    assert [x.failed for x in found] == [False, False, True, True, True]
    assert all(np.isfinite(from_record(x.arrays)["w"]).all() for x in found)
    assert float(strategy.state["overflowing"]["t"]) == BAD - 1


def test_a_loss_that_was_no_better_before_undoes_nothing():
    found, evaluation = run(
        FedAvg(fraction_evaluate=0.0),
        lambda w, p: w + 1.0,
        evaluate=lambda server_round, arrays: MetricRecord({"test-loss": math.nan}),
    )
    assert not any(x.failed for x in found)
    last = [from_record(x.arrays)["w"] for x in found[-2:]]
    np.testing.assert_array_equal(evaluation.mean["w"], np.mean(last, axis=0))


def test_a_private_step_stays_since_its_cost_does(monkeypatch):
    strategy = FedAvg(fraction_evaluate=0.0)
    monkeypatch.setattr(type(strategy.extensions), "is_private", True)  # without the accounting
    found, _ = run(strategy, far)
    assert not found[BAD - 1].failed
    assert math.isinf(found[BAD - 1].server["test-loss"])


def test_a_strategy_of_flowers_goes_back_to_the_model_before():
    from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

    found, _ = run(FlowerFedAvg(fraction_evaluate=0.0), far)
    assert found[BAD - 1].failed
    np.testing.assert_array_equal(
        from_record(found[BAD - 1].arrays)["w"], from_record(found[BAD - 2].arrays)["w"]
    )


def test_a_strategy_around_ours_keeps_its_step():
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

    around = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0),
        noise_multiplier=0.0,
        clipping_norm=1e9,
        num_sampled_clients=4,
    )
    found, _ = run(around, far)
    assert [x.failed for x in found] == [False] * 5


def test_clients_evaluate_the_model_that_stays():
    seen = []

    def evaluate(message, context):
        seen.append(abs(from_record(message.content["arrays"])["w"]).max())
        return RecordDict({"metrics": MetricRecord({"num-examples": 1, "eval-loss": 0.0})})

    grid = grid_of(CLIENTS, lambda m, c: content({"w": np.full(2, FAR)}), evaluate)
    first = to_record({"w": np.ones(2)})
    (only,) = rounds(FedAvg(), grid, first, num_rounds=1, evaluate_fn=BothIterates(loss))
    assert only.failed
    assert seen == [1.0] * CLIENTS


def test_only_a_step_that_was_taken_can_be_taken_back():
    with pytest.raises(ValueError, match="no step to take back"):
        FedAvg().undo("whatever")
