"""The same apps under Flower's own runtime, started and stopped here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedexp.config import Config
from fedexp.runs.folder import begin
from fedexp.runs.study import Study

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def superlink(tmp_path):
    """A SuperLink of our own: its FLWR_HOME, its port, ended with all it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    env = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = [BIN / "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    with open(tmp_path / "superlink.log", "w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield env
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(url, process, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert process.poll() is None, "the SuperLink ended"
            assert time.monotonic() < end, "the SuperLink did not answer"
            time.sleep(0.2)


def _flwr(env, *args):
    return subprocess.run(
        [BIN / "flwr", *map(str, args)], env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.deploy
def test_flwr_run_trains_fedexp_and_agrees_with_the_serial_grid(superlink, tmp_path):
    run = _flwr(
        superlink,
        *("run", ROOT / "flower_app", "--stream"),
        *("--federation-config", "num-supernodes=4 client-resources-num-cpus=1"),
        *("-c", f"num-server-rounds=3 fraction-train=0.5 out='{tmp_path / 'out'}'"),
    )
    assert run.returncode == 0, run.stderr
    status = json.loads(_flwr(superlink, "list", "--format", "json").stdout)["runs"][0]["status"]
    assert status == "finished:completed", run.stdout[-3000:]
    theirs = load_file(tmp_path / "out" / "fedexp" / "model.safetensors")

    config = Config(
        strategy="fedexp",
        num_clients=4,
        num_server_rounds=3,
        fraction_train=0.5,
        engine="serial",
        robust=True,
    )
    begin(config, tmp_path / "serial")
    Study(config, {"fedexp": "fedexp"}, root=tmp_path / "serial").run()
    ours = load_file(tmp_path / "serial" / "fedexp" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-6)
