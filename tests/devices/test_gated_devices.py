"""Provision, serve, devices and a run, as a user has them: through the gate."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sites import new_site
from superlinks import ENVIRONMENT, ROOT, wait_for

from fedexp.devices import Link, serving, submit
from fedexp.devices.data_description import DataDescription

pytestmark = pytest.mark.deploy
APP = ROOT / "tests" / "devices" / "deployed_app"


def test_devices_train_through_the_gate(tmp_path):
    site = new_site(tmp_path / "site", "anna", "bob")
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    devices, out = [], tmp_path / "out"
    out.mkdir()
    for p, name in enumerate(("anna", "bob")):
        rng = np.random.default_rng(p)
        data = {"x": rng.normal(size=(8, 6)).astype("f"), "y": rng.integers(0, 3, 8)}
        np.savez(tmp_path / f"{p}.npz", **data)
        command = ["device", str(tmp_path / "site" / "nodes" / name)]
        command += ["--data", str(tmp_path / f"{p}.npz"), "--app", "fedexp.devices.linear:client"]
        with (tmp_path / f"{name}.log").open("wb") as log:
            devices.append(
                subprocess.Popen(
                    [sys.executable, "-m", "fedexp", *command], env=environment, stderr=log
                )
            )
    try:
        with serving(site, environment=ENVIRONMENT):  # after the devices, which wait for it
            described = DataDescription((6,), num_classes=3).text()
            config = {"out": str(out), "description": described, "num-devices": 2}
            submit.start_run(APP, Link.to(site), config)
            wait_for((out / "model.npz").exists, 120, log=tmp_path / "anna.log")
            for device in devices:
                device.send_signal(signal.SIGTERM)
            assert [device.wait(20) for device in devices] == [0, 0]
    finally:
        for device in devices:
            device.kill()
            device.wait()
    assert 'failures": []' in (out / "rounds.jsonl").read_text()
    assert Path(out / "model.npz").stat().st_size > 0
