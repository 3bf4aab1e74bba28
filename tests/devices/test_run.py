"""`fedexp run` on a served site: real processes, sockets and certificates on loopback."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sites import free_port, new_site, until

import fedexp
from fedexp.cli import main
from fedexp.config import Config
from fedexp.devices import serving, submit
from fedexp.factories import dataset_of, partition_of

pytestmark = [pytest.mark.deploy, pytest.mark.slow]
NAMES = ("anna", "bob", "clinic")
FEDEXP = [sys.executable, "-m", "fedexp"]
HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{HERE}:{HERE.parents[1]}",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
DATA = {"partitioner": "iid", "num-clients": 3, "local-steps": 10, "seed": 4}
FLAGS = ["--local-steps", "10", "--seed", "4", "--min-nodes", "3"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A site of three devices that nobody has started, each with a third of digits."""
    folder = tmp_path_factory.mktemp("devices")
    config = Config.of(DATA)
    data, parts = dataset_of(config), partition_of(config)
    for name, rows in zip(NAMES, parts, strict=True):
        x, y = (part[rows].numpy() for part in data.train)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    with serving(new_site(folder / "site", *NAMES), environment=ENVIRONMENT) as server:
        yield server


class Processes(contextlib.ExitStack):
    """Processes that end with the block."""

    def __init__(self, served):
        super().__init__()
        self.site, self.folder = served.site, served.site.folder.parent

    def start(self, *command, log):
        with (self.folder / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT)
        self.callback(_end, process)
        return process

    def device(self, name, *flags):
        data = str(self.folder / f"{name}.npz")
        node = str(self.site.node_folder(name))
        return self.start(*FEDEXP, "device", node, "--data", data, *flags, log=name)

    def supernode(self, name):
        node, data = self.site.node_folder(name), self.folder / f"{name}.npz"
        return self.start(
            *("flower-supernode", "--superlink", self.site.server),
            *("--root-certificates", str(node / "ca.crt")),
            *("--auth-supernode-private-key", str(node / "node.key")),
            *("--port", str(free_port())),
            *("--node-config", f"data='{data}' name='{name}'"),
            log=f"{name}-supernode",
        )

    def run(self, *flags):
        """`fedexp run` in the background; what it prints is in run.log."""
        return self.start(*FEDEXP, "run", str(self.site.folder), *map(str, flags), log="run")


@pytest.fixture(scope="module")
def anna(served):
    """A device that stays through all runs, whatever becomes of the others."""
    with Processes(served) as made:
        yield made.device("anna")


def _end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def processes(served):
    with Processes(served) as made:
        (made.folder / "run.log").unlink(missing_ok=True)
        yield made


def rows(out):
    file = out / "fedexp" / "metrics.jsonl"
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def said(processes):
    return (processes.folder / "run.log").read_text()


def without_devices(num_rounds, out=None):
    """The same federation as a simulation."""
    return fedexp.simulate(
        strategy="fedexp",
        robust=True,
        fraction_train=1.0,
        num_server_rounds=num_rounds,
        engine="serial",
        vectorize="off",
        out=out,
        **{key.replace("-", "_"): value for key, value in DATA.items()},
    )


