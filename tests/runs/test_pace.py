"""How often a checkpoint is written, and that a run goes on to the same bits from an older one."""

import json

import pytest
from kept import kept

from fedexp import cli
from fedexp.runs import recorder
from fedexp.runs.checkpoint import NAMES, Checkpoint
from fedexp.runs.pace import SMALL, Pace
from fedexp.runs.recorder import Recorder

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_small_one_is_due_after_every_round_and_a_large_one_for_a_tenth_of_the_time():
    now = [0.0]
    pace = Pace(0, lambda: now[0])
    assert pace.is_due(1, SMALL + 1)  # nobody knows yet what it costs
    with pace.writing():
        now[0] += 3
    due = {}
    for number in range(2, 9):
        now[0] += 5
        assert pace.is_due(number, SMALL)
        due[number] = pace.is_due(number, SMALL + 1)
    assert [number for number in due if due[number]] == [7, 8]  # 30 seconds later


def test_a_number_is_that_of_the_whole_run():
    assert [i for i in range(1, 13) if Pace(4).is_due(i, 0)] == [4, 8, 12]


FLAGS = [
    *("--engine", "serial", "--num-server-rounds", "7", "--num-clients", "4", "--local-steps", "1"),
    *("--strategy", "scaffold", "--fraction-train", "0.5", "--fraction-evaluate", "0.5"),
]


class Killed(BaseException):
    """What does not let anything be written any more."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    cli.main(["simulate", *FLAGS, "--out", str(folder)])
    return folder


@pytest.mark.parametrize("end", [Killed, KeyboardInterrupt])
def test_rounds_after_an_older_checkpoint_are_taken_again(end, whole, tmp_path, monkeypatch):
    folder, own = tmp_path / "cut", tmp_path / "cut" / "scaffold"
    after_round = Recorder.after_round

    def ended(self, run, grid, row, *rest):
        after_round(self, run, grid, row, *rest)
        if row["round"] == 5:
            if end is Killed:
                patch.setattr(Recorder, "catch_up", lambda self: None)
            raise end

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "after_round", ended)
        with pytest.raises((Killed, SystemExit)):
            cli.main(["simulate", *FLAGS, "--checkpoint-every", "3", "--out", str(folder)])
    rows = (own / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [1, 2, 3, 4, 5]
    # Who interrupts gets the last whole round written; who kills does not.
    assert Checkpoint.load(own / NAMES[0]).server_round == (3 if end is Killed else 5)
    cli.main(["resume", str(folder)])
    assert kept(folder) == kept(whole)
    assert [Checkpoint.load(own / name).server_round for name in NAMES] == [7, 6]


def test_the_last_round_always_has_one_and_the_rounds_between_have_none(tmp_path, monkeypatch):
    written, save = [], recorder.Checkpoint.save

    def noted(self, *rest):
        written.append(self.server_round)
        save(self, *rest)

    monkeypatch.setattr(recorder.Checkpoint, "save", noted)
    cli.main(["simulate", *FLAGS, "--checkpoint-every", "3", "--out", str(tmp_path / "r")])
    assert written == [3, 6, 7]
