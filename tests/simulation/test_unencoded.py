"""Records that clients make on a grid against those that Flower makes."""

import numpy as np
import pytest
import torch
from builders import content, grid_of
from flwr.app import ArrayRecord, Message, RecordDict
from torch import nn

from fedexp.simulation.flower.unencoded import unencoded


def network():
    layers = nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Linear(3, 1, bias=False)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def lists():
    return [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(3, np.int8)]


MAKERS = {
    "state dict": lambda x: ArrayRecord(x.state_dict()),
    "state dict by name": lambda x: ArrayRecord(torch_state_dict=dict(x.state_dict())),
    "class method": lambda x: ArrayRecord.from_torch_state_dict(x.state_dict()),
    "class method by name": lambda x: ArrayRecord.from_torch_state_dict(state_dict=x.state_dict()),
    "class method of a list": lambda x: ArrayRecord.from_numpy_ndarrays(ndarrays=lists()),
    "list": lambda x: ArrayRecord(lists()),
    "list by name": lambda x: ArrayRecord(numpy_ndarrays=lists()),
}


def bytes_of(record):
    return {name: (x.dtype, x.shape, x.stype, x.data) for name, x in record.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_they_are_the_same_to_the_last_byte(name):
    module = network()
    theirs = MAKERS[name](module)
    with unencoded():
        ours = MAKERS[name](module)
    assert type(ours) is ArrayRecord
    assert ours.object_id == theirs.object_id
    got, expected = bytes_of(ours), bytes_of(theirs)
    assert list(got) == list(expected)
    for key, (dtype, shape, stype, _) in expected.items():
        assert got[key][:3] == (dtype, shape, stype)
        np.testing.assert_array_equal(ours[key].numpy(), theirs[key].numpy())


def test_training_on_does_not_change_them():
    module = nn.Linear(2, 2)
    expected = module.weight.detach().clone()
    with unencoded():
        record = ArrayRecord(module.state_dict())
    nn.init.zeros_(module.weight)
    np.testing.assert_array_equal(record["weight"].numpy(), expected.numpy())


@pytest.mark.parametrize("make", [lambda: lists(), lambda: network().state_dict()])
def test_inputs_that_need_not_be_kept_are_let_go(make):
    given = make()
    with unencoded():
        record = ArrayRecord(given, keep_input=False)
    assert len(record) > 0
    assert len(given) == 0


def test_objects_are_refused():
    with unencoded(), pytest.raises(ValueError, match="'0' holds Python objects"):
        ArrayRecord([np.array([None])])


def test_outside_flower_encodes_as_ever():
    with pytest.raises(RuntimeError, match="gone"), unencoded():
        raise RuntimeError("gone")
    record = ArrayRecord(lists())
    assert "data" in record["0"].__dict__


def test_a_client_of_a_grid_does_not_encode():
    made = []

    def train(message, context):
        made.append(ArrayRecord(nn.Linear(2, 2).state_dict()))
        return content({"w": np.zeros(2)})

    grid = grid_of(1, train)
    list(grid.send_and_receive([Message(RecordDict(), 2, "train")]))
    assert not any("data" in x.__dict__ for x in made[0].values())
