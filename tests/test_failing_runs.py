"""Runs that do not do what they were asked to: exit codes, tables, and the line that says why."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedexp.runs.unit_run  # noqa: F401 - it keeps what it imports, so not while it is patched
from fedexp import app, cli
from fedexp.clients import Examples
from fedexp.runs import recorder as runs

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = [
    *("--engine", "serial", "--num-clients", "6", "--fraction-train", "1", "--local-steps", "1"),
    *("--strategy", "fedavg,fedexp"),
]


def run(*flags):
    cli.main(["simulate", *map(str, flags)])


def failing(*flags):
    with pytest.raises(SystemExit) as caught:
        run(*flags)
    return caught.value.code


def rows(folder, key="fedavg"):
    return [json.loads(line) for line in (folder / key / "metrics.jsonl").read_text().splitlines()]


def summary(folder, key="fedavg"):
    return json.loads((folder / key / "summary.json").read_text())


@pytest.fixture
def break_clients(monkeypatch):
    """Let clients raise for whom ``broken(partition)`` is a text; ``calls`` counts."""

    def apply(broken):
        def data(context):
            if reason := broken(context.node_config["partition-id"]):
                raise OSError(reason)
            return app.examples(context)

        monkeypatch.setattr(app.client.trainer, "data", data)

    return apply


def errors(capsys):
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("fedexp: error")]


def test_a_run_whose_rounds_all_fail_ends_with_code_1_and_the_reason(
    break_clients, tmp_path, capsys
):
    break_clients(lambda p: "disk on fire")
    assert failing(*QUICK, "--num-server-rounds", 9, "--out", tmp_path / "r") == 1
    (line,) = errors(capsys)
    assert "fedavg, fedexp: no round of 3 succeeded: 6 clients: OSError: disk on fire" in line
    assert len(rows(tmp_path / "r")) == 3
    for key in ("fedavg", "fedexp"):
        told = summary(tmp_path / "r", key)
        assert told["best-accuracy"] is told["final-accuracy"] is None
        assert told["mean-best-accuracy"] is told["mean-final-test-loss"] is None
        assert told["num-failures"] == 18
        assert told["missing-nodes"] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("limit", "num_rows"), [(1, 1), (2, 2), (0, 5), (9, 5)])
def test_the_number_of_failed_rounds_in_a_row_is_a_setting(
    limit, num_rows, break_clients, tmp_path
):
    break_clients(lambda p: "x")
    flags = ["--num-server-rounds", 5, "--max-failed-rounds", limit, "--out", tmp_path / "r"]
    assert failing(*QUICK, *flags) == 1
    assert len(rows(tmp_path / "r")) == num_rows


def test_a_client_that_never_contributes_is_named_and_the_run_is_no_success(
    break_clients, tmp_path, capsys
):
    break_clients(lambda p: "no such row" if p == 4 else "")
    assert failing(*QUICK, "--num-server-rounds", 4, "--out", tmp_path / "r") == 1
    printed = capsys.readouterr()
    (line,) = [x for x in printed.err.splitlines() if x.startswith("fedexp: error")]
    assert "fedavg, fedexp: client at node 6 never contributed: " in line
    assert "OSError: no such row" in line
    assert len(rows(tmp_path / "r")) == 4  # the others were trained to the end
    assert summary(tmp_path / "r")["best-accuracy"] > 0
    table = printed.out[printed.out.index("failed replies") :].splitlines()
    (cells,) = [x.split() for x in table if x.split()[:1] == ["fedexp"]]
    assert cells == ["fedexp", "0", "of", "4", "4", "1", "4"]  # 4 of the kind crash


def test_a_client_that_fails_now_and_then_is_no_failure_of_the_run(break_clients, tmp_path, capsys):
    calls = iter(range(99))
    break_clients(lambda p: "late" if p == 4 and next(calls) % 2 == 0 else "")
    run(*QUICK, "--vectorize", "off", "--num-server-rounds", 4, "--out", tmp_path / "r")
    assert [row["num-failures"] for row in rows(tmp_path / "r")] == [1, 0, 1, 0]
    assert list(rows(tmp_path / "r")[0]["failures"].values()) == [[6]]
    assert summary(tmp_path / "r")["problem"] is None


def test_a_clean_run_has_no_columns_on_failures(tmp_path, capsys):
    run(*QUICK, "--num-server-rounds", 1, "--out", tmp_path / "r")
    printed = capsys.readouterr()
    assert "failed" not in printed.out
    assert printed.err == ""


def test_who_never_contributed_is_known_after_a_resumed_run(break_clients, tmp_path, monkeypatch):
    """Client 4 fails before the interruption, client 1 after it; both contribute once."""
    flags = [*QUICK, "--num-server-rounds", 4, "--out", tmp_path / "r"]
    save = runs.saved_of

    def interrupted(run_, server_round, *rest):
        if server_round == 3:
            raise KeyboardInterrupt
        return save(run_, server_round, *rest)

    monkeypatch.setattr(runs, "saved_of", interrupted)
    break_clients(lambda p: "x" if p in (0, 4) else "")
    assert failing(*flags) == 130
    monkeypatch.setattr(runs, "saved_of", save)
    break_clients(lambda p: "x" if p in (0, 1) else "")
    assert failing("--resume", tmp_path / "r") == 1
    assert summary(tmp_path / "r")["missing-nodes"] == [2]


def test_failed_rounds_in_a_row_are_counted_over_an_interruption(
    break_clients, tmp_path, monkeypatch
):
    save = runs.saved_of

    def interrupted(run_, server_round, *rest):
        if server_round == 2:
            os.kill(os.getpid(), 2)
        return save(run_, server_round, *rest)

    break_clients(lambda p: "x")
    monkeypatch.setattr(runs, "saved_of", interrupted)
    assert failing(*QUICK, "--num-server-rounds", 9, "--out", tmp_path / "r") == 130
    monkeypatch.setattr(runs, "saved_of", save)
    assert failing("--resume", tmp_path / "r") == 1
    assert len(rows(tmp_path / "r")) == 3


def test_data_with_nan_is_not_said_to_be_a_learning_rate(monkeypatch, tmp_path, capsys):
    def data(context):
        train, test = app.examples(context)
        inputs = train.inputs.clone()
        inputs[:, 0, 0, 0] = float("nan")
        return Examples(inputs, train.targets, train.rows), test

    monkeypatch.setattr(app.client.trainer, "data", data)
    assert failing(*QUICK, "--num-server-rounds", 9, "--out", tmp_path / "r") == 1
    (line,) = errors(capsys)
    assert "rows hold NaN or infinity" in line
    assert "smaller" not in line


def test_a_disk_that_is_full_in_the_middle_is_one_line_and_keeps_what_there_was(
    monkeypatch, tmp_path, capsys
):
    flags = [*QUICK, "--num-server-rounds", 4, "--out"]
    run(*flags, tmp_path / "whole")
    save = runs.Checkpoint.save

    def full(self, path, *rest):
        if self.server_round == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(self, path, *rest)

    monkeypatch.setattr(runs.Checkpoint, "save", full)
    capsys.readouterr()
    assert failing(*flags, tmp_path / "cut") == 1
    (line,) = errors(capsys)
    assert "No space left on device" in line
    assert f"fedexp resume {tmp_path / 'cut'}" in line
    assert [row["round"] for row in rows(tmp_path / "cut")] == [1, 2, 3]
    monkeypatch.setattr(runs.Checkpoint, "save", save)
    run("--resume", tmp_path / "cut")
    whole, cut = (rows(tmp_path / name) for name in ("whole", "cut"))
    assert [r["test-loss"] for r in whole] == [r["test-loss"] for r in cut]


def test_a_living_run_is_not_resumed_and_not_overwritten(tmp_path):
    """Another process holds the folder while this one tries."""
    out = tmp_path / "r"
    run(*QUICK, "--num-server-rounds", 1, "--out", out)
    code = "import sys, fcntl; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        child.stdout.readline()
        assert failing("--resume", out) == 2
        assert failing(*QUICK, "--overwrite", "--out", out) == 2
        assert summary(out)["num-rounds"] == 1
    finally:
        child.communicate("\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["--seed=1", "--seed=1"], "--seed is given twice"),
        (["--overwrite", "--overwrite"], "--overwrite is given twice"),
        (["--strategy", "fedavg", "--epsilon", "0.001"], "no chosen strategy reads epsilon"),
        (["--engine", "serial", "--num-workers", "0"], "no chosen engine reads num-workers"),
        (["--partitioner", "iid", "--alpha", "0.1"], "no chosen partitioner reads alpha"),
        (["--name", "../../x"], "no slash"),
        (["--num-round", "1"], "Did you mean --num-server-rounds?"),
        (["--name", "\udcff"], "UTF-8"),
    ],
)
def test_a_flag_that_would_be_lost_is_refused(flags, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failing(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_runs_own_file_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--epsilon", "0.001", "--num-server-rounds", "1", "--name", 'η "\n'[:3]]
    run(*QUICK, *flags)
    (folder,) = Path("runs").iterdir()
    run("--config", folder / "config.toml", "--out", "again")
    assert rows(folder, "fedexp")[0]["test-loss"] == rows(Path("again"), "fedexp")[0]["test-loss"]
    run("--resume", folder)


def test_a_file_is_judged_where_it_departs_from_the_defaults(tmp_path, capsys):
    (tmp_path / "run.toml").write_text('strategy = "fedavg"\nepsilon = 0.5\n')
    assert failing("--config", tmp_path / "run.toml", "--out", tmp_path / "r") == 2
    assert "no chosen strategy reads epsilon" in capsys.readouterr().err
