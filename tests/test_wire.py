import gc
import pickle
import weakref

import numpy as np
import pytest
from builders import content, record, stats_of
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedexp.merged import Merged
from fedexp.stats import PseudoGradientStats
from fedexp.wire import BadReply, Reading

BEFORE = {"w": np.zeros((2, 3), np.float32), "n": np.asarray(3)}
GOOD = {"w": np.ones((2, 3), np.float32), "n": np.asarray(5)}


def reading(**changes):
    values = {
        "weighted_by": "num-examples",
        "uniform": False,
        "trainable": frozenset("w"),
        "arrays_key": "arrays",
    }
    return Reading(**(values | changes))


def test_a_reply_that_was_read_dies_with_its_last_reference():
    body = content(GOOD)
    array = weakref.ref(body["arrays"]["w"])
    gc.disable()  # models must not pile up until the cycle collector runs
    try:
        reading().read(body, BEFORE)
        del body
        assert array() is None
    finally:
        gc.enable()


def with_w(x):
    return content(GOOD | {"w": x})


def test_a_good_reply_gives_its_arrays_and_weight():
    arrays, weight = reading().read(content(GOOD, num_examples=7), BEFORE)
    assert weight == 7.0
    np.testing.assert_array_equal(arrays["w"], GOOD["w"])
    assert arrays["n"].shape == ()


def test_uniform_reading_gives_weight_one_but_still_wants_a_sound_one():
    assert reading(uniform=True).read(content(GOOD, num_examples=7), BEFORE)[1] == 1.0
    with pytest.raises(BadReply, match="num-examples is 0"):
        reading(uniform=True).read(content(GOOD, num_examples=0), BEFORE)


def test_the_weight_has_the_key_that_the_strategy_was_given():
    body = content(GOOD, tokens=0.25)
    assert reading(weighted_by="tokens").read(body, BEFORE)[1] == 0.25


def test_record_keys_of_a_reply_are_the_clients_own():
    body = RecordDict({"my-model": record(GOOD), "my-metrics": MetricRecord({"num-examples": 2})})
    assert reading().read(body, BEFORE)[1] == 2.0


TWO_ARRAYS, TWO_METRICS, NO_METRICS = content(GOOD), content(GOOD), content(GOOD)
TWO_ARRAYS["again"] = record(GOOD)
TWO_METRICS["again"] = MetricRecord({"num-examples": 1})
del NO_METRICS["metrics"]
BAD = {
    "nan": (with_w(np.full((2, 3), np.nan, np.float32)), "'w' holds NaN or infinity"),
    "infinity": (with_w(np.full((2, 3), -np.inf)), "'w' holds NaN or infinity"),
    "shape": (with_w(np.ones((3, 2))), r"'w' has shape \(3, 2\), expected \(2, 3\)"),
    "broadcastable shape": (with_w(np.ones(3)), r"'w' has shape \(3,\)"),
    "dtype": (with_w(np.ones((2, 3), complex)), "'w' has dtype complex128"),
    "another name": (
        content({"w": GOOD["w"], "x": GOOD["n"]}),
        "missing .*'n'.*, unexpected .*'x'",
    ),
    "extra name": (content(GOOD | {"x": np.ones(1)}), "unexpected .*'x'"),
    "no arrays": (RecordDict({"m": MetricRecord({"num-examples": 1})}), "0 records .*ArrayRecord"),
    "two array records": (TWO_ARRAYS, "2 records of kind ArrayRecord"),
    "no metrics": (NO_METRICS, "0 records of kind MetricRecord"),
    "two metric records": (TWO_METRICS, "2 records of kind MetricRecord"),
    "no weight": (
        RecordDict({"a": record(GOOD), "m": MetricRecord({"loss": 1.0})}),
        "num-examples is None",
    ),
    "zero weight": (content(GOOD, num_examples=0), "num-examples is 0"),
    "negative weight": (content(GOOD, num_examples=-2), "num-examples is -2"),
    "nan weight": (content(GOOD, num_examples=float("nan")), "num-examples is nan"),
    "infinite weight": (content(GOOD, num_examples=float("inf")), "num-examples is inf"),
    "list weight": (content(GOOD, num_examples=[1, 2]), r"num-examples is \[1, 2\]"),
    "bytes": (
        RecordDict(
            {
                "a": ArrayRecord({k: Array("float32", (2,), "numpy.ndarray", b"x") for k in GOOD}),
                "m": MetricRecord({"num-examples": 1}),
            }
        ),
        "cannot be decoded",
    ),
    "empty": (RecordDict(), "0 records"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_says_what_is_wrong_with_it(kind):
    body, message = BAD[kind]
    with pytest.raises(BadReply, match=message):
        reading().read(body, BEFORE)


def merged(seed: int) -> Merged:
    after = {"w": np.random.default_rng(seed).normal(size=(2, 3)), "n": np.asarray(seed)}
    stats = PseudoGradientStats.of(BEFORE, after, weight=seed + 0.5, trainable=frozenset("w"))
    return Merged(stats, ((seed, {"num-examples": seed, "loss": [0.5, 0.25]}),))


@pytest.mark.parametrize(
    "journey",
    [
        lambda body: body,
        lambda body: pickle.loads(pickle.dumps(body)),
        lambda body: recorddict_from_proto(recorddict_to_proto(body)),
    ],
)
def test_a_merged_reply_survives_its_journey_to_the_last_bit(journey):
    sent = merged(3) + merged(2)
    got = Merged.from_content(journey(sent.to_content()))
    a, b = sent.stats, got.stats
    assert (a.count, a.weight, a.sq_norm, a.norm) == (b.count, b.weight, b.sq_norm, b.norm)
    np.testing.assert_array_equal(a.update["w"], b.update["w"])
    np.testing.assert_array_equal(a.buffers["n"], b.buffers["n"])
    assert got.metrics == sent.metrics


def test_merged_replies_add_their_sums_and_keep_the_order_of_their_metrics():
    both = merged(3) + merged(2)
    assert both.stats.count == 2
    assert [node for node, _ in both.metrics] == [3, 2]


def test_a_merged_round_of_nothing_is_the_zero():
    a = merged(4)
    assert ((Merged() + a).stats.sq_norm, (Merged() + a).metrics) == (a.stats.sq_norm, a.metrics)
    np.testing.assert_array_equal((a + Merged()).stats.update["w"], a.stats.update["w"])


def test_statistics_of_a_model_without_buffers_travel():
    got = Merged.from_content(Merged(stats_of([1.0, 2.0])).to_content())
    assert got.stats.buffers == {}
    assert got.stats.sq_norm == 5.0
