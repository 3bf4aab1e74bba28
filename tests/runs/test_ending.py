"""Units that end before their last round: by their scores, by the clock, or by a signal."""

import json
import math
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedexp
from fedexp import app, cli
from fedexp.config import Config
from fedexp.runs.checkpoint import Checkpoint
from fedexp.runs.ending import end_of
from fedexp.runs.signals import finishing, sigterm_as_ctrl_c

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = [
    *("--engine", "serial", "--num-clients", "6", "--fraction-train", "1", "--local-steps", "1"),
    *("--rounds", "3"),
]
ONE = [*QUICK, "--strategy", "fedexp"]
NEVER = math.inf


def run(*flags):
    cli.main(["simulate", *map(str, flags)])


def rows_of(*values, key="test-accuracy", mean=None):
    means = values if mean is None else mean
    pairs = zip(values, means, strict=True)
    return [
        {"round": i, "failed": False, key: value, f"mean-{key}": average}
        for i, (value, average) in enumerate(pairs, 1)
    ]


def summary(folder):
    return json.loads((folder / "fedexp" / "summary.json").read_text())


def curve(folder, key="fedexp"):
    lines = (folder / key / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["test-loss"] for line in lines]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 5))
def test_patience_is_over_once_so_many_rounds_were_no_better_than_an_earlier_one(values, patience):
    def is_over(known):
        recent, before = known[-patience:], known[:-patience]
        return bool(before) and max(recent) <= max(before)

    config = Config(patience=patience)
    rows = rows_of(*[value / 4 for value in values])
    assert bool(end_of(config, rows, 99, NEVER)) == is_over(values)
    losses = rows_of(*[-value / 4 for value in values], key="test-loss")
    assert bool(end_of(config, losses, 99, NEVER)) == is_over(values)


def test_either_model_that_gets_better_is_a_reason_to_go_on():
    flat, rising = [0.5] * 4, [0.1, 0.2, 0.3, 0.4]
    config = Config(patience=2)
    assert end_of(config, rows_of(*flat, mean=rising), 99, NEVER) is None
    assert end_of(config, rows_of(*rising, mean=flat), 99, NEVER) is None
    end = end_of(config, rows_of(*flat), 99, NEVER)
    assert end.why == "had no better test accuracy in 3 rounds after round 1"
    assert not end.goes_on


def test_one_round_without_a_better_score_is_said_in_the_singular():
    rows = [{"test-accuracy": 0.5, "mean-test-accuracy": 0.5}] * 2
    assert end_of(Config(patience=1), rows, 9, NEVER).why.endswith("in 1 round after round 1")


def test_without_a_score_there_is_nothing_to_lose_patience_with():
    rows = [{"round": i, "failed": False, "test-accuracy": None} for i in range(1, 9)]
    assert end_of(Config(patience=1, stop_at_target=True), rows, 99, NEVER) is None


def test_the_target_is_reached_when_both_models_have_been_there():
    config = Config(stop_at_target=True, target_accuracy=0.8)
    last, mean = [0.9, 0.7, 0.7], [0.1, 0.7, 0.8]
    assert [bool(end_of(config, rows_of(*last, mean=mean)[:n], 99, NEVER)) for n in (1, 2, 3)] == [
        False,
        False,
        True,
    ]
    assert end_of(Config(target_accuracy=0.8), rows_of(*last, mean=mean), 99, NEVER) is None


def test_the_clock_ends_no_unit_that_has_all_its_rounds():
    config, rows = Config(max_minutes=2), rows_of(0.1, 0.2)
    assert end_of(config, rows, 3, 0.0).goes_on
    assert end_of(config, rows, 2, 0.0) is None
    assert end_of(config, rows, 3, NEVER) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three rounds that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    run(*ONE, "--out", folder)
    return folder


