import copy
import pickle
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import torch
from builders import record
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedexp.records import from_record, to_record

DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "bool"])
SHAPES = hnp.array_shapes(min_dims=0, min_side=0, max_dims=3)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))


def deployed(record: ArrayRecord) -> ArrayRecord:
    """The record after a journey as a SuperLink makes it: taken apart, hashed, put together."""
    objects = get_all_nested_objects(RecordDict({"a": record}))
    contents = {object_id: x.deflate() for object_id, x in objects.items()}
    *_, last = contents
    inflated = inflate_object_from_contents(last, contents)
    assert isinstance(inflated, RecordDict)
    return inflated.array_records["a"]


def in_protobuf(record: ArrayRecord) -> ArrayRecord:
    return recorddict_from_proto(recorddict_to_proto(RecordDict({"a": record}))).array_records["a"]


def pickled(record: ArrayRecord) -> ArrayRecord:
    return pickle.loads(pickle.dumps(record))


JOURNEYS = [lambda record: record, copy.copy, copy.deepcopy, pickled, deployed, in_protobuf]


@pytest.mark.parametrize("journey", JOURNEYS)
@given(arrays=st.lists(ARRAYS, max_size=3), fortran=st.booleans())
def test_arrays_come_back_as_they_went(journey, arrays, fortran):
    sent = {f"{i}": np.asfortranarray(x) if fortran else x for i, x in enumerate(arrays)}
    got = from_record(journey(to_record(sent)))
    assert list(got) == list(sent)
    for name, x in sent.items():
        assert isinstance(got[name], np.ndarray)
        assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape)
        assert got[name].tobytes() == x.tobytes()


@given(ARRAYS)
def test_a_record_looks_to_flower_as_one_of_its_own(x):
    ours, theirs = to_record({"x": x}), record({"x": x})
    assert ours["x"].data == theirs["x"].data
    assert (ours["x"].dtype, ours["x"].shape) == (theirs["x"].dtype, theirs["x"].shape)
    assert ours["x"].stype == theirs["x"].stype
    assert ours.object_id == theirs.object_id
    assert ours.count_bytes() == theirs.count_bytes()
    assert ours.to_numpy_ndarrays()[0].tobytes() == x.tobytes()


def test_a_record_gives_a_torch_state_dict():
    state = to_record({"a": np.ones((2, 3), np.float32), "n": np.asarray(4)}).to_torch_state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == {"a": (2, 3), "n": ()}
    assert all(isinstance(x, torch.Tensor) for x in state.values())


def test_flowers_own_arrays_are_read_without_a_copy():
    x = np.arange(6.0).reshape(2, 3)
    theirs = record({"x": x})
    got = from_record(theirs)["x"]
    np.testing.assert_array_equal(got, x)
    assert np.shares_memory(got, np.frombuffer(theirs["x"].data, np.uint8))


def test_our_arrays_share_memory_and_are_read_only():
    x = np.arange(6.0)
    got = from_record(to_record({"x": x}))["x"]
    assert np.shares_memory(got, x)
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1
    x[0] = 2  # the owner may still write


def test_nothing_is_encoded_before_somebody_asks():
    x = np.zeros(8)
    ours = to_record({"x": x})
    x[:] = 1
    assert Array(x).data == ours["x"].data


def test_what_flower_hands_out_may_be_changed():
    x = np.arange(6.0)
    to_record({"x": x})["x"].numpy()[0] = 9
    assert x[0] == 0


GOOD = Array(np.arange(4.0)).data


def malformed(data: bytes) -> ArrayRecord:
    return ArrayRecord({"layer": Array("float64", (4,), "numpy.ndarray", data)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        GOOD[:7],
        GOOD[:30],
        GOOD[:-1],
        GOOD + b"x",
        b"PK\x03\x04" + GOOD,
        GOOD.replace(b"<f8", b"|O8"),
        GOOD.replace(b"<f8", b"<q9"),
        GOOD.replace(b"(4,)", b"(5,)"),
        GOOD.replace(b"(4,)", b"(((("),
        GOOD.replace(b"(4,), } ", b"(-1,), }"),
        GOOD.replace(b"'descr'", b"'''''''"),
        GOOD.replace(b"\x01\x00", b"\x02\x00", 1),
        GOOD.replace(b"\x01\x00", b"\x09\x00", 1),
        pickle.dumps([1, 2]),
    ],
)
def test_malformed_bytes_are_a_value_error_that_names_the_array(data):
    with pytest.raises(ValueError, match="'layer' cannot be decoded"):
        from_record(malformed(data))


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=6))
def test_no_damage_raises_anything_else(where, noise):
    data = GOOD[:where] + noise + GOOD[where + len(noise) :]
    with suppress(ValueError):
        from_record(malformed(data))


def test_long_headers_of_other_versions_are_read():
    stream, x = BytesIO(), np.arange(3.0)
    np.lib.format.write_array(stream, x, version=(2, 0))
    np.testing.assert_array_equal(from_record(malformed(stream.getvalue()))["layer"], x)
