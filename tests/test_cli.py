import io
import json
import logging
import sys
import tomllib

import numpy as np
import pytest

from fedexp import cli

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = [
    "--engine",
    "serial",
    "--num-server-rounds",
    "3",
    "--num-clients",
    "8",
    "--local-steps",
    "2",
]


def run(*flags):
    cli.main(["simulate", *map(str, flags)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(path):
    return [{k: v for k, v in row.items() if not k.endswith("-seconds")} for row in lines(path)]


def test_a_run_leaves_its_files_and_prints_its_table(tmp_path, capsys, drawn):
    out = tmp_path / "run"
    run(*QUICK, "--out", out)
    assert tomllib.loads((out / "config.toml").read_text())["num-clients"] == 8
    assert json.loads((out / "environment.json").read_text())["packages"]["flwr"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for key in ("fedavg", "fedexp"):
        rows = lines(out / key / "metrics.jsonl")
        assert [row["round"] for row in rows] == [1, 2, 3]
        assert {
            *("round", "train-loss", "test-loss", "test-accuracy", "server-step-size"),
            *("num-clients", "num-failures", "round-seconds"),
        } <= rows[0].keys()
        assert (out / key / "model.safetensors").exists()
        assert json.loads((out / key / "summary.json").read_text())["num-rounds"] == 3
        assert (out / key / "checkpoint.safetensors").exists()  # for more rounds
    printed = capsys.readouterr().out
    assert "fedexp" in printed
    assert str(out) in printed.replace("\n", "")


@pytest.mark.parametrize("average", ["last-2", "ema-0.7"])
def test_each_saved_model_has_the_score_that_is_reported_for_it(average, tmp_path):
    """By a network written here, on the test set, so that no code of the library is believed."""
    from safetensors.numpy import load_file
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    _, x, _, y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    strategies = "fedavg,fedexp,nesterovexp"
    run(*QUICK, "--strategy", strategies, "--average", average, "--out", tmp_path / "run")
    for key in strategies.split(","):
        folder = tmp_path / "run" / key
        row = lines(folder / "metrics.jsonl")[-1]
        summary = json.loads((folder / "summary.json").read_text())
        for file, prefix in (("model", ""), ("model-mean", "mean-")):
            w = load_file(folder / f"{file}.safetensors")
            hidden = np.maximum(x / 16 @ w["1.weight"].T + w["1.bias"], 0)
            z = hidden @ w["3.weight"].T + w["3.bias"]
            z -= z.max(1, keepdims=True)
            loss = np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y])
            accuracy = np.mean(z.argmax(1) == y)
            assert row[f"{prefix}test-loss"] == pytest.approx(loss, rel=1e-4)
            assert row[f"{prefix}test-accuracy"] == pytest.approx(accuracy, abs=1e-6)
            assert summary[f"{prefix}final-accuracy"] == row[f"{prefix}test-accuracy"]
        assert summary["average"] == average
        assert row["test-loss"] != row["mean-test-loss"]


def test_one_seed_gives_one_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*QUICK, "--strategy", "fedexp", "--seed", seed, "--out", tmp_path / name)
    a, b, c = (without_times(tmp_path / n / "fedexp" / "metrics.jsonl") for n in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("strategy", "average"),
    [("fedexp", "last-2"), ("fedexp", "last-3"), ("nesterovexp", "ema-0.7")],
)
def test_an_interrupted_run_resumes_to_the_same_bits(strategy, average, tmp_path, monkeypatch):
    from fedexp.runs import unit_run as runs

    flags = [*QUICK, "--strategy", strategy, "--average", average, "--out"]
    run(*flags, tmp_path / "whole")
    row_of = runs.row_of

    def interrupted(round_):
        if round_.server_round == 2:
            raise KeyboardInterrupt
        return row_of(round_)

    monkeypatch.setattr(runs, "row_of", interrupted)
    with pytest.raises(SystemExit) as caught:
        run(*flags, tmp_path / "cut")
    assert caught.value.code == 130
    assert len(lines(tmp_path / "cut" / strategy / "metrics.jsonl")) == 1
    monkeypatch.setattr(runs, "row_of", row_of)
    run("--resume", tmp_path / "cut")
    whole, cut = (tmp_path / name / strategy for name in ("whole", "cut"))
    assert without_times(whole / "metrics.jsonl") == without_times(cut / "metrics.jsonl")
    for name in ("model.safetensors", "model-mean.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('num-clients = 8\nlocal-steps = 2\nengine = "serial"\nstrategy = "fedavg"\n')
    run("--config", file, "--num-server-rounds", 1, "--num-clients", 6, "--out", tmp_path / "out")
    config = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert (config["num-clients"], config["local-steps"]) == (6, 2)


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "fedfoo"],
        ["--dataset", "nothing"],
        ["--partitioner", "natural"],
        ["--model", "transformer"],
        ["--no-such-key", "1"],
        ["--epsilon", "-1"],
        ["--num-clients", "5000"],
        ["--fraction-train", "1.5"],
        ["--fraction-train", "0.5", "--strategy", "fedbb"],
        ["--config", "nowhere.toml"],
        ["--num-gpus", "64"],
        ["--config", "no\nwhere.toml"],
        ["--seed", str(2**63)],
        ["--partitioner", "nosuch", "--num-clients", "5"],
        ["--dataset", "nosuch", "--data-dir", "x"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*flags, "--out", tmp_path / "run")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert flags[1].replace("\n", "\\n") in error or flags[0].lstrip("-") in error


