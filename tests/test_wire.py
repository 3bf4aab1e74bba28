import gc
import re
import weakref

import numpy as np
import pytest
import torch
from builders import content, record
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedexp.wire import NEEDS_LESS_MEMORY, ReplyFormat, reason_of

BEFORE = {"w": np.zeros((2, 3), np.float32), "n": np.asarray(3)}
GOOD = {"w": np.ones((2, 3), np.float32), "n": np.asarray(5)}


def reading(**changes):
    values = {
        "weighted_by": "num-examples",
        "uniform": False,
        "trainable": frozenset("w"),
        "arrays_key": "arrays",
    }
    return ReplyFormat(**(values | changes))


def test_a_reply_that_was_read_dies_with_its_last_reference():
    body = content(GOOD)
    array = weakref.ref(body["arrays"]["w"])
    gc.disable()  # models must not pile up until the cycle collector runs
    try:
        reading().result(2, body, BEFORE)
        del body
        assert array() is None
    finally:
        gc.enable()


def raised(make):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make()
    return caught.value


@pytest.mark.parametrize("make", [lambda: np.empty(1 << 50), lambda: torch.empty(1 << 50)])
def test_what_a_client_says_when_memory_is_out_ends_with_the_remedy(make):
    reason = reason_of(raised(make))
    assert "allocate" in reason
    assert reason.endswith(f"). {NEEDS_LESS_MEMORY}")


def with_w(x):
    return content(GOOD | {"w": x})


def test_a_good_reply_gives_its_arrays_and_weight():
    result = reading().result(2, content(GOOD, num_examples=7), BEFORE)
    assert (result.node, result.weight, result.refused) == (2, 7.0, "")
    assert result.metrics == {"num-examples": 7}
    np.testing.assert_array_equal(result.arrays["w"], GOOD["w"])
    assert result.arrays["n"].shape == ()


def test_uniform_reading_gives_weight_one_but_still_wants_a_sound_one():
    sound, odd = (content(GOOD, num_examples=n) for n in (7, 0))
    assert reading(uniform=True).result(2, sound, BEFORE).weight == 1.0
    assert "num-examples is 0" in reading(uniform=True).result(2, odd, BEFORE).refused


def test_the_weight_has_the_key_that_the_strategy_was_given():
    body = content(GOOD, tokens=0.25)
    assert reading(weighted_by="tokens").result(2, body, BEFORE).weight == 0.25


def test_record_keys_of_a_reply_are_the_clients_own():
    body = RecordDict({"my-model": record(GOOD), "my-metrics": MetricRecord({"num-examples": 2})})
    assert reading().result(2, body, BEFORE).weight == 2.0


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
    result = reading().result(2, body, BEFORE)
    assert re.search(message, result.refused)
    assert (result.kind, result.arrays) == (None, {})
