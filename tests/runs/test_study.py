"""Several runs as a whole: whatever ends them, resumed they leave what they do uninterrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from kept import kept

import fedexp
from fedexp import cli
from fedexp.runs import recorder, study
from tests.simulation.offspring import descendants, left_of

pytestmark = pytest.mark.usefixtures("undrawn")
FLAGS = [
    *("simulate", "--strategy", "fedavg,scaffold", "--rounds", "2", "--clients", "4"),
    *("--fraction-train", "0.5", "--local-steps", "2", "--seeds", "0,1", "--tuning-seeds", "5"),
    *("--sweep", "learning-rate=0.01,0.3", "--select", "final-test-loss"),
]


class Killed(BaseException):
    """What nobody handles, as nobody handles SIGKILL."""


def end_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    cli.main([*FLAGS, "--out", str(folder)])
    return folder


def without_end(found):
    return {name: x for name, x in found.items() if name != "summary.json"}


WHEN = {
    "a tuning run": ("tuning/scaffold/learning-rate=0.01/seed-5", 2),
    "the first of the runs that report": ("fedavg/seed-0", 1),
    "the last": ("scaffold/seed-1", 2),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("when", WHEN)
def test_one_after_the_other_it_goes_on_to_the_same_bits(when, error, whole, tmp_path, monkeypatch):
    where, number = WHEN[when]
    folder, begun = tmp_path / "cut", []
    save, begin = recorder.Checkpoint.save, recorder.Recorder.begin

    def interrupted(self, path, *rest):
        if path.parent == folder / where and self.server_round == number:
            raise error
        save(self, path, *rest)

    def noted(self, *rest):
        begun.append(self.folder)
        return begin(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Checkpoint, "save", interrupted)
        with pytest.raises((SystemExit, Killed)) as caught:
            cli.main([*FLAGS, "--out", str(folder)])
    assert getattr(caught.value, "code", 130) == 130
    assert end_of(folder) == {"ended": "interrupted", "problem": None}
    done = {path.parent for path in folder.rglob("summary.json")} - {folder}
    monkeypatch.setattr(recorder.Recorder, "begin", noted)
    cli.main(["resume", str(folder)])
    assert not done & set(begun)
    assert kept(folder) == kept(whole)


def test_between_the_stages_and_in_the_report_too(whole, tmp_path, monkeypatch):
    folder = tmp_path / "cut"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "selected_units", interrupted)
        with pytest.raises(SystemExit):
            cli.main([*FLAGS, "--out", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr("fedexp.runs.page.report", interrupted)
        with pytest.raises(SystemExit) as caught:
            cli.main(["resume", str(folder)])
    assert caught.value.code == 130
    assert end_of(folder)["ended"] == "finished"
    cli.main(["resume", str(folder)])
    assert kept(folder) == kept(whole)
    assert (folder / "results.csv").exists()
    assert (folder / "report.html").exists()


IN_PROCESSES = (
    "import sys; from fedexp import cli; from fedexp.runs import parallel, study\n"
    "study._WORTH_PROCESSES, study.cores = 0, lambda: 2\n"
    "parallel.cores = lambda: int(sys.argv[1])\n"
    "cli.main(sys.argv[2:])\n"
)


def started(processes, *args):
    command = [sys.executable, "-c", IN_PROCESSES, str(processes), *map(str, args)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True)


def wait_for(process, condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_ends_all_processes_and_keeps_the_rounds(tmp_path):
    folder, children = tmp_path / "cut", {}
    process = started(2, *FLAGS[:4], "400", *FLAGS[5:], "--out", folder)
    try:
        wait_for(process, lambda: len(list(folder.rglob("checkpoint.safetensors"))) >= 2)
        children = descendants(process.pid)
        assert len(children) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the children get it too
        begin = time.monotonic()
        told = process.communicate(timeout=60)[1]
        assert time.monotonic() - begin < 20
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert told.splitlines()[-1].startswith("Interrupted. Go on with: fedexp resume ")
    assert "Traceback" not in told
    assert left_of(children) == {}
    assert all((path.parent / "metrics.jsonl").read_text() for path in units(folder))
    assert end_of(folder)["ended"] == "interrupted"


def test_processes_end_with_their_parent_and_leave_what_goes_on_to_the_same_bits(whole, tmp_path):
    folder = tmp_path / "cut"
    process = started(1, *FLAGS, "--out", folder)
    try:
        wait_for(process, lambda: any(folder.rglob("checkpoint.safetensors")))
        children = descendants(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert left_of(children) == {}
    assert end_of(folder)["ended"] == "interrupted"
    cli.main(["resume", str(folder)])
    assert kept(folder) == kept(whole)


def test_a_strategy_runs_once_where_the_sweep_changes_nothing_for_it(tmp_path):
    names = "fedavg, fedexp, fedexp(epsilon=0.5), fedavg+hypersgd"
    flags = [*FLAGS[:2], names, *FLAGS[3:11], "--engine", "serial", "--out", str(tmp_path / "r")]
    cli.main([*flags, "--sweep", "epsilon=0.1,1", "--sweep", "hyper-learning-rate=0.01,0.1"])
    found = {path.parent.parent.relative_to(tmp_path / "r") for path in units(tmp_path / "r")}
    assert sorted(map(str, found)) == [
        "fedavg",
        "fedavg+hypersgd/hyper-learning-rate=0.01",
        "fedavg+hypersgd/hyper-learning-rate=0.1",
        "fedexp(epsilon=0.5)",
        "fedexp/epsilon=0.1",
        "fedexp/epsilon=1",
    ]


def units(folder):
    return folder.rglob("unit.json")


def test_a_sweep_over_what_nobody_reads_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["simulate", "--strategy", "fedavg,scaffold", "--sweep", "epsilon=0.1,1"])
    assert caught.value.code == 2
    assert "no chosen strategy reads epsilon" in capsys.readouterr().err


def test_optimizers_with_settings_are_swept(tmp_path):
    flags = [*FLAGS[:2], "fedexp", *FLAGS[3:11], "--engine", "serial", "--out", str(tmp_path / "r")]
    cli.main([*flags, "--sweep", "local-optimizer=sgd,adamw(weight-decay=0.1)"])
    about = [json.loads(path.read_text()) for path in units(tmp_path / "r")]
    swept = sorted(x["settings"]["local-optimizer"] for x in about)
    assert swept == ["adamw(weight-decay=0.1)", "sgd"]
    alone = tmp_path / "alone"
    own = ["--local-optimizer", "adamw(weight-decay=0.1)", "--seeds", "0", "--out", str(alone)]
    cli.main([*flags[:-2], *own])
    model = "seed-0/model.safetensors"
    point = tmp_path / "r/fedexp/local-optimizer=adamw(weight-decay=0.1)"
    assert (point / model).read_bytes() == (alone / "fedexp" / model).read_bytes()


ENDS = {
    "finished": ([], 0, None),
    "failed": (["--vectorize", "off", "--timeout", "1e-9"], 1, "no round of 2 succeeded"),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_summary_of_the_whole_says_how_it_ended(how, tmp_path, capsys):
    more, code, said = ENDS[how]
    flags = [*FLAGS[:2], "fedexp", *FLAGS[3:9], "--engine", "serial", "--out", str(tmp_path / "r")]
    try:
        cli.main([*flags, *more])
        got = 0
    except SystemExit as exit_:
        got = exit_.code
    assert got == code
    found = end_of(tmp_path / "r")
    assert found["ended"] == how == end_of(tmp_path / "r/fedexp")["ended"]
    assert (found["problem"] is None) == (said is None)
    assert said is None or said in found["problem"]


class Raises(fedexp.strategies.FedAvg):
    def aggregate_train(self, server_round, replies):
        if server_round == 2:
            raise RuntimeError("of the user's\nown")
        return super().aggregate_train(server_round, replies)


def test_a_unit_that_raises_is_one_line_and_fails_the_run(tmp_path, capsys):
    flags = [*FLAGS[:2], f"fedavg,{__name__}:Raises", *FLAGS[3:9], "--engine", "serial"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*flags, "--out", str(tmp_path / "r")])
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedexp: error: RuntimeError: of the user's own. The rounds before")
    assert end_of(tmp_path / "r") == {
        "ended": "failed",
        "problem": "RuntimeError: of the user's own",
    }


DAMAGED = {
    "a clients.csv cut in its last round": ("clients.csv", lambda x: x[: 3 * len(x) // 4], ""),
    "a clients.csv cut in its first round": ("clients.csv", lambda x: x[:60], "does not hold"),
    "a clients.csv of another kind": ("clients.csv", lambda x: b"\xff\xfe\n", "does not hold"),
    "no clients.csv": ("clients.csv", None, "does not hold"),
    "a damaged unit.json": ("unit.json", lambda x: b"{", ""),
    "no unit.json": ("unit.json", None, ""),
    "no summary": ("summary.json", None, ""),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    flags = [*FLAGS[:2], "fedexp", *FLAGS[3:9], "--engine", "serial", "--out", str(folder)]
    cli.main([*flags, "--fraction-evaluate", "1"])
    return folder


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_a_line_or_does_no_harm(kind, evaluated, tmp_path, capsys):
    name, change, said = DAMAGED[kind]
    folder = shutil.copytree(evaluated, tmp_path / "r")
    path = folder / "fedexp" / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    if not said:
        cli.main(["resume", str(folder)])
        assert kept(folder) == kept(evaluated)
        return
    with pytest.raises(SystemExit) as caught:
        cli.main(["resume", str(folder)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
