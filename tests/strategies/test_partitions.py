"""Which node has which partition, by the word of nodes that may not be sound."""

import numpy as np
import pytest
from builders import partition, reply
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedexp.records import to_record
from fedexp.simulation import SerialGrid
from fedexp.strategies import sampling
from fedexp.strategies.sampling import partitions_of


def says(**values):
    record = MetricRecord({key.replace("_", "-"): x for key, x in values.items()})
    return RecordDict({"metrics": record})


def raises():
    raise RuntimeError("no such handler")


ODD = {
    "raises": raises,
    "says nothing": RecordDict,
    "says it elsewhere": lambda: RecordDict({"config": ConfigRecord({"partition-id": 0})}),
    "says it in an array": lambda: RecordDict(
        {"metrics": to_record({"partition-id": np.zeros(1)})}
    ),
    "has no number": lambda: says(partition_id=0),
    "claims a billion": lambda: says(partition_id=0, num_partitions=10**9),
    "claims half a partition": lambda: says(partition_id=0.5, num_partitions=5),
    "claims lists": lambda: says(partition_id=[0], num_partitions=[5]),
    "claims one beyond the last": lambda: says(partition_id=5, num_partitions=5),
    "claims a negative one": lambda: says(partition_id=-1, num_partitions=5),
    "claims NaN": lambda: says(partition_id=0, num_partitions=float("nan")),
}


def grid_of(odd, bad):
    app = ClientApp()

    @app.query()
    def query(message, context):
        p = partition(context)
        sound = says(partition_id=p, num_partitions=5)
        return Message(odd() if p == bad else sound, reply_to=message)

    return SerialGrid(app, 5)


@pytest.mark.parametrize("bad", [0, 2, 4])
@pytest.mark.parametrize("odd", ODD)
def test_one_node_neither_ends_nor_delays_the_start(odd, bad, monkeypatch):
    monkeypatch.setattr(sampling.time, "sleep", None)
    found = partitions_of(grid_of(ODD[odd], bad))
    honest = {p + 2: p for p in range(5) if p != bad}
    assert honest.items() <= found.items()
    assert found.keys() - honest.keys() <= {bad + 2}


class Joining:
    """Nodes that connect one at a time, whenever somebody waits; the first one lies."""

    def __init__(self, answers):
        self.answers, self.connected, self.asked = answers, 1, []

    def get_node_ids(self):
        return list(self.answers)[: self.connected]

    def send_and_receive(self, messages):
        self.asked += [message.metadata.dst_node_id for message in messages]
        return [reply(self.answers[i], i) for i in self.asked[-len(messages) :]]

    def sleep(self, _):
        self.connected += 1


Grid.register(Joining)


def test_a_liar_that_comes_first_is_outvoted_and_nobody_is_asked_twice(monkeypatch):
    sound = {node: says(partition_id=node, num_partitions=4) for node in (1, 2, 3)}
    grid = Joining({0: says(partition_id=0, num_partitions=10**9)} | sound)
    monkeypatch.setattr(sampling.time, "sleep", grid.sleep)
    assert partitions_of(grid) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert grid.asked == [0, 1, 2, 3]


def test_nodes_that_all_say_nothing_are_an_error_in_the_end(monkeypatch):
    monkeypatch.setattr(sampling, "_PATIENCE", 0.0)
    grid = Joining({node: RecordDict() for node in (1, 2)})
    monkeypatch.setattr(sampling.time, "sleep", grid.sleep)
    with pytest.raises(ValueError, match="none says which partition it has"):
        partitions_of(grid)
