"""What a server believes of the sums that an edge sends."""

import json
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedexp.devices.merged_records import (
    ARRAYS,
    TEXT,
    content_of_sums,
    reading_of,
    reading_text,
    sums_in,
)
from fedexp.merged import Merged
from fedexp.records import from_record, to_record
from fedexp.simulation.worker_share import WorkerShare
from fedexp.wire import BadReply, ClientResult, ReplyFormat

BEFORE = {"w": np.zeros((2, 2), "f"), "num": np.zeros(1, "f")}
BOUND = 1.0


def reading(max_norm: float = BOUND) -> ReplyFormat:
    return ReplyFormat("num-examples", False, frozenset("w"), "arrays", max_norm=max_norm)


def content(max_norm: float = BOUND, scale: float = 1.0) -> RecordDict:
    results = []
    for node in (2, 3, 4):
        arrays = {"w": np.full((2, 2), scale * node / 10, "f"), "num": np.full(1, 1.0, "f")}
        result = ClientResult(node, arrays, {"num-examples": node, "train-loss": 0.1})
        results.append(reading(max_norm).admitted(result, BEFORE))
    results[1] = results[1].refuse("it diverged")
    share = WorkerShare(lambda span: results[span[0] : span[1]], reading(max_norm), BEFORE)
    return content_of_sums({(0, 3): share.merged((0, 3), 3)})


def read(body: RecordDict, max_norm: float = BOUND) -> Merged:
    return sums_in(body, {(0, 3): [2, 3, 4]}, reading(max_norm), BEFORE)[0, 3]


def changed(change: Any) -> RecordDict:
    """The reply with its JSON changed."""
    body = content()
    told = json.loads(str(body.config_records[TEXT]["json"]))
    change(told[0])
    body[TEXT] = ConfigRecord({"json": json.dumps(told)})
    return body


def with_arrays(**arrays: Any) -> RecordDict:
    body = content()
    own = dict(from_record(body.array_records[ARRAYS]))
    body[ARRAYS] = to_record({**own, **{f"0/0/update/{k}": x for k, x in arrays.items()}})
    return body


def test_sums_come_through_with_all_their_bits():
    merged = read(content())
    ((kind, sums),) = merged.sums.items()
    assert kind.trainable == {"w"}
    assert merged.failures == ((3, "it diverged"),)
    assert sums.stats.weight == 6.0  # clients 2 and 4 count with as many examples
    w = -np.float32(0.2).astype(float) * 2 - np.float32(0.4).astype(float) * 4
    np.testing.assert_array_equal(sums.stats.update["w"], np.full((2, 2), w))
    assert sums.stats.buffers["num"].tolist() == [6.0]
    assert [node for node, _ in sums.metrics] == [2, 4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x["sums"][0].update(sq_norm=9e9), "its clients' norms give"),
        (lambda x: x["sums"][0].update(sq_norm=1e-9), "too long for sq-norm"),
        (lambda x: x["sums"][0].update(sq_norm=math.nan), "no positive, finite numbers"),
        (lambda x: x["sums"][0].update(weight=1e6), "it counts 2 clients of weight"),
        (lambda x: x["sums"][0].update(count=7), "it counts 7 clients"),
        (lambda x: x["sums"][0].update(norms=[0.1]), "names 2"),
        (lambda x: x["sums"][0].update(num_clipped=9), "it bounded 9 of 2"),
        (lambda x: x["sums"][0]["metrics"][0].__setitem__(0, 7), "was asked for"),
        (lambda x: x["sums"][0]["metrics"][0][1].update({"num-examples": -1}), "positive number"),
        (lambda x: x["sums"][0]["kind"].update(trainable=[]), "other arrays"),
        (lambda x: x["sums"][0].pop("weight"), "cannot be read: KeyError"),
        (lambda x: x.update(failures=[]), "was asked for"),
        (lambda x: x.update(span=[0, 2]), "not for"),
    ],
)
def test_a_false_word_is_refused(change, reason):
    with pytest.raises(BadReply, match=reason):
        read(changed(change))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((2, 3)), "must be float64 of"),
        (np.zeros((2, 2), "f"), "must be float64"),
        (np.full((2, 2), np.nan), "NaN or infinity"),
    ],
)
def test_a_false_array_is_refused(x, reason):
    with pytest.raises(BadReply, match=reason):
        read(with_arrays(w=x))
    with pytest.raises(BadReply, match="nobody asked for"):
        read(with_arrays(extra=np.zeros(1)))


def test_a_sum_that_is_longer_than_its_clients_is_refused():
    with pytest.raises(BadReply, match="too long for sq-norm"):
        read(with_arrays(w=np.full((2, 2), 50.0)))


def test_a_sum_is_scaled_down_to_what_its_clients_can_have_moved():
    # Two clients of weights 2 and 4 and bounded lengths 0.4 and 0.8 sum up to 4 at most; Jensen's
    # bound alone, √(6 · 2.88), would let 4.157 pass.
    too_long = np.full((2, 2), 4.1 / 2)
    ((_, sums),) = read(with_arrays(w=too_long)).sums.items()
    assert np.linalg.norm(sums.stats.update["w"]) == pytest.approx(4.0)


def test_a_reply_that_adds_nothing_up_is_refused():
    with pytest.raises(BadReply, match="it was to add up"):
        read(RecordDict())


def test_without_a_bound_norms_only_have_to_be_possible():
    assert read(content(math.inf, scale=100.0), math.inf).failures


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trainable": 3}', '{"trainable": [], "x": 1}'])
def test_an_unreadable_request_is_one_line(text):
    with pytest.raises(ValueError, match="cannot be read"):
        reading_of(text)


def test_infinite_bounds_travel():
    assert reading_of(reading_text(reading(math.inf))) == reading(math.inf)
