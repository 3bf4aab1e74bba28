"""Replies on Flower's own grid, from a SuperLink to which some devices send theirs slowly."""

from types import SimpleNamespace

import numpy as np
import pytest
from builders import content
from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.superlink.grid.http_grid import HttpGrid

from fedexp.devices.flower.objects import ids_of, without_content
from fedexp.simulation.flower import uploads
from fedexp.simulation.flower.messages import number
from fedexp.simulation.flower.uploads import Uploads

MODEL = {"w": np.ones((100, 100), np.float32)}  # 40 kB


class SuperLink:
    """The calls that a grid makes; ``there`` is what devices have sent, ``gone`` never comes."""

    def __init__(self):
        self.replies, self.trees, self.objects = {}, {}, {}
        self.there, self.gone = set(), set()

    def announce(self, asked):
        """A reply to the message ``asked``; the ids of its objects."""
        reply = Message(content(MODEL, who=len(self.replies)), reply_to=number(_message(), asked))
        root = reply.object_id
        number(reply, root)
        tree, objects = ids_of(reply)
        self.replies[asked] = message_to_proto(without_content(reply))
        self.trees[asked] = tree
        self.objects |= {i: x.deflate() for i, x in objects.items()}
        return list(objects)

    def PullMessages(self, request):
        ids = [i for i in request.message_ids if i in self.replies]
        found = [self.replies.pop(i) for i in ids]  # each is told once
        return SimpleNamespace(
            messages_list=found, message_object_trees=[self.trees[i] for i in ids]
        )

    def PullObject(self, request):
        key = request.object_id
        return PullObjectResponse(
            object_found=key not in self.gone,
            object_available=key in self.there,
            object_content=self.objects[key] if key in self.there else b"",
        )

    def ConfirmMessageReceived(self, request): ...


def _message():
    return Message(RecordDict(), 7, "train")


@pytest.fixture
def superlink():
    return SuperLink()


@pytest.fixture
def grid(superlink, monkeypatch):
    monkeypatch.setattr(uploads, "_PAUSE", 0.0)
    made = object.__new__(HttpGrid)
    made._run = SimpleNamespace(run_id=1)
    made.node = Node(node_id=1)
    made._client = superlink
    monkeypatch.setattr(HttpGrid, "_is_connected", True)
    return made


def test_a_reply_on_its_way_keeps_no_other_waiting_and_comes_later(superlink, grid):
    slow, quick = superlink.announce("a"), superlink.announce("b")
    superlink.there |= {*quick, *slow[:1]}
    pulls = Uploads(1 << 20)
    (first,) = pulls.pull(grid, ["a", "b"])
    assert first.metadata.reply_to_message_id == "b"
    assert pulls.pull(grid, ["a"]) == []
    superlink.there |= {*slow}
    (second,) = pulls.pull(grid, ["a"])
    assert second.metadata.reply_to_message_id == "a"
    assert second.content["arrays"]["w"].numpy().tolist() == MODEL["w"].tolist()
    assert pulls.pull(grid, ["a"]) == []


def test_a_reply_that_will_never_be_whole_is_an_error_reply(superlink, grid):
    ids = superlink.announce("a")
    pulls = Uploads(1 << 20)
    assert pulls.pull(grid, ["a"]) == []
    superlink.gone |= {*ids}
    (reply,) = pulls.pull(grid, ["a"])
    assert reply.metadata.reply_to_message_id == "a"
    assert "could not be found" in reply.error.reason


def test_no_more_bytes_are_taken_than_a_reply_may_have(superlink, grid, monkeypatch):
    monkeypatch.setattr(uploads, "_OVERHEAD", 0)
    superlink.there |= {*superlink.announce("a")}
    (reply,) = Uploads(1000).pull(grid, ["a"])
    assert "more than 1,000 bytes" in reply.error.reason


def test_a_bomb_that_comes_late_is_an_error_reply_too(superlink, grid):
    ids = superlink.announce("a")
    pulls = Uploads(1000)
    assert pulls.pull(grid, ["a"]) == []
    superlink.there |= {*ids}
    (reply,) = pulls.pull(grid, ["a"])
    assert reply.metadata.reply_to_message_id == "a"
    assert "1,000 are allowed" in reply.error.reason
