"""Runs whose clients tune their learning rate: the flags, the engines, resuming, the picture."""

import pytest

from fedexp import cli
from fedexp.app import Run, client_config, optimizer_key, strategy_keys, strategy_of
from fedexp.config import Config
from fedexp.runs import unit_run as runs
from fedexp.runs.engines import grid_of
from fedexp.runs.reading import read_metrics

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = [
    *("--num-server-rounds", "3", "--num-clients", "8", "--fraction-train", "0.5"),
    *("--local-steps", "4", "--learning-rate", "0.02"),
]
SERIAL = ["--engine", "serial"]


def run(*flags):
    cli.main(["simulate", *map(str, flags)])


def rows(folder, keep=lambda key: not key.endswith("-seconds")):
    return [{k: v for k, v in row.items() if keep(k)} for row in read_metrics(folder)]


def test_an_entry_may_carry_its_local_optimizer():
    config = Config(strategy="fedavg,fedexp+hyperadam", local_optimizer="hypersgd")
    assert strategy_keys(config) == ["fedavg", "fedexp+hyperadam"]
    assert optimizer_key(config, "fedavg") == "hypersgd"
    assert optimizer_key(config, "fedexp+hyperadam") == "hyperadam"
    assert client_config(config, "fedexp+sgd")["local-optimizer"] == "sgd"


def test_the_defaults_compare_plain_clients_with_those_that_tune():
    plain = ["fedavg", "fedexp", "nesterovexp"]
    assert strategy_keys(Config()) == [*plain, "nesterovexp+hypersgd"]


def test_a_strategys_own_settings_for_clients_stay():
    assert strategy_of(Config(), "fedprox+hypersgd", 4).client_config["proximal-mu"] > 0


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--strategy", "fedavg+foo"], "local-optimizer='foo'"),
        (["--strategy", "foo+hypersgd"], "foo+hypersgd"),
        (["--local-optimizer", "sdg"], "local-optimizer='sdg'"),
        (["--hyper-learning-rate", "0"], "hyper-learning-rate"),
        (["--hyper-learning-rate", "1e9", "--strategy", "fedavg+hypersgd"], "1000000000"),
        (["--hyper-height", "0"], "hyper-height"),
        (["--hyper-between-rounds", "never"], "hyper-between-rounds"),
        (["--strategy", "scaffold+hypersgd"], "control variates"),
        (["--strategy", "fedavg+delta-sgd", "--weight-decay", "0.1"], "weight_decay=0.1"),
        (["--local-optimizer", "learned-step(every=0)"], "learned-step(every=0): must be"),
        (["--local-optimizer", "learned-step(steps=-1)"], "learned-step(steps=-1): must be"),
        (["--local-optimizer", "learned-step(steps=x)"], "learned-step(steps='x'): must be"),
        (["--local-optimizer", "learned-step(every=true)"], "learned-step(every=True): must be"),
        (["--local-optimizer", "learned-step(by=guess)"], "validation or training"),
        (["--local-optimizer", "learned-step(validation-fraction=1)"], "between 0 and 1"),
        (["--local-optimizer", "learned-step(objective=sum)"], "log or naive"),
        (["--local-optimizer", "learned-step(evry=5)"], "Did you mean 'every'?"),
        (["--strategy", "fedavg+learned-step", "--max-grad-norm", "1"], "max-grad-norm=1.0"),
        (["--strategy", "fedavg+learned-step", "--scheduler", "cosine"], "Use no scheduler"),
        (["--strategy", "fedavg+learned-step", "--learning-rate-decay", "0.9"], "decay=0.9"),
        (["--strategy", "scaffold+learned-step"], "control variates"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, word, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*flags, *SERIAL, "--out", tmp_path / "run")
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert word in error


def test_plain_and_tuning_clients_share_a_run_and_have_folders_of_their_own(tmp_path):
    run(*QUICK, *SERIAL, "--strategy", "fedexp,fedexp+hypersgd", "--out", tmp_path / "run")
    plain, tuned = (rows(tmp_path / "run" / key) for key in ("fedexp", "fedexp+hypersgd"))
    assert [row["learning-rate"] for row in plain] == pytest.approx([0.02] * 3)
    assert [row["learning-rate-std"] for row in plain] == [0.0] * 3
    assert all(row["learning-rate"] != 0.02 and row["learning-rate-std"] > 0 for row in tuned)


@pytest.mark.parametrize(
    ("name", "policy"), [("hypersgd", "carry"), ("hypersgd", "average"), ("adamw", "carry")]
)
def test_an_interrupted_run_goes_on_with_what_clients_carried(tmp_path, monkeypatch, name, policy):
    flags = [*QUICK, *SERIAL, "--strategy", f"fedexp+{name}", "--hyper-between-rounds", policy]
    run(*flags, "--out", tmp_path / "whole")
    row_of = runs.row_of

    def interrupted(round_):
        if round_.server_round == 3:
            raise KeyboardInterrupt
        return row_of(round_)

    monkeypatch.setattr(runs, "row_of", interrupted)
    with pytest.raises(SystemExit):
        run(*flags, "--out", tmp_path / "cut")
    monkeypatch.setattr(runs, "row_of", row_of)
    run("--resume", tmp_path / "cut")
    whole, cut = (rows(tmp_path / n / f"fedexp+{name}") for n in ("whole", "cut"))
    assert whole == cut


def test_delta_sgd_grows_where_noise_between_minibatches_once_stopped_it():
    config = Config(
        engine="serial",
        model="linear",
        local_optimizer="delta-sgd",
        hyper_between_rounds="average",
        learning_rate=0.1,
        num_server_rounds=5,
    )
    with grid_of(config) as grid:
        found = [r.train["learning-rate"] for r in Run(config, "fedavg", 50).rounds(grid)]
    # By a loop of its own, with both gradients of a step on one minibatch.
    assert found == pytest.approx([0.121, 0.146, 0.177, 0.214, 0.258], abs=6e-4)
