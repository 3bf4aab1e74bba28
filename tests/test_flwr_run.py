"""The same apps under Flower's own runtime, started and stopped here."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation_superlink import flwr, simulation_superlink, statuses

from fedexp.config import Config
from fedexp.runs.folder import begin
from fedexp.runs.study import Study
from fedexp.simulation.faults import Faults
from fedexp.strategies.sampling import sample

ROOT = Path(__file__).parents[1]
ORDERED = "drop=0.29, nan=0.05, garbage=0.16, scale=0.14, crash=0.07"
DEVICES = "local-steps=uniform(5, 9)"
FAULTS = f"faults='{ORDERED}' client-profiles='{DEVICES}'"


@pytest.fixture
def superlink(tmp_path):
    with simulation_superlink(tmp_path) as env:
        yield env


@pytest.mark.deploy
def test_flwr_run_trains_fedexp_and_agrees_with_the_serial_grid(superlink, tmp_path):
    out = tmp_path / "out"
    run = flwr(
        superlink,
        *("run", ROOT / "flower_app", "--stream"),
        *(
            "--federation-config",
            "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=1",
        ),
        *("-c", f"num-server-rounds=3 fraction-train=0.5 out='{out}' {FAULTS}"),
    )
    assert run.returncode == 0, run.stderr
    assert statuses(superlink) == {"fedexp-digits": "finished:completed"}, run.stdout[-3000:]
    theirs = load_file(out / "fedexp" / "model.safetensors")

    config = Config(
        strategy="fedexp",
        num_clients=4,
        num_server_rounds=3,
        fraction_train=0.5,
        engine="serial",
        robust=True,
        faults=ORDERED,
        client_profiles=DEVICES,
    )
    faults = Faults.of(ORDERED)
    cohorts = {r: sample(range(4), 2, seed=0, server_round=r, use="train") for r in (1, 2, 3)}
    ordered = {faults.at(0, r, client) for r, cohort in cohorts.items() for client in cohort}
    assert ordered == {"", "nan", "scale", "crash"}
    begin(config, tmp_path / "serial")
    Study(config, {"fedexp": "fedexp"}, root=tmp_path / "serial").run()
    ours = load_file(tmp_path / "serial" / "fedexp" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-6)
