"""Our contents against Flower's RecordDict."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.simulation.flower.contents import Content

VIEWS = "array_records", "metric_records", "config_records"


def records():
    return {
        "arrays": ArrayRecord({"w": Array(np.arange(3.0))}),
        "metrics": MetricRecord({"loss": 0.5}),
        "more": MetricRecord({"accuracy": 0.25}),
        "config": ConfigRecord({"rate": 0.1}),
    }


@pytest.fixture
def both():
    given = records()
    return Content(given), RecordDict(given)


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_those_of_flower(both, view):
    ours, theirs = (getattr(x, view) for x in both)
    assert ours == theirs
    assert dict(ours) == dict(theirs)
    assert list(ours.items()) == list(theirs.items())
    assert (len(ours), "metrics" in ours) == (len(theirs), "metrics" in theirs)
    assert repr(ours) == repr(theirs)


def test_it_is_sent_as_flowers_own(both):
    ours, theirs = both
    assert isinstance(ours, RecordDict)
    assert ours == theirs
    assert repr(ours) == repr(theirs)
    assert ours.object_id == theirs.object_id
    assert ours.deflate() == theirs.deflate()


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_hold_the_same(both, copied):
    assert copied(both[0]) == both[1]
    assert both[0].copy() == both[1].copy()


def test_changes_of_a_view_are_changes_of_the_content(both):
    for content in both:
        metrics = content.metric_records
        metrics["new"] = MetricRecord({"x": 1})
        metrics.pop("more")
        metrics.update({"newer": MetricRecord({"x": 2})})
        del content.array_records["arrays"]
    assert both[0] == both[1]
    assert list(both[0]) == ["metrics", "config", "new", "newer"]


@pytest.mark.parametrize("value", [ConfigRecord(), 3])
def test_a_view_takes_records_of_its_kind_only(both, value):
    for content in both:
        with pytest.raises(TypeError, match="Expected `MetricRecord`"):
            content.metric_records["x"] = value
        with pytest.raises(TypeError, match="key"):
            content.metric_records[3] = MetricRecord()


def test_looking_at_it_does_not_keep_it_in_memory():
    gc.disable()
    try:
        content = Content(records())
        for view in VIEWS:
            assert getattr(content, view) is not None
        seen = weakref.ref(content)
        del content
        assert seen() is None
    finally:
        gc.enable()
