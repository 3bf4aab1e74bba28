"""The clients' metrics of a round as one record."""

import math

import numpy as np
import pytest
from builders import content, grid_of, merging_if, record, reply
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import given
from hypothesis import strategies as st

from fedexp.strategies import FedAvg
from fedexp.strategies.client_metrics import weighted_means
from fedexp.strategies.replies import Replies
from fedexp.wire import ReplyFormat

NUMBERS = st.floats(-1e6, 1e6)
METRICS = st.fixed_dictionaries(
    {
        "num-examples": st.integers(1, 10_000),
        "train-loss": NUMBERS,
        "steps": st.integers(0, 99),
        "per-class": st.lists(NUMBERS, min_size=3, max_size=3),
    }
)
BEFORE = {"w": np.zeros(2)}
READING = ReplyFormat("num-examples", False, frozenset("w"), "arrays")


def received(rows):
    replies = Replies(BEFORE, READING)
    bodies = [content(BEFORE, **row) for row in rows]
    replies.aggregate(replies.contents(reply(body, i + 2) for i, body in enumerate(bodies)))
    return replies


@given(st.lists(METRICS, min_size=1, max_size=9))
def test_their_mean_is_that_of_flowers_own_function(rows):
    expected = aggregate_metricrecords(
        [RecordDict({"metrics": MetricRecord(dict(row))}) for row in rows], "num-examples"
    )
    got = received(rows).aggregated(aggregate_metricrecords)
    assert got.keys() == expected.keys()
    scale = max(1.0, *(abs(x) for row in rows for x in (row["train-loss"], *row["per-class"])))
    for key in expected:
        assert type(got[key]) is type(expected[key])
        assert got[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9 * scale)


def test_of_what_private_clients_have_spent_the_largest_is_told_beside_the_mean():
    spent = [{"epsilon_spent": x} for x in (0.5, 2.0, math.nan)]
    rows = [{"num_examples": 1, **own} for own in (*spent, {})]
    found = received(rows).aggregated(aggregate_metricrecords)
    assert dict(found) == {"epsilon-spent": 1.25, "largest-epsilon-spent": 2.0}
    assert "largest-epsilon-spent" not in received(rows[3:]).aggregated(aggregate_metricrecords)


def test_any_other_function_gets_a_record_per_client():
    rows = [{"num_examples": n, "train_loss": float(n)} for n in (1, 2, 3)]
    seen = []

    def largest(records, weighted_by):
        seen.append(weighted_by)
        return MetricRecord({"most": max(r["metrics"]["train-loss"] for r in records)})

    assert dict(received(rows).aggregated(largest)) == {"most": 3.0}
    assert seen == ["num-examples"]


@pytest.mark.parametrize("merges", [True, False])
def test_own_functions_get_every_record_of_every_client_and_may_return_nothing(merges):
    seen = {}

    def noting(name):
        def aggregate(records, weighted_by):
            seen[name] = records
            return None

        return aggregate

    def answer(message, context):
        body = content(BEFORE, loss=float(context.node_id))
        body["notes"] = ConfigRecord({"device": f"phone {context.node_id}"})
        return body

    functions = {f"{x}_metrics_aggr_fn": noting(x) for x in ("train", "evaluate")}
    grid = grid_of(3, answer, answer)
    grid = merging_if(merges, grid)
    result = FedAvg(**functions).start(grid, record(BEFORE), num_rounds=1)
    assert result.train_metrics_clientapp[1]["num-clients"] == 3
    assert result.evaluate_metrics_clientapp == {}
    for name in ("train", "evaluate"):
        assert {body["notes"]["device"][6:] for body in seen[name]} == {"2", "3", "4"}
        for body in seen[name]:
            assert isinstance(body, RecordDict)
            assert body.keys() == {"arrays", "metrics", "notes"}
            assert body["arrays"]["w"].numpy().shape == (2,)
            assert body["metrics"]["num-examples"] == 1


ODD = [float("nan"), float("inf"), [1.0], [], 10**400]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_client_decides_nothing_about_the_metrics_of_others(odd, place):
    # Σ pᵢxᵢ / Σ pᵢ over the sound ones: (1·1 + 2·4) / 3
    rows = [{"num-examples": 1, "loss": 1.0}, {"num-examples": 2, "loss": 4.0}]
    rows.insert(place, {"num-examples": 5, "loss": odd, "auc": 0.25})
    mean = weighted_means(rows, "num-examples")
    assert dict(mean) == pytest.approx({"loss": 3.0, "auc": 0.25})


def test_a_metric_that_nobody_reports_soundly_is_left_out():
    assert weighted_means([{"n": 1, "loss": float("nan")}, {"n": 1}], "n") == {}


def test_a_client_with_other_metrics_counts_in_the_step():
    replies = received([{"train_loss": 1.0}, {"train_loss": 3.0}, {"other": 9.0}])
    assert dict(replies.aggregated(aggregate_metricrecords)) == {"train-loss": 2.0, "other": 9.0}
    assert replies.stats.count == 3
    assert math.isfinite(replies.stats.sq_norm)
