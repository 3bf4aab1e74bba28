"""Robustness options as flags and run-config keys, and what a deployed server does by default."""

import json

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from fedexp import app, cli
from fedexp.config import Config
from fedexp.simulation import SerialGrid
from fedexp.strategies import FixedClip, MedianBounds, QuantileClip

pytestmark = pytest.mark.usefixtures("undrawn")
SMALL = {"num-clients": 4, "num-server-rounds": 2, "local-steps": 2, "strategy": "fedexp"}


@pytest.mark.parametrize(
    ("given", "attribute", "expected"),
    [
        ({}, "bounds", None),
        ({}, "clip", None),
        ({}, "drop_beyond", None),
        ({"robust": True}, "bounds", MedianBounds()),
        ({"clip": 2.0}, "clip", FixedClip(2.0)),
        ({"clip-quantile": 0.8}, "clip", QuantileClip(quantile=0.8)),
        ({"clip": 2.0, "clip-quantile": 0.8}, "clip", QuantileClip(2.0, 0.8)),
        ({"drop-beyond": 3.0}, "drop_beyond", 3.0),
        ({"buffers": "keep"}, "buffers", "keep"),
    ],
)
@pytest.mark.parametrize("key", ["fedavg", "fedexp", "fedadam", "scaffold", "fedhyper"])
def test_every_option_reaches_the_strategy(given, attribute, expected, key):
    strategy = app.strategy_of(Config.of(given), key, 4)
    assert getattr(strategy, attribute) == expected


def test_relaxation_and_cap_reach_the_step():
    config = Config(relaxation=0.5, max_step_size=2.0)
    step = app.strategy_of(config, "fedexp", 4).optimizer.step_size
    assert (step.max_step_size, step.step_size.factor) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robust", "--clip", "1"], "both bound updates. Use one."),
        (["--drop-beyond", "0.5"], "FedOpt(drop_beyond=0.5): must be >= 1"),
        (["--buffers", "drop"], "Config(buffers='drop')"),
    ],
)
def test_what_does_not_go_together_is_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["simulate", *flags, "--engine", "serial", "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_robust_alone_is_a_flag_and_off_without(tmp_path):
    common = [x for k, v in SMALL.items() for x in (f"--{k}", str(v))]
    for name, flags in {"plain": [], "robust": ["--robust"]}.items():
        out = str(tmp_path / name)
        cli.main(["simulate", *common, *flags, "--engine", "serial", "--out", out])
        rows = (tmp_path / name / "fedexp" / "metrics.jsonl").read_text().splitlines()
        assert ("num-clipped" in json.loads(rows[0])) == (name == "robust")


@pytest.mark.parametrize("given", [{}, {"robust": False}, {"robust": True}])
def test_a_deployed_server_is_robust_unless_told_not_to_be(given, tmp_path):
    values = Config.of(SMALL | {"out": str(tmp_path / "deployed")}).values()
    del values["robust"]
    context = Context(1, 1, {}, RecordDict(), values | given)
    app.server(SerialGrid(app.client, 4, run_config=values | given), context)
    config = Config.of(SMALL | {"robust": given.get("robust", True)})
    run = app.Run(config, "fedexp", 4)
    for _ in run.rounds(SerialGrid(app.client, 4, run_config=config.values())):
        pass
    run.save(tmp_path / "simulated")
    ours, theirs = (
        load_file(tmp_path / folder / "model.safetensors")
        for folder in ("deployed/fedexp", "simulated")
    )
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_medians_are_in_the_checkpoint(tmp_path, monkeypatch):
    flags = [x for k, v in (SMALL | {"num-server-rounds": 4}).items() for x in (f"--{k}", str(v))]
    flags += ["--robust", "--engine", "serial", "--out"]
    cli.main(["simulate", *flags, str(tmp_path / "whole")])
    rounds, saved = app.Run.rounds, app.Run.rounds

    def cut(run, grid, first=1):
        for round_ in rounds(run, grid, first):
            yield round_
            if round_.server_round == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(app.Run, "rounds", cut)
    with pytest.raises(SystemExit):
        cli.main(["simulate", *flags, str(tmp_path / "cut")])
    monkeypatch.setattr(app.Run, "rounds", saved)
    cli.main(["simulate", "--resume", str(tmp_path / "cut")])
    whole, resumed = (
        load_file(tmp_path / name / "fedexp" / "model.safetensors") for name in ("whole", "cut")
    )
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