def test_a_run_that_was_good_enough_is_done_and_its_rounds_are_those_of_the_whole(
    whole, tmp_path, capsys
):
    run(*ONE, "--stop-at-target", "--target-accuracy", "0.1", "--out", tmp_path / "r")
    told = summary(tmp_path / "r")
    assert (told["ended"], told["problem"]) == ("finished", None)
    assert told["stopped"] == f"reached the test accuracy 0.1 in round {told['num-rounds']}"
    assert told["num-rounds"] < 3
    assert f"fedexp {told['stopped']}.\n" in capsys.readouterr().out
    assert curve(tmp_path / "r") == curve(whole)[: told["num-rounds"]]
    assert (tmp_path / "r" / "curves.svg").exists()
    run("--resume", tmp_path / "r")  # has nothing to do
    assert summary(tmp_path / "r") == told
    with pytest.raises(SystemExit):
        cli.main(["resume", str(tmp_path / "r"), "--rounds", "9"])
    assert told["stopped"] in capsys.readouterr().err


def test_a_target_that_a_regression_cannot_reach_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*QUICK, "--dataset", "synthetic-regression", "--stop-at-target", "--out", tmp_path)
    assert caught.value.code == 2
    assert "a regression has no test accuracy" in capsys.readouterr().err


def test_a_run_whose_time_is_over_goes_on_to_the_same_bits(whole, tmp_path, capsys):
    """There is time for one round a start; the second strategy begins once the first is done."""
    folder = tmp_path / "r"
    flags = ("--strategy", "fedavg,fedexp", "--max-minutes", "1e-9", "--out", folder)
    run(*QUICK, *flags)
    for done in range(1, 6):
        line = f"--max-minutes 1e-09 are over. Go on with: fedexp resume {folder}"
        assert line in capsys.readouterr().out
        there = [len(curve(folder, key)) for key in ("fedavg", "fedexp") if (folder / key).exists()]
        assert sum(there) == done
        assert json.loads((folder / "summary.json").read_text())["ended"] == "interrupted"
        assert (folder / "curves.svg").exists()
        run("--resume", folder)
    assert "Go on" not in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["ended"] == "finished"
    assert curve(folder) == curve(whole)
    for name in ("model.safetensors", "model-mean.safetensors"):
        assert (folder / "fedexp" / name).read_bytes() == (whole / "fedexp" / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_finish_the_write_and_say_how_to_go_on(
    number, whole, tmp_path, capsys, monkeypatch
):
    """The signal comes while the row of round 2 is on the disk and its checkpoint is not."""
    folder, save = tmp_path / "r", Checkpoint.save

    def signalled(self, *args, **kwargs):
        if self.server_round == 2:
            os.kill(os.getpid(), number)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "save", signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run(*ONE, "--out", folder)
    assert caught.value.code == 130
    assert capsys.readouterr().err == f"Interrupted. Go on with: fedexp resume {folder}\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert Checkpoint.load(folder / "fedexp" / "checkpoint.safetensors").server_round == 2
    assert (folder / "curves.svg").exists()
    assert ">interrupted<" in (folder / "report.html").read_text()
    monkeypatch.setattr(Checkpoint, "save", save)
    run("--resume", folder)
    assert curve(folder) == curve(whole)


def test_sigterm_while_a_client_trains_is_no_failure_of_the_client(whole, tmp_path, monkeypatch):
    """Also where Ctrl-C is ignored, as a shell does for what it runs in the background."""

    def data(context):
        os.kill(os.getpid(), signal.SIGTERM)
        return app.examples(context)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(app.client.trainer, "data", data)
        with pytest.raises(SystemExit) as caught:
            run(*ONE, "--out", tmp_path / "r")
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130
    assert not (tmp_path / "r" / "fedexp" / "metrics.jsonl").read_text()


def test_a_second_ctrl_c_does_not_wait():
    done = []

    @finishing()
    def pressed_twice():
        signal.raise_signal(signal.SIGINT)
        done.append("waited")
        signal.raise_signal(signal.SIGINT)
        done.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()
    assert done == ["waited"]
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_from_python_a_simulation_ends_early_and_goes_on():
    common = {"num_clients": 6, "local_steps": 1, "fraction_train": 1.0, "engine": "serial"}
    with fedexp.Simulation(strategy="fedexp", num_server_rounds=3, max_minutes=1e-9, **common) as x:
        assert [len(x.run().metrics) for _ in range(3)] == [1, 2, 3]
    settings = {"stop_at_target": True, "target_accuracy": 0.1, **common}
    found = fedexp.compare("fedavg, fedexp", num_server_rounds=9, **settings)
    assert all(len(one.metrics) < 9 for one in found)