def test_devices_and_a_supernode_give_the_bits_of_a_simulation(anna, processes, tmp_path):
    out = tmp_path / "out"
    started = [anna, processes.device("bob"), processes.supernode("clinic")]
    run = processes.run(*FLAGS, "--rounds", 1, "--out", out)  # test_device_processes has five
    assert run.wait(150) == 0, said(processes)
    plain = without_devices(1, tmp_path / "simulated")
    ours, theirs = (
        load_file(x / "fedexp" / "model.safetensors") for x in (out, tmp_path / "simulated")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    lines = said(processes).splitlines()
    assert sum(line.startswith("round ") for line in lines) == 1
    assert re.match(r"round 1/1: 3 clients, accuracy 0\.\d+, step ", lines[-3])
    for name in ("report.html", "config.toml", "fedexp/checkpoint.safetensors", "curves.png"):
        assert (out / name).stat().st_size
    assert [x["num-clients"] for x in rows(out)] == [x["num-clients"] for x in plain.metrics]
    assert all(process.poll() is None for process in started)


def test_what_dies_comes_back_and_the_run_ends_where_it_would_have(
    served, anna, processes, tmp_path
):
    out = tmp_path / "out"
    devices = {name: processes.device(name) for name in NAMES[1:]}
    first = processes.run(*FLAGS, "--rounds", 10, "--deadline", 4, "--out", out)
    until(lambda: len(rows(out)) >= 1)
    devices["bob"].kill()
    devices["bob"].wait()
    until(lambda: any(x["num-clients"] == 2 for x in rows(out)))
    processes.device("bob")
    os.kill(served.superlink_pid, signal.SIGKILL)
    assert first.wait(240) == 1, said(processes)
    assert "the server was started again. Go on with: fedexp run" in said(processes)
    second = processes.run("--resume", "--out", out)
    assert second.wait(200) == 0, said(processes)
    found = rows(out)
    assert [x["round"] for x in found] == list(range(1, 11))
    apart = found[-1]["mean-test-accuracy"] - without_devices(10).metrics[-1]["mean-test-accuracy"]
    assert abs(apart) <= 0.02  # of 360 images; how many rounds bob misses depends on the machine
    counts = [x["num-clients"] for x in found]
    assert 3 in counts[counts.index(2) :], "bob is back"


def test_a_slow_device_is_late_and_a_bomb_does_no_harm(anna, processes, tmp_path):
    out = tmp_path / "out"
    processes.device("bob", "--app", "slow_app:slow")
    processes.device("clinic", "--app", "slow_app:bomb")
    run = processes.run(*FLAGS, "--rounds", 1, "--deadline", 8, "--out", out)
    peak = 0
    while run.poll() is None:
        peak = max([peak, *map(_peak, _serverapps(processes.site))])
        time.sleep(0.3)
    assert run.returncode == 0, said(processes)
    assert 100 < peak < 600
    (row,) = rows(out)
    assert (row["num-clients"], row["num-late"], row["num-failures"]) == (1, 1, 1)
    assert row["round-seconds"] < 18
    (reason,) = row["failures"]
    assert re.search(r"its arrays need|more than [\d,]+ bytes", reason)
    assert "1 failed, 1 late" in said(processes)
    assert "missing when the round ended" in (out / "report.html").read_text()
    assert "train, round 1: done" in (processes.folder / "anna.log").read_text()


def test_a_run_can_be_stopped(anna, processes, tmp_path):
    run = processes.run("--local-steps", 10, "--rounds", 500, "--out", tmp_path / "out")
    until(lambda: rows(tmp_path / "out"))
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 3
    assert "stopped. Go on with: fedexp run" in said(processes)
    until(lambda: not list(_serverapps(processes.site)))


def test_a_run_without_devices_ends_with_code_4(processes, tmp_path):
    run = processes.run("--min-nodes", 9, "--rounds", 1, "--timeout", 3, "--out", tmp_path / "out")
    assert run.wait(90) == 4
    assert "of 9 devices came within 3 s" in said(processes)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--strategy", "fedavg,fedexp"), "devices run one. Name one."),
        (("--strategy", "nonsense"), "nonsense"),
        (("--enough", "9", "--sample", "8"), "no more than sample=8 are asked"),
        (("--edges", "nobody"), "--edges nobody: is no node of the site."),
        (("--resume",), "--resume takes --out FOLDER and no other flag"),
        (("--deadline", "-1"), "deadline"),
        (("--resume", "--edges", "anna"), "and no other flag"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(served, flags, line, tmp_path, capsys):
    if flags != ("--resume",):  # which lacks it
        flags = (*flags, "--out", str(tmp_path / "out"))
    assert _refused(served.site, *flags) == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_site_that_is_not_served_is_code_2(tmp_path, capsys):
    site = new_site(tmp_path / "site", "anna")
    assert _refused(site, "--out", str(tmp_path / "out")) == 2
    assert "no SuperLink answers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _refused(site, *flags):
    with pytest.raises(SystemExit) as ended:
        main(["run", str(site.folder), *flags])
    return ended.value.code


def _serverapps(site):
    """Ids of the processes that run the ServerApp of a site."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode()
            if "flwr-serverapp" in line and str(site.inner_port) in line:
                yield int(path.parent.name)


def _peak(pid):
    """MiB that a process has had in memory at most."""
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) >> 10
    return 0


def test_the_status_of_a_run_that_does_not_exist_is_an_error(served):
    with pytest.raises(RuntimeError):
        submit.run_status(12345, submit.Link.to(served.site))
