"""Whole runs in which clients are told an optimizer, a schedule and metrics."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from safetensors.torch import load_file
from torch import nn

import fedexp
from fedexp import app, cli
from fedexp.clients import module_arrays
from fedexp.clients.schedules import schedule
from fedexp.config import Config
from fedexp.records import to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedExP

pytestmark = pytest.mark.usefixtures("undrawn", "in_this_process")
ROUNDS = 4
QUICK = [
    *("--num-server-rounds", ROUNDS, "--num-clients", 6, "--fraction-train", 0.5),
    *("--local-steps", 3, "--engine", "serial"),
]


def run(folder, *flags, rate=0.02):
    own = ["--learning-rate", rate] if rate else []
    cli.main(["simulate", "--out", str(folder), *map(str, [*QUICK, *own, *flags])])


def rows(folder):
    (lines,) = [path.read_text().splitlines() for path in folder.rglob("metrics.jsonl")]
    return [json.loads(line) for line in lines]


def column(folder, name):
    return [row[name] for row in rows(folder)]


def untimed(folder):
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows(folder)]


def test_an_entry_may_carry_an_optimizer_of_torch_with_settings(tmp_path):
    run(tmp_path / "a", "--strategy", "fedexp+adamw(weight-decay=0.5)")
    run(tmp_path / "b", "--strategy", "fedexp+adamw", "--weight-decay", 0.5)
    run(tmp_path / "c", "--strategy", "fedexp", "--local-optimizer", "adamw")
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert column(tmp_path / "a", "test-loss") != column(tmp_path / "c", "test-loss")
    assert column(tmp_path / "a", "learning-rate") == pytest.approx([0.02] * ROUNDS)


def test_the_clients_follow_the_schedule_from_the_rate_of_their_optimizer(tmp_path):
    run(tmp_path / "a", "--strategy", "fedexp", "--scheduler", "cosine(eta-min=0.001)")
    expected = [0.001 + 0.019 * (1 + np.cos(np.pi * t / ROUNDS)) / 2 for t in range(ROUNDS)]
    assert column(tmp_path / "a", "learning-rate") == pytest.approx(expected)
    flags = ["--scheduler", "exponential(gamma=0.5)"]
    run(tmp_path / "b", "--strategy", "fedexp+adam(lr=0.4)", *flags, rate=None)
    assert column(tmp_path / "b", "learning-rate") == pytest.approx([0.4, 0.2, 0.1, 0.05])


def test_a_schedule_is_that_of_a_decay_of_the_same_factor(tmp_path):
    run(tmp_path / "a", "--strategy", "fedexp", "--scheduler", "exponential(gamma=0.5)")
    # The decay's first round is decayed already.
    run(tmp_path / "b", "--strategy", "fedexp", "--learning-rate-decay", 0.5, rate=0.04)
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")


def test_a_run_that_goes_on_has_the_rates_of_one_that_was_never_cut():
    config = Config(
        num_server_rounds=6, num_clients=4, scheduler="onecycle", local_steps=1, engine="serial"
    )
    grid = SerialGrid(app.client, 4, run_config=config.values())
    whole = [r.train["learning-rate"] for r in app.Run(config, "fedavg", 4).rounds(grid)]
    cut = [r.train["learning-rate"] for r in app.Run(config, "fedavg", 4).rounds(grid, 4)]
    assert cut == whole[3:]


BAD = {
    "unknown scheduler": (["--scheduler", "cosin"], "Did you mean 'cosine'"),
    "plateau": (["--scheduler", "ReduceLROnPlateau"], "Use cosine"),
    "two schedules": (
        ["--scheduler", "cosine", "--learning-rate-decay", 0.9],
        "learning-rate-decay=0.9 is a schedule too",
    ),
    "carried rates": (
        [
            *("--scheduler", "cosine", "--strategy", "fedavg+hypersgd"),
            *("--hyper-between-rounds", "carry"),
        ],
        "hyper-between-rounds='carry'",
    ),
    "range": (["--strategy", "fedavg+sgd(weight-decay=-1)"], "weight-decay=-1"),
    "sparse": (["--local-optimizer", "sparseadam"], "SparseAdam"),
    "muon": (["--local-optimizer", "torch.optim.Muon"], "Muon only supports 2D"),
    "unknown setting": (["--local-optimizer", "adamw(beta=1)"], "Did you mean 'betas'"),
    "unread flag": (
        ["--local-optimizer", "adamw", "--hyper-height", 2],
        "no chosen local optimizer reads hyper-height",
    ),
    "flag and bracket": (
        ["--local-optimizer", "sgd(weight-decay=0.1)", "--weight-decay", 0.2],
        "no chosen local optimizer reads weight-decay",
    ),
    "no decay": (["--local-optimizer", "rprop", "--weight-decay", 0.2], "weight_decay=0.2"),
    "control variates": (["--strategy", "scaffold+adam"], "control variates"),
    "unknown metric": (["--metrics", "f2"], "'f2' is no scorer"),
    "metric that is none": (["--metrics", "math:pi"], "math:pi is no function of outputs"),
    "metric that fails": (
        ["--metrics", "f1, json:dumps"],
        "metrics(dumps): fails on the test set: TypeError",
    ),
    "metric that is taken": (["--metrics", "accuracy"], "is reported already"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2_before_round_1(name, tmp_path, capsys):
    flags, word = BAD[name]
    default = [] if "--strategy" in flags else ["--strategy", "fedavg"]
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "run", *default, *flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert word in error
    assert not (tmp_path / "run").exists()


def test_metrics_of_the_server_and_of_the_clients_are_in_every_row(tmp_path):
    from sklearn.metrics import f1_score  # here, because it takes a second

    flags = ["--fraction-evaluate", 0.5, "--metrics", "f1, balanced-accuracy"]
    run(tmp_path, "--strategy", "fedexp", *flags)
    names = [
        f"{x}{y}" for x in ("test-", "mean-test-", "eval-") for y in ("f1", "balanced-accuracy")
    ]
    for row in rows(tmp_path):
        assert all(0 <= row[name] <= 1 for name in names)
    config = Config(strategy="fedexp")
    module = app.model_of(config)
    module.load_state_dict(load_file(next(tmp_path.rglob("model.safetensors"))))
    inputs, targets = app.dataset_of(config).test
    predicted = module(inputs).argmax(1)
    expected = f1_score(targets, predicted, average="macro")
    assert rows(tmp_path)[-1]["test-f1"] == pytest.approx(expected)


def test_any_strategy_of_flower_hands_on_the_train_config():
    config = Config(num_clients=3, local_steps=1)
    for strategy in (
        FlowerFedAvg(fraction_evaluate=0.0, min_available_nodes=2),
        FedExP(fraction_evaluate=0.0),
    ):
        grid = SerialGrid(app.client, 3, run_config=config.values())
        start = to_record(module_arrays(app.model_of(config)))
        rates = schedule("step(step-size=1, gamma=0.5)", 3, 0.4)
        found = rounds(strategy, grid, start, num_rounds=3, train_config=rates.settings)
        assert [r.train["learning-rate"] for r in found] == pytest.approx([0.4, 0.2, 0.1])


SMALL = {"dataset": "digits", "num_clients": 4, "num_server_rounds": 4, "local_steps": 2}


def test_objects_do_in_python_what_text_does():
    from sklearn.metrics import f1_score

    text = fedexp.Simulation(
        optimizer="adamw(weight-decay=0.1, lr=0.02)",
        scheduler="step(step-size=2)",
        metrics="f1",
        **SMALL,
    )
    objects = fedexp.Simulation(
        optimizer=partial(torch.optim.AdamW, weight_decay=0.1, lr=0.02),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        metrics={"f1": lambda x, y: f1_score(y, x.argmax(1), average="macro")},
        **SMALL,
    )
    expected, found = (
        [[row[k] for k in ("test-loss", "test-f1", "learning-rate")] for row in sim.run().metrics]
        for sim in (text, objects)
    )
    assert [rate for _, _, rate in found] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert found == [pytest.approx(row, rel=1e-5) for row in expected]


def test_a_schedule_goes_before_the_rate_of_a_strategy_and_of_its_entry():
    for strategy in ("fedexp+sgd(lr=0.3)", FedExP(client_config={"learning-rate": 0.9})):
        sim = fedexp.Simulation(
            strategy=strategy, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2), **SMALL
        )
        first, *_, last = [row["learning-rate"] for row in sim.run().metrics]
        assert last == pytest.approx(first / 10)


def fixed(params):
    return torch.optim.SGD(params, lr=0.1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"optimizer": fixed, "scheduler": "cosine"}, "fixed takes no learning rate"),
        ({"scheduler": torch.optim.lr_scheduler.StepLR}, "needs step-size"),
        (
            {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR, "learning_rate_decay": 0.9},
            "learning-rate-decay=0.9 is a schedule too",
        ),
        ({"metrics": {"none": lambda x, y: None}}, r"metrics\(none\): fails on the test set"),
        ({"optimizer": torch.optim.SparseAdam}, "SparseAdam fails.*another local optimizer"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, "not AdamW"),
    ],
)
def test_objects_that_cannot_be_are_refused_before_a_round(given, reason):
    with pytest.raises(ValueError, match=reason):
        fedexp.Simulation(**SMALL, **given)
