"""Faults to order: drawn alike everywhere, applied once, whichever way a reply takes."""

from collections import Counter

import numpy as np
import pytest
from builders import merging_if
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.simulation.conditions import Conditions
from fedexp.simulation.faults import KINDS, SCALE, Faults
from fedexp.strategies import FedAvg

CLIENTS = 6
MODEL = {"w": np.full(3, 2.0, np.float32), "steps": np.array([7])}
SOUND = 5.0  # what every client makes of 2.0


def train(message, context):
    arrays = from_record(message.content["arrays"])
    context.state["ran"] = MetricRecord({"round": 1})
    content = {
        "arrays": to_record({**arrays, "w": np.full(3, SOUND, np.float32)}),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)


def grid_with(**run_config):
    app = ClientApp()
    app.train()(train)
    return SerialGrid(app, CLIENTS, run_config=run_config)


def round_with(merges, **run_config):
    """A round of all clients, the grid and the strategy."""
    grid, strategy = grid_with(**run_config), FedAvg(fraction_evaluate=0.0)
    (only,) = rounds(strategy, merging_if(merges, grid), to_record(MODEL), num_rounds=1)
    return only, grid, strategy


def test_faults_come_as_often_as_they_are_ordered_and_never_two_at_once():
    faults = Faults.of("drop=0.3; crash=0.1, scale=0.2")
    drawn = [faults.at(3, r, c) for r in range(1, 41) for c in range(50)]
    shares = {kind: count / len(drawn) for kind, count in Counter(drawn).items()}
    assert shares == pytest.approx({"drop": 0.3, "crash": 0.1, "scale": 0.2, "": 0.4}, abs=0.04)
    assert drawn == [faults.at(3, r, c) for r in range(1, 41) for c in range(50)]
    assert drawn != [faults.at(4, r, c) for r in range(1, 41) for c in range(50)]
    assert {Faults(nan=1.0).at(0, r, 0) for r in range(99)} == {"nan"}
    assert faults.ordered() == ["drop", "scale", "crash"]
    assert not any(map(Faults.of, ("", "drop=0")))


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drop", "no reply came"),
        ("nan", "holds NaN or infinity"),
        ("garbage", "array"),
        ("crash", "OrderedCrash: the client crashes, as --faults orders"),
    ],
)
def test_a_faulty_reply_is_dropped_and_says_why(kind, words, merges):
    only, grid, strategy = round_with(merges, faults=f"{kind}=0.5", seed=2)
    ordered = [c + 2 for c in range(CLIENTS) if Faults(**{kind: 0.5}).at(2, 1, c)]
    assert 0 < len(ordered) < CLIENTS
    reasons = strategy.attendance.reasons
    assert sorted(node for nodes in reasons.values() for node in nodes) == ordered
    assert all(words in reason for reason in reasons)
    np.testing.assert_array_equal(from_record(only.arrays)["w"], SOUND)
    # A client that crashes does so before it trains; all others have trained.
    ran = {*range(2, 2 + CLIENTS)} - ({*ordered} if kind == "crash" else set())
    assert grid.states.keys() == ran


@pytest.mark.parametrize("merges", [True, False])
def test_a_scaled_update_is_sound_and_counts(merges):
    only, _, strategy = round_with(merges, faults="scale=0.5", seed=2)
    scaled = sum(bool(Faults(scale=0.5).at(2, 1, c)) for c in range(CLIENTS))
    mean = 2.0 + (SOUND - 2.0) * (scaled * SCALE + CLIENTS - scaled) / CLIENTS
    np.testing.assert_allclose(from_record(only.arrays)["w"], mean, rtol=1e-6)
    assert not strategy.attendance.reasons


def test_each_kind_of_garbage_is_refused_in_words_of_its_own():
    seen = set()
    for seed in range(8):
        _, _, strategy = round_with(True, faults="garbage=1", seed=seed)
        seen |= {
            reason.partition(":")[0].partition("(")[0] for reason in strategy.attendance.reasons
        }
    assert len(seen) == 3  # a shape, a name, text


def test_faults_are_of_training_alone():
    grid = grid_with(faults="crash=1")
    grid.client_app.evaluate()(train)
    content = RecordDict({"arrays": to_record(MODEL)})
    evaluated, trained = (
        grid.send_and_receive([Message(content, 2, kind)]) for kind in ("evaluate", "train")
    )
    assert [evaluated[0].has_error(), trained[0].has_error()] == [False, True]


def test_without_a_deadline_a_slow_reply_counts():
    only, _, strategy = round_with(True, faults="slow=1")
    np.testing.assert_array_equal(from_record(only.arrays)["w"], SOUND)
    assert not strategy.attendance.reasons


@pytest.mark.parametrize("merges", [True, False])
def test_with_a_deadline_a_slow_reply_is_late(merges):
    settings = {"faults": "slow=0.5", "seed": 2, "deadline": 1.0, "local-steps": 50}
    only, _, strategy = round_with(merges, **settings)  # 0.5 s, or 5 s
    slow = [c + 2 for c in range(CLIENTS) if Faults(slow=0.5).at(2, 1, c)]
    assert strategy.attendance.reasons == {"no reply within 1 simulated seconds": slow}
    np.testing.assert_array_equal(from_record(only.arrays)["w"], SOUND)


def test_clients_do_not_see_what_the_grid_applies():
    seen = []
    app = ClientApp()
    app.train()(lambda message, context: seen.append(context.run_config) or train(message, context))
    settings = {"faults": "slow=0.1", "deadline": 2.0, "mine": 3}
    with SerialGrid(app, 1, run_config=settings) as grid:
        grid.send_and_receive([Message(RecordDict({"arrays": to_record(MODEL)}), 2, "train")])
    assert seen == [{"mine": 3}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dorp=0.1", f"no fault 'dorp'; known are {', '.join(KINDS)}"),
        ("drop", "'drop' is no probability; write drop=0.1"),
        ("drop=x", "is no probability"),
        ("drop=1.5", "must be from 0 to 1"),
        ("drop=nan", "is no probability"),
        ("drop=0.1, drop=0.2", "drop is given twice"),
        ("drop=0.6, nan=0.6", "add up to 1"),
    ],
)
def test_a_slip_in_faults_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        Conditions.of({"faults": text})
    assert "\n" not in str(caught.value)
