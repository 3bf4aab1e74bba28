"""The same rows as in ``metrics.jsonl``, read back with the libraries' own readers."""

import subprocess
import sys

import pytest
from folders import unit_of

import fedexp
from fedexp.runs.trackers import Trackers, trackers_of

UNIT = {"strategy": "fedexp", "seed": 3, "settings": {"learning-rate": 0.1}, "tuning": False}
ROWS = unit_of("fedexp", [0.1, 0.5, None], failures={"timed out": [1]}).rows
SUMMARY = {"best-accuracy": 0.5, "problem": None, "ended": "failed", "settings": {}}


def track(log, folder, *, name="seed-3", break_after=None):
    """A unit as a run records it; an interrupted one is resumed with trackers of its own."""
    own = folder / "fedexp" / name
    own.mkdir(parents=True)
    trackers = trackers_of(log, folder)
    trackers.begin(UNIT, own)
    for row in ROWS:
        if row["round"] == break_after:
            trackers = trackers_of(log, folder)
            trackers.begin(UNIT, own, first=break_after)
        trackers.row(row)
    trackers.end(SUMMARY)
    return own


@pytest.mark.parametrize("break_after", [None, 2])
def test_tensorboard_has_a_scalar_for_every_number(tmp_path, break_after):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    own = track("tensorboard", tmp_path, break_after=break_after)
    events = EventAccumulator(str(own / "tensorboard"))
    events.Reload()
    for key in ("test-accuracy", "server-step-size", "num-clients"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        wanted = [(row["round"], row[key]) for row in ROWS if row[key] is not None]
        assert found == [(step, pytest.approx(value)) for step, value in wanted]
    assert "failures" not in events.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")  # of MLflow and of what it stands on
def test_mlflow_has_a_run_for_every_unit(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my run"
    for name, break_after in ("whole", None), ("interrupted", 2):
        track("mlflow", folder, name=name, break_after=break_after)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("my run")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"fedexp/whole", "fedexp/interrupted"}
    assert len(runs) == 2
    for run in runs:
        assert run.info.status == "FAILED"
        assert run.data.params["settings"] == "learning-rate=0.1"
        assert run.data.metrics["summary/best-accuracy"] == 0.5
        for key in ("test-accuracy", "server-step-size"):
            found = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
            assert found == [(row["round"], row[key]) for row in ROWS if row[key] is not None]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_where_the_users_environment_says(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'theirs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    track("mlflow", tmp_path / "run")
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name("run") is not None
    assert not (tmp_path / "run" / "mlruns").exists()


_UNITS_OF_PROCESSES = """
import os, sys
from pathlib import Path
import mlflow  # once, before the processes part
import fedexp
from fedexp.runs.trackers import trackers_of
folder = Path(sys.argv[1])
name = next((name for name in "ab" if os.fork() == 0), "")
if name:
    own = folder / name
    own.mkdir(parents=True)
    trackers = trackers_of("mlflow", folder, sys.exit)
    trackers.begin({"strategy": name}, own)
    trackers.row({"round": 1, "test-accuracy": 0.5})
    trackers.end({})
else:
    sys.exit(any(os.wait()[1] for _ in "ab"))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_processes_beside_each_other_share_one_experiment_of_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-W", "ignore", "-c", _UNITS_OF_PROCESSES, str(tmp_path / "run")]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=300, text=True)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("run")
    names = {run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    assert names == {"a", "b"}


class Failing:
    """Breaks in its second row; counts the calls."""

    def __init__(self):
        self.calls = 0

    def begin(self, unit, folder, first=1):
        self.calls += 1

    def row(self, row):
        self.calls += 1
        if row["round"] == 2:
            raise OSError("disk full\nreally")

    def end(self, summary):
        self.calls += 1


def test_a_tracker_that_fails_is_heard_of_once_and_the_others_go_on(tmp_path):
    class Fine(Failing):
        def row(self, row):
            self.calls += 1

    failing, fine, said = Failing(), Fine(), []
    trackers = Trackers({"a": failing, "b": fine}, said.append)
    trackers.begin(UNIT, tmp_path)
    for row in ROWS:
        trackers.row(row)
    trackers.end(SUMMARY)
    assert said == ["--log a: OSError: disk full really. The run goes on."]
    assert (failing.calls, fine.calls) == (3, 5)


def test_no_names_no_trackers_and_an_unknown_one_is_named(tmp_path):
    trackers_of("", tmp_path).begin(UNIT, tmp_path)
    with pytest.raises(ValueError, match=r"Config\(log='wandb'\): unknown 'wandb'. Known: tensorb"):
        trackers_of("wandb", tmp_path)


def test_what_is_missing_is_said_with_the_line_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fedexp.extras.find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fedexp\[mlflow\]'"):
        trackers_of("mlflow", tmp_path)


def test_a_run_from_python_is_tracked_over_its_parts(tmp_path, undrawn):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    parts = {"num_clients": 4, "local_steps": 1, "engine": "serial", "strategy": "fedexp"}
    with fedexp.Simulation(**parts, out=tmp_path / "r", log="tensorboard") as simulation:
        simulation.run(rounds=1)
        run = simulation.run(rounds=2)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("test-accuracy")]
    assert found == [(row["round"], pytest.approx(row["test-accuracy"])) for row in run.metrics]