def test_a_folder_in_use_is_kept_unless_it_is_an_old_run_to_overwrite(tmp_path, capsys):
    (tmp_path / "precious").write_text("keep")
    with pytest.raises(SystemExit):
        run(*QUICK, "--out", tmp_path, "--overwrite")
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_round_in_which_every_client_fails_is_recorded_as_failed(tmp_path):
    flags = ["--learning-rate", "1e30", "--strategy", "fedavg", "--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as caught:
        run(*QUICK, *flags)
    assert caught.value.code == 1
    first = lines(tmp_path / "run" / "fedavg" / "metrics.jsonl")[0]
    assert first["failed"]
    assert (first["num-clients"], first["num-failures"], first["train-loss"]) == (0, 1, None)


def test_a_partition_is_printed_and_drawn(tmp_path, capsys, drawn):
    flags = ["--partitioner", "shards", "--num-clients", "5", "--out", str(tmp_path)]
    cli.main(["partition", *flags])
    printed = capsys.readouterr().out
    assert "5 clients, 28" in printed
    assert "heterogeneity" in printed
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_partition_says_of_own_data_has_no_escape_codes(tmp_path, monkeypatch, capsys):
    (handler,) = logging.getLogger("flwr").handlers
    monkeypatch.setattr(handler, "stream", io.StringIO())
    monkeypatch.setattr(handler, "colored", True)  # as Flower makes it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("age,sick\n" + "1,no\n2,yes\n" * 5)
    cli.main(["partition", "--data", "a.csv", "--target", "sick", "--clients", "2"])
    assert "in sorted order no, yes" in handler.stream.getvalue()
    assert "\x1b" not in handler.stream.getvalue() + capsys.readouterr().out


def test_a_run_keeps_the_picture_of_its_partition_and_evaluates_clients(tmp_path, capsys):
    evaluated = ["--fraction-evaluate", "1", "--local-test-fraction", "0.2"]
    run(*QUICK, *evaluated, "--strategy", "fedexp", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "partition.png").exists()
    row = lines(tmp_path / "run" / "fedexp" / "metrics.jsonl")[-1]
    assert 0 <= row["eval-accuracy-worst-tenth"] <= row["eval-accuracy"] <= 1
    assert row["eval-accuracy-std"] >= 0
    printed = capsys.readouterr().out
    assert "client examples round fedexp" in " ".join(printed.split())


def test_a_regression_has_sizes_to_show(tmp_path, capsys, drawn):
    flags = ["--dataset", "synthetic-regression", "--partitioner", "natural", "--num-clients", "0"]
    cli.main(["partition", *flags, "--out", str(tmp_path)])
    assert "20 clients, 30 to 30 examples\n" in capsys.readouterr().out
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num-workers", "9999"], "num_workers=9999"),
        (["--ray-address", "127.0.0.1:1"], "no cluster answers"),
        (["--device", "nonsense"], "device='nonsense'"),
        (["--strategy", "fedexp, fedexp"], "twice"),
        (["--learning-rate", "inf"], "finite"),
        (["--resume", "x", "--seed", "2"], "--resume takes no other flag, --seed"),
    ],
)
def test_what_would_fail_in_round_one_is_said_before(flags, said, tmp_path, capsys):
    own = [] if "--resume" in flags else ["--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as caught:
        run(*flags, *own)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_without_ray_clients_run_one_by_one_and_a_line_says_so(monkeypatch, logged):
    import sys

    from fedexp import extras
    from fedexp.config import Config
    from fedexp.runs.engines import grid_of
    from fedexp.simulation import SerialGrid

    for name in ("grid", "workers", "cluster"):
        monkeypatch.delitem(sys.modules, f"fedexp.simulation.ray.{name}", raising=False)
    find_spec = extras.find_spec
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "ray" else find_spec(name)
    )
    with grid_of(Config(num_clients=5, engine="ray")) as grid:
        assert isinstance(grid, SerialGrid)
    assert any("pip install 'fedexp[simulation]'" in line for line in logged)


