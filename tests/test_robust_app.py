"""Robustness options as flags and run-config keys, and what a deployed server does by default."""

import json

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from fedexp import app, cli
from fedexp.config import ROBUST_IS_OFF, Config
from fedexp.flags import config_of
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


@pytest.mark.parametrize("where", ["privacy", "strategy"])
def test_a_deployed_server_that_is_asked_for_privacy_is_not_robust_and_says_so(where, monkeypatch):
    privacy = "central(noise-multiplier=8)"
    given = (
        {"privacy": privacy} if where == "privacy" else {"strategy": f"fedavg(privacy={privacy})"}
    )
    values = {"num-clients": 4, "num-server-rounds": 1, "local-steps": 1, "strategy": "fedavg"}
    grid = SerialGrid(app.client, 4, run_config=values | given)
    said = []
    monkeypatch.setattr(app, "log", lambda level, text, *args: said.extend([text, str(args)]))
    app.server(grid, Context(1, 1, {}, RecordDict(), values | given))
    assert said.count(ROBUST_IS_OFF) == 1
    assert "'privacy-epsilon': " in said[-1]
    # A Flower app's run config has every key.
    app.server(grid, Context(1, 1, {}, RecordDict(), values | given | {"robust": True}))
    assert said.count(ROBUST_IS_OFF) == 2
    app.server(grid, Context(1, 1, {}, RecordDict(), values | given | {"robust": False}))
    assert said.count(ROBUST_IS_OFF) == 2


def test_a_default_gives_way_to_privacy_on_the_command_line_too(tmp_path):
    defaults = {"robust": True, "fraction-train": 1.0}
    file = tmp_path / "run.toml"
    file.write_text('privacy = "local(clip=1)"', encoding="utf-8")
    for values, robust in (
        ({}, True),
        ({"config": str(file)}, False),
        ({"config": str(file), "robust": True}, True),
        ({"strategy": "fedexp(clip=1, privacy=central)"}, False),
    ):
        assert config_of(values, defaults)[0].robust is robust
    assert not config_of({})[0].robust


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
