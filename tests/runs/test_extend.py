"""More rounds for a run that has ended: the same bits as a run that had so many from the start."""

import json
import shutil

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from kept import kept
from safetensors.numpy import load_file, save_file

import fedexp
from fedexp import cli

QUICK = [
    *("--engine", "serial", "--clients", 4, "--fraction-train", 0.5, "--local-steps", 2),
    *("--batch-size", 5),
]


def run(*flags):
    cli.main(["simulate", *map(str, (*QUICK, *flags))])


def resume(*flags):
    cli.main(["resume", *map(str, flags)])


NEVER = ("--vectorize", "off", "--timeout", 1e-9)
"""No client answers in time."""


def refused(capsys, call, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(*flags)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


pytestmark = pytest.mark.usefixtures("undrawn")

KINDS = {
    "momentum, control variates, carried rates": (
        *("--strategy", "fedavgm, scaffold, fedadam(eta=0.03), fedexp+hypersgd"),
        *("--hyper-between-rounds", "carry"),
    ),
    "bounds, averaged rates": (
        *("--strategy", "fedexp, fedavg+hypersgd", "--robust", "--average", "last-2"),
        *("--hyper-between-rounds", "average"),
    ),
    "running quantities, clients that evaluate, a schedule of its own length": (
        *("--strategy", "fedexp", "--clip-quantile", 0.5, "--smoothing", 0.5),
        *("--fraction-evaluate", 0.5, "--scheduler", "step(step-size=1)"),
    ),
    "learned step sizes": (
        *("--strategy", "fedexp", "--local-optimizer", "learned-step(every=3, steps=2)"),
    ),
    "schedules of steps": (
        *("--strategy", "fedexp", "--learning-rate-exponent", 0.5),
        *("--augmentation", "noise(scale=0.5, exponent=0.3)"),
    ),
    "seeds and a sweep": (
        *("--strategy", "fedexp", "--seeds", "0,1", "--sweep", "learning-rate=0.1,0.3"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_as_one_that_had_them_from_the_start(kind, tmp_path):
    flags = KINDS[kind]
    run(*flags, "--rounds", 2, "--out", tmp_path / "short")
    resume(tmp_path / "short", "--rounds", 4)
    run(*flags, "--rounds", 4, "--out", tmp_path / "long")
    assert kept(tmp_path / "short") == kept(tmp_path / "long")


NAMED = "column:hospital"


def test_clients_with_names_are_asked_at_the_new_end_alone(tmp_path):
    lines = ["x,y,hospital", *(f"{i % 7},{i % 2},h{i % 3}" for i in range(60))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    data = ("--data", tmp_path / "d.csv", "--target", "y", "--client-from", NAMED)
    flags = [x for x in QUICK if x not in ("--clients", 4)]

    def own(rounds, out, *more):
        given = (*flags, *data, "--rounds", rounds, "--out", tmp_path / out, *more)
        cli.main(["simulate", *map(str, given)])

    for more in ([], ["--fraction-evaluate", "0.4"]):
        own(2, "short", "--strategy", "fedexp", "--overwrite", *more)
        resume(tmp_path / "short", "--rounds", 3)
        own(3, "long", "--strategy", "fedexp", "--overwrite", *more)
        assert kept(tmp_path / "short") == kept(tmp_path / "long")


def test_what_was_selected_stays_and_is_not_tuned_again(tmp_path):
    flags = ("--strategy", "fedavg,fedexp", "--select", "best-accuracy", "--tuning-seeds", "7")
    sweep = ("--sweep", "learning-rate=0.01,0.3")
    run(*flags, *sweep, "--rounds", 2, "--out", tmp_path / "r")
    tuning = {path: path.stat().st_mtime_ns for path in (tmp_path / "r/tuning").rglob("*.*")}
    about = json.loads((tmp_path / "r/fedexp/seed-0/unit.json").read_text())
    resume(tmp_path / "r", "--rounds", 3)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "r/tuning").rglob("*.*")}
    assert again == tuning
    point = ("--seeds", "0", "--learning-rate", about["settings"]["learning-rate"])
    run("--strategy", "fedavg,fedexp", *point, "--rounds", 3, "--out", tmp_path / "long")
    for name in ("fedavg/seed-0/model.safetensors", "fedexp/seed-0/model-mean.safetensors"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "short"
    run("--strategy", "fedexp", "--rounds", 2, "--out", folder)
    return folder


@pytest.fixture
def ended(short, tmp_path):
    return shutil.copytree(short, tmp_path / "r")


def test_an_extension_that_was_cut_short_goes_on(ended, tmp_path, monkeypatch):
    from fedexp.runs import recorder

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "after_round", interrupted)
        with pytest.raises(SystemExit):
            resume(ended, "--rounds", 4)
    resume(ended, "--rounds", 4)  # as many as before: it goes on
    run("--strategy", "fedexp", "--rounds", 4, "--out", tmp_path / "long")
    assert kept(ended) == kept(tmp_path / "long")


def test_a_unit_that_says_it_has_more_rounds_than_it_has_takes_them(ended):
    path = ended / "fedexp/unit.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "num-server-rounds": 3}))
    resume(ended, "--rounds", 3)
    assert len((ended / "fedexp/metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_that_has_ended_says_so_and_how_it_gets_more_rounds(ended, capsys):
    resume(ended)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("No round was left to run")]
    assert line.endswith(f"For more rounds: fedexp resume {ended} --rounds N")
    resume(ended, "--rounds", 3)
    assert "No round was left" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [1, 2])
def test_no_more_rounds_than_it_has_is_a_line(number, ended, capsys):
    before = kept(ended)
    assert "has 2 already. Name more" in refused(capsys, resume, ended, "--rounds", number)
    assert kept(ended) == before


def test_a_schedule_that_depends_on_the_number_of_rounds_is_refused(tmp_path, capsys):
    run("--strategy", "fedexp", "--scheduler", "cosine", "--rounds", 2, "--out", tmp_path / "r")
    line = refused(capsys, resume, tmp_path / "r", "--rounds", 4)
    assert "scheduler='cosine'" in line
    assert "depends on how many there are. Start a new run" in line
    (tmp_path / "r" / "environment.json").unlink()  # then only the checkpoint knows
    config = tmp_path / "r" / "config.toml"
    text = config.read_text()
    assert "\nnum-server-rounds = 2\n" in text
    config.write_text(text.replace("\nnum-server-rounds = 2\n", "\nnum-server-rounds = 4\n"))
    assert refused(capsys, resume, tmp_path / "r") == line


def test_a_strategy_that_gave_up_is_refused(tmp_path, capsys):
    flags = ("--strategy", "fedexp", "--max-failed-rounds", 2, "--rounds", 4, *NEVER)
    with pytest.raises(SystemExit):
        run(*flags, "--out", tmp_path / "r")
    line = refused(capsys, resume, tmp_path / "r", "--rounds", 6)
    assert "no round of 2 succeeded" in line
    assert "Start a new run" in line


def test_a_run_that_was_stopped_is_refused(tmp_path, capsys):
    folder = tmp_path / "r"
    parts = {"num_clients": 4, "local_steps": 1, "num_server_rounds": 4, "out": folder}
    fedexp.simulate(strategy="fedexp", engine="serial", stop=lambda row: row["round"] == 2, **parts)
    line = refused(capsys, resume, folder, "--rounds", 6)
    assert "was stopped in round 2 of 4" in line


def test_a_run_that_has_not_selected_is_refused(tmp_path, capsys):
    flags = ("--strategy", "fedexp", "--select", "best-accuracy", "--rounds", 1)
    run(*flags, "--sweep", "learning-rate=0.01,0.3", "--out", tmp_path / "r")
    next((tmp_path / "r/tuning").rglob("summary.json")).unlink()
    assert "has not selected yet" in refused(capsys, resume, tmp_path / "r", "--rounds", 2)


class Momentum(FlowerFedAvg):
    """Remembers what no checkpoint knows of."""

    def aggregate_train(self, server_round, replies):
        self.state = getattr(self, "state", {})
        self.state["rounds"] = self.state.get("rounds", 0) + 1
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(
    "strategy", ["flwr.serverapp.strategy:FedAvgM(server-momentum=0.5)", f"{__name__}:Momentum"]
)
def test_a_strategy_of_flowers_starts_again_and_says_so(strategy, tmp_path, logged):
    run("--strategy", strategy, "--rounds", 2, "--out", tmp_path / "short")
    assert not logged
    resume(tmp_path / "short", "--rounds", 3)
    assert "has no checkpoint, it starts again from round 1" in "".join(logged)
    run("--strategy", strategy, "--rounds", 3, "--out", tmp_path / "long")
    assert kept(tmp_path / "short") == kept(tmp_path / "long")


def test_an_older_run_without_a_checkpoint_starts_again_and_says_so(ended, tmp_path, logged):
    (ended / "fedexp/checkpoint.safetensors").unlink()
    (ended / "fedexp/checkpoint-before.safetensors").unlink()
    resume(ended, "--rounds", 3)
    assert "starts again from round 1" in "".join(logged)
    run("--strategy", "fedexp", "--rounds", 3, "--out", tmp_path / "long")
    assert kept(ended) == kept(tmp_path / "long")


# --- a model to start from


def test_a_run_starts_from_the_model_of_another(ended, tmp_path):
    """No client answers in time, so that the model stays."""
    saved = ended / "fedexp/model.safetensors"
    flags = ("--strategy", "fedavg", "--rounds", 1, *NEVER, "--initial-model", saved)
    with pytest.raises(SystemExit):
        run(*flags, "--out", tmp_path / "new")
    got = load_file(tmp_path / "new/fedavg/model.safetensors")
    expected = load_file(saved)
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(got[name], x)


def first(arrays):
    return next(iter(arrays))


BAD = {
    "missing": (None, "cannot be read"),
    "damaged": (lambda x: b"\x00" * 40, "cannot be read"),
    "another model": (lambda x: {"other": np.zeros(3, np.float32)}, "another model"),
    "other shapes": (lambda x: {**x, first(x): np.zeros((2, 3), np.float32)}, "shape"),
    "another dtype": (lambda x: {**x, first(x): x[first(x)].astype(np.float64)}, "is float64"),
    "not finite": (lambda x: {**x, first(x): np.full_like(x[first(x)], np.nan)}, "NaN"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_model_that_does_not_fit_is_one_line(kind, short, tmp_path, capsys):
    change, said = BAD[kind]
    path = tmp_path / "m.safetensors"
    if change:
        new = change(load_file(short / "fedexp/model.safetensors"))
        path.write_bytes(new) if isinstance(new, bytes) else save_file(new, path)
    assert said in refused(capsys, run, "--initial-model", path, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_run_does_not_go_on_from_another_model_or_other_data(short, tmp_path, capsys):
    model, folder = tmp_path / "m.safetensors", tmp_path / "r"
    shutil.copy(short / "fedexp/model.safetensors", model)
    run("--rounds", 1, "--strategy", "fedexp", "--initial-model", model, "--out", folder)
    shutil.copy(short / "fedexp/model-mean.safetensors", model)
    assert "has changed since" in refused(capsys, resume, folder, "--rounds", 2)
    path = shutil.copytree(short, tmp_path / "other") / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": "of other data"}))
    assert "'digits' has changed since" in refused(capsys, resume, tmp_path / "other")