@pytest.mark.parametrize("where", ["import", "function", "forward"])
def test_a_model_that_ends_the_program_is_no_success(where, tmp_path, monkeypatch, capsys):
    end = "raise SystemExit(0)"
    (tmp_path / f"ends_in_{where}.py").write_text(
        "from torch import nn\n"
        + (f"{end}\n" if where == "import" else "")
        + "class Own(nn.Linear):\n"
        + f"    def forward(self, x): {end}\n"
        + f"def make(shape, num_outputs): {end if where == 'function' else 'return Own(2, 2)'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(*QUICK, "--model", f"ends_in_{where}:make", "--out", tmp_path / "run")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "SystemExit" in error or "sys.exit" in error


@pytest.mark.parametrize("error", [RuntimeError("of\ntwo lines"), KeyError("x"), SystemExit(0)])
def test_whatever_ends_a_run_is_one_line_and_exit_code_1(error, tmp_path, monkeypatch, capsys):
    from fedexp.runs import federation

    def raises(*_):
        raise error

    monkeypatch.setattr(federation, "test_evaluation", lambda config: raises)
    with pytest.raises(SystemExit) as caught:
        run(*QUICK, "--strategy", "fedavg", "--out", tmp_path / "run")
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert type(error).__name__ in said
    assert "fedexp resume" in said


def test_ray_that_does_not_start_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    ray = pytest.importorskip("ray")

    def init(**_):
        raise Exception("The current node timed out.\nMore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SystemExit) as caught:
        run("--engine", "ray", "--num-clients", 5, "--out", tmp_path / "run")
    assert caught.value.code == 1
    assert "Ray does not start: The current node timed out." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_extended_by_its_folder_to_the_same_bits(tmp_path, capsys):
    flags = [*QUICK[:2], *QUICK[4:], "--strategy", "fedexp", "--out"]
    run("--rounds", 3, *flags, tmp_path / "long")
    run("--rounds", 2, *flags, tmp_path / "short")
    cli.main(["resume", str(tmp_path / "short"), "--rounds", "3"])
    long, short = (tmp_path / name / "fedexp" for name in ("long", "short"))
    assert without_times(long / "metrics.jsonl") == without_times(short / "metrics.jsonl")
    assert (long / "model.safetensors").read_bytes() == (short / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as caught:
        cli.main(["resume", str(tmp_path / "short"), "--rounds", "1"])
    assert caught.value.code == 2
    assert "--rounds 1: " in capsys.readouterr().err


def test_several_seeds_are_a_line_of_the_table(tmp_path, capsys):
    run(*QUICK, "--strategy", "fedavg", "--seeds", "0,1", "--out", tmp_path / "run")
    printed = capsys.readouterr().out
    assert "fedavg seed 1: round 3 of 3" in printed
    assert "over 2 seeds" in printed.replace("\n", " ")


def test_a_page_over_several_runs_goes_where_it_is_told(tmp_path, capsys):
    for name in "ab":
        run(*QUICK, "--strategy", "fedavg", "--out", tmp_path / name)
    folders = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", *folders])
    assert caught.value.code == 2
    assert "--out is missing" in capsys.readouterr().err
    cli.main(["report", *folders, "--out", str(tmp_path / "both")])
    page = tmp_path / "both" / "report.html"
    assert capsys.readouterr().out == f"Report: {page}\n"
    assert "<html" in page.read_text()


def test_a_module_of_the_working_directory_is_found_by_the_installed_command(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def half(statistics, direction, state):\n    return 0.5, state\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    run(*QUICK, "--strategy", "mine:half", "--out", "run")
    del sys.modules["mine"]
    (summary,) = (tmp_path / "run").glob("*half/summary.json")
    assert json.loads(summary.read_text())["mean-server-step-size"] == 0.5


def test_the_commands_are_in_one_column(capsys):
    cli.main(["help"])
    told = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()[: len(cli.COMMANDS)]
    starts = {line.index(x.line) for line, x in zip(told, cli.COMMANDS.values(), strict=True)}
    assert len(starts) == 1
