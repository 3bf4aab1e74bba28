"""A reply that describes more than its model could need is refused before it is unpacked."""

import inspect
import json
import re
import tracemalloc

import numpy as np
import pytest
from builders import content
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_body,
)
from flwr.superlink.grid import http_grid

from fedexp.simulation.flower.inflation import measured
from fedexp.simulation.flower.messages import number
from fedexp.simulation.flower.sizes import check_size

MODEL = {"w": np.ones((100, 100), np.float32)}  # 40 kB


def reply(arrays):
    asked = number(Message(RecordDict(), 7, "train"), "asked")
    return Message(content(arrays), reply_to=asked)


def objects(message):
    found = get_all_nested_objects(message)
    return message.object_id, {key: x.deflate() for key, x in found.items()}


def rewritten(message, **changes):
    """The objects of ``message``, with the body of its array changed."""
    found = get_all_nested_objects(message)
    (old_id, array) = next((k, x) for k, x in found.items() if isinstance(x, Array))
    body = json.loads(get_object_body(array.deflate(), Array))
    body |= {key: f(body[key]) for key, f in changes.items()}
    contents = {key: x.deflate() for key, x in found.items()}
    # The id is not that of the new bytes. Flower's grid does not look; a store would.
    new = add_header_to_object_body(json.dumps(body).encode(), array)
    return message.object_id, {**contents, old_id: new}


def unpacked(root, contents, most=1 << 20):
    with measured(most):
        return http_grid.inflate_object_from_contents(root, contents)


def test_a_sound_reply_is_unpacked_as_by_flower():
    message = reply(MODEL)
    found = unpacked(*objects(message))
    assert found.content == message.content
    assert found.metadata.reply_to_message_id == "asked"


def test_a_chunk_that_is_named_many_times_is_an_error_reply_and_takes_no_memory():
    root, contents = rewritten(reply(MODEL), arraychunk_ids=lambda ids: ids * 50_000)  # 2 GB
    tracemalloc.start()
    found = unpacked(root, contents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    assert found.has_error()
    assert re.search(
        r"need 2,00\d,\d{3},\d{3} bytes or more, 1,048,576 are allowed", found.error.reason
    )
    assert (found.metadata.src_node_id, found.metadata.reply_to_message_id) == (7, "asked")


def test_a_shape_that_declares_too_much_is_an_error_reply():
    root, contents = rewritten(reply(MODEL), shape=lambda _: [10**7, 10**7])
    assert "bytes or more" in unpacked(root, contents).error.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"arraychunk_ids": lambda _: [5]},
        {"arraychunk_ids": lambda _: "ten"},
        {"dtype": lambda _: "nonsense"},
        {"shape": lambda _: None},
        {"shape": lambda _: [-1]},
    ],
)
def test_objects_that_make_no_sense_are_an_error_reply(changes):
    found = unpacked(*rewritten(reply(MODEL), **changes))
    assert found.has_error()
    assert found.error.reason.startswith("its reply cannot be unpacked: ")


def test_what_is_no_message_at_all_is_an_error_reply_of_nobody():
    found = unpacked("x", {"x": b"nothing"})
    assert found.has_error()
    assert found.metadata.reply_to_message_id == ""


def test_many_arrays_count_together():
    arrays = {f"w{i}": np.full(1000, float(i)) for i in range(10)}
    _, contents = objects(reply(arrays))
    check_size(contents, 82_000)
    with pytest.raises(ValueError, match=r"80,000 are allowed"):
        check_size(contents, 80_000)


def test_one_array_under_two_names_counts_once_as_it_takes_memory_once():
    record = ArrayRecord({"a": Array(MODEL["w"]), "b": Array(MODEL["w"])})
    message = reply({})
    message.content["arrays"] = record
    _, contents = objects(message)
    check_size(contents, 41_000)


def test_flowers_grid_unpacks_with_the_function_that_is_replaced():
    source = inspect.getsource(http_grid.HttpGrid.pull_messages)
    assert "inflate_object_from_contents(" in source


def test_outside_flowers_own_function_is_back():
    before = http_grid.inflate_object_from_contents
    with measured(1):
        assert http_grid.inflate_object_from_contents is not before
    assert http_grid.inflate_object_from_contents is before
