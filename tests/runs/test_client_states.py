"""What clients keep is written when it changes, and both kept checkpoints can be loaded."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.runs.checkpoint import NAMES, Checkpoint, newest
from fedexp.runs.client_states import FOLDER, ClientStates, forget_states
from fedexp.simulation.transport import pack, unpack

SIZE = 1000


def state(value):
    return {"variate": {"w": np.full(SIZE, float(value))}}


def values(states):
    return {node: packed["variate"]["w"][0] for node, packed in states.items()}


def files(folder):
    return {path.name: path.stat().st_size for path in (folder / FOLDER).glob("*")}


class Rounds:
    """A run whose clients keep one number each, with its two checkpoints."""

    def __init__(self, folder, num_clients=20):
        self.folder, self.store = folder, ClientStates(folder / FOLDER)
        self.states = {node: state(0) for node in range(num_clients)}
        self.number, self.states_before = 0, {}

    def take(self, *nodes):
        """A round that changes ``nodes``; how many states it has written."""
        self.number += 1
        self.states_before = dict(self.states)
        self.states |= {node: state(self.number + node / 100) for node in nodes}
        there = set(files(self.folder))
        self.save()
        new = {name: size for name, size in files(self.folder).items() if name not in there}
        return round(sum(new.values()) / (8 * SIZE))

    def save(self):
        checkpoint = Checkpoint(self.number, {"w": np.ones(1)}, clients=self.states)
        checkpoint.save(self.folder / NAMES[0], self.store)
        self.store.clean()

    def check(self):
        """Both checkpoints hold what there was."""
        for name, expected in zip(NAMES, (self.states, self.states_before), strict=True):
            if (self.folder / name).exists():
                assert values(Checkpoint.load(self.folder / name).clients) == values(expected)


@pytest.fixture
def run(tmp_path):
    return Rounds(tmp_path)


def test_a_round_writes_the_states_that_it_changed(run):
    assert run.take(*range(20)) == 20
    assert run.take(3, 5) == 2
    assert run.take() == 0
    run.check()


def test_both_checkpoints_can_be_loaded_after_every_round_and_the_disk_holds_little(run):
    draws, written = np.random.default_rng(0), 0
    run.take(*range(20))
    for _ in range(40):
        written += run.take(*draws.choice(20, 4, replace=False))
        run.check()
        held = sum(files(run.folder).values()) / (8 * SIZE)
        assert held < 20 * 2 + 2 * 2 * 4 + 2  # twice what is kept, and what two rounds have added
    assert 40 * 4 < written <= 40 * 4 * 2


def test_a_state_that_was_sent_and_came_back_is_not_written_again(run):
    run.take(1)
    run.states = {node: state(packed["variate"]["w"][0]) for node, packed in run.states.items()}
    assert run.take() == 0


def test_a_state_that_was_changed_where_it_lies_is_written(run):
    run.take(1)
    packed = run.states[1]
    packed["variate"]["w"][:] = 9
    run.states[1] = dict(packed)  # as a grid has it after every message
    there = set(files(run.folder))
    run.save()
    assert len(set(files(run.folder)) - there) == 1
    assert values(Checkpoint.load(run.folder / NAMES[0]).clients)[1] == 9


def test_a_run_that_goes_on_writes_what_changes_and_removes_what_nobody_needs(run):
    run.take(*range(20))
    run.take(1)
    (run.folder / FOLDER / f"{'0' * 32}.safetensors").write_bytes(b"of a round that did not end")
    (run.folder / FOLDER / "mine.safetensors").write_bytes(b"mine")
    run.store = ClientStates(run.folder / FOLDER)
    run.states = newest(run.folder, run.store).clients
    assert run.take(7) == 1
    run.check()
    assert f"{'0' * 32}.safetensors" not in files(run.folder)
    assert "mine.safetensors" in files(run.folder)


def test_a_checkpoint_without_its_states_gives_way_to_the_one_before(run, logged):
    run.take(*range(20))
    before = set(files(run.folder))
    run.take(1)
    (name,) = set(files(run.folder)) - before
    path = run.folder / FOLDER / name
    whole = path.read_bytes()
    for damage in (lambda: path.unlink(), lambda: path.write_bytes(whole[:-1] + b"\x11")):
        damage()
        found = newest(run.folder)
        assert found.server_round == 1
        assert values(found.clients) == values(run.states_before)
        assert "goes on from round 1" in logged.pop()


def test_states_of_every_kind_come_back(tmp_path):
    content = RecordDict(
        {
            "a/b": ArrayRecord({"c/d": Array(np.arange(3))}),
            "empty": ArrayRecord({}),
            "numbers": MetricRecord({"lr": 0.5, "many": [1, 2], "nan": float("nan")}),
            "text": ConfigRecord({"bytes": b"\x00\xff", "flag": True, "list": [b"x", b"y"]}),
            "own": ArrayRecord({"t": Array("float32", (2,), "an-app's-own", b"\x01\x02")}),
        }
    )
    Checkpoint(1, {"w": np.ones(1)}, clients={5: pack(content)}).save(tmp_path / "c")
    back = unpack(Checkpoint.load(tmp_path / "c").clients[5])
    assert list(back) == list(content)
    np.testing.assert_array_equal(back.array_records["a/b"]["c/d"].numpy(), np.arange(3))
    assert dict(back.array_records["empty"]) == {}
    assert str(dict(back.metric_records["numbers"])) == str(dict(content["numbers"]))
    assert dict(back.config_records["text"]) == dict(content["text"])
    assert back.array_records["own"]["t"] == content["own"]["t"]


def test_only_states_of_ours_are_forgotten(run):
    run.take(1)
    (run.folder / FOLDER / "mine.txt").write_text("mine")
    forget_states(run.folder)
    assert [*files(run.folder)] == ["mine.txt"]
    (run.folder / FOLDER / "mine.txt").unlink()
    forget_states(run.folder)
    assert not (run.folder / FOLDER).exists()
    forget_states(run.folder)
