import pickle

import numpy as np
from builders import record
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.records import from_record, to_record
from fedexp.simulation.transport import pack, unpack

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.asarray(3),
    "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 4)),
}


def content():
    return RecordDict(
        {
            "arrays": record(ARRAYS),
            "more": to_record(ARRAYS),
            "metrics": MetricRecord({"num-examples": 3, "losses": [0.5, 0.25]}),
            "config": ConfigRecord({"name": "x", "blob": b"\x00"}),
        }
    )


def assert_alike(got, expected):
    assert list(got) == list(expected)
    for key, theirs in expected.items():
        if not isinstance(theirs, ArrayRecord):
            assert got[key] == theirs
            continue
        assert list(got[key]) == list(theirs)
        for name, array in from_record(theirs).items():
            np.testing.assert_array_equal(from_record(got[key])[name], array)
            assert from_record(got[key])[name].dtype == array.dtype


def test_a_record_of_every_kind_survives_the_journey():
    sent = content()
    assert_alike(unpack(pickle.loads(pickle.dumps(pack(sent)))), sent)


def test_arrays_travel_as_buffers_that_are_not_copied():
    buffers = []
    pickle.dumps(pack(content()), protocol=5, buffer_callback=buffers.append)
    assert sum(len(b.raw()) for b in buffers) >= 2 * sum(x.nbytes for x in ARRAYS.values())


def test_unpacked_arrays_share_the_memory_they_came_in():
    packed = pack(content())
    (got,) = (from_record(unpack(packed)["arrays"])["w"] for _ in range(1))
    assert np.shares_memory(got, packed["arrays"]["w"])
    assert not got.flags.writeable


def test_a_foreign_tensor_format_is_passed_on_as_it_is():
    foreign = RecordDict({"a": ArrayRecord({"w": Array("bf16", (2,), "safetensors", b"\x01\x02")})})
    got = unpack(pickle.loads(pickle.dumps(pack(foreign))))["a"]["w"]
    assert (got.dtype, got.shape, got.stype, got.data) == ("bf16", (2,), "safetensors", b"\x01\x02")
