"""Devices and `fedexp run` on a served site: real processes, sockets and certificates on loopback.

One server has all runs of this file. A device that is ``paced`` trains in no round that its test
has not reached, so nothing here depends on how fast the machine is.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sites import alive, free_port, new_site, processes_with, until

import fedexp
from fedexp.cli import main
from fedexp.config import Config
from fedexp.devices import Link, limits, serving, submit
from fedexp.factories import dataset_of, partition_of

pytestmark = [pytest.mark.deploy, pytest.mark.slow]
NAMES = ("anna", "bob", "clinic", "zoe")
LIGHT = ("--app", "fedexp.devices.linear:client")
FEDEXP = [sys.executable, "-m", "fedexp"]
HERE = Path(__file__).parent
PATIENCE = 300  # seconds, of a busy machine
ENVIRONMENT = {
    **os.environ,
    **dict.fromkeys(limits.THREADS, "1"),
    "PYTHONPATH": f"{HERE}:{HERE.parents[1]}",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
DATA = {"partitioner": "iid", "num-clients": 3, "local-steps": 10, "seed": 4, "model": "linear"}
FLAGS = ["--local-steps", "10", "--seed", "4", "--model", "linear", "--timeout", str(PATIENCE)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A site of devices that nobody has started, and three parts of digits."""
    folder = tmp_path_factory.mktemp("devices")
    config = Config.of(DATA)
    data, parts = dataset_of(config), partition_of(config)
    for p, rows in enumerate(parts):
        x, y = (part[rows].numpy() for part in data.train)
        np.savez(folder / f"{p}.npz", x=x, y=y)
    np.savez(folder / "wide.npz", x=np.zeros((3, 7)), y=np.zeros(3))
    with serving(new_site(folder / "site", *NAMES), environment=ENVIRONMENT) as server:
        yield server


@pytest.fixture
def link(served):
    return Link.to(served.site)


class Processes(contextlib.ExitStack):
    """Processes that end with the block, and what they say."""

    def __init__(self, served):
        super().__init__()
        self.site, self.folder = served.site, served.site.folder.parent
        self._logs = {}

    def start(self, *command):
        log = self.folder / f"{id(self)}-{len(self._logs)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT)
        self._logs[process] = log
        self.callback(_end, process)
        return process

    def said(self, process):
        return self._logs[process].read_text(errors="replace")

    def data(self, part):
        return str(self.folder / f"{part}.npz")

    def device(self, name, *flags):
        return self.start(*FEDEXP, "device", str(self.site.node_folder(name)), *flags)

    def are_there(self, *devices):
        for device in devices:
            until(lambda device=device: " is node " in self.said(device), PATIENCE)

    def supernode(self, name, part):
        node = self.site.node_folder(name)
        return self.start(
            *("flower-supernode", "--superlink", self.site.server),
            *("--root-certificates", str(node / "ca.crt")),
            *("--auth-supernode-private-key", str(node / "node.key")),
            *("--port", str(free_port())),
            *("--node-config", f"data='{self.data(part)}' name='{name}'"),
        )

    def stopped(self, *devices):
        """Their exit codes."""
        for device in devices:
            device.terminate()
        return [device.wait(60) for device in devices]


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
        yield made


@pytest.fixture
def run_here(served):
    """`fedexp run` in this process, which has imported all: its exit code."""
    handler = signal.getsignal(signal.SIGTERM)

    def ended(*flags, site=served.site):
        try:
            main(["run", str(site.folder), *map(str, flags)])
        except SystemExit as error:
            return error.code
        return 0

    yield ended
    signal.signal(signal.SIGTERM, handler)


def rows(out):
    file = out / "fedexp" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last is half written


def status_of(link, name):
    return {node.name: node.status for node in submit.registered_nodes(link)}[name]


def memory(process, what="VmRSS"):
    """MiB that a process has in memory; with ``VmHWM``, that it has had at most."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(rf"{what}:\s+(\d+)", text)[0]) >> 10


def serverapps(site):
    """Ids of the processes that run the ServerApp of a site."""
    return [pid for pid, x in processes_with(site.inner) if "flwr-serverapp" in x]


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
def test_wrong_input_is_one_line_and_code_2(run_here, flags, line, tmp_path, capsys):
    if flags != ("--resume",):  # which lacks it
        flags = (*flags, "--out", str(tmp_path / "out"))
    assert run_here(*flags) == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_site_that_is_not_served_is_code_2(run_here, tmp_path, capsys):
    site = new_site(tmp_path / "site", "anna")
    assert run_here("--out", tmp_path / "out", site=site) == 2
    assert "no SuperLink answers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_devices_ends_with_code_4(run_here, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_here("--min-nodes", 9, "--rounds", 1, "--timeout", 1, "--out", out) == 4
    assert "of 9 devices came within 1 s" in capsys.readouterr().err


def test_a_run_survives_its_devices_and_they_survive_it_until_it_is_stopped(processes, tmp_path):
    out, pace = tmp_path / "out", processes.folder / "1.pace"
    good, slow, *_ = started = [
        processes.device("anna", "--data", processes.data(0), *LIGHT),
        processes.device("bob", "--data", processes.data(1), "--app", "slow_app:slow"),
        processes.device(
            *("clinic", "--data", processes.data(2), "--app", "slow_app:troubled"),
            *("--max-memory", "1G"),
        ),
        processes.device("zoe", "--data", processes.data("wide"), "--app", "slow_app:leaving"),
    ]
    run = processes.start(
        *(*FEDEXP, "run", str(processes.site.folder), *FLAGS),
        *("--rounds", "500", "--min-nodes", "4", "--deadline", "20", "--out", str(out)),
    )
    until(lambda: rows(out) or run.poll() is not None, PATIENCE)
    assert run.poll() is None, processes.said(run)
    pace.write_text("2")  # in the third round it waits
    until(lambda: len(rows(out)) >= 2, PATIENCE)
    first, second = rows(out)
    assert (first["num-clients"], first["num-late"], first["num-failures"]) == (1, 1, 2)
    assert 20 <= first["round-seconds"] < 60
    assert (second["num-clients"], second["num-failures"]) == (2, 2)
    reasons = [" | ".join(row["failures"]) for row in rows(out)]
    assert re.search(r"its arrays need|more than [\d,]+ bytes", reasons[0])
    assert "the model takes [1, 8, 8]" in reasons[0]
    assert "MemoryError" in reasons[1]
    assert "SystemExit: 3" in reasons[1]
    (serverapp,) = serverapps(processes.site)
    assert 100 < memory(serverapp, "VmHWM") < 600
    assert memory(slow.pid) < 110
    assert "libtorch" not in Path(f"/proc/{slow.pid}/maps").read_text()
    until(lambda: "round 2/500: 2 clients, 2 failed" in processes.said(run))
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 3
    assert "1 client, 2 failed, 1 late" in processes.said(run)
    assert "stopped. Go on with: fedexp run" in processes.said(run)
    until(lambda: not serverapps(processes.site))
    assert "missing when the round ended" in (out / "report.html").read_text()
    assert "train, round 1: done" in processes.said(good)
    assert processes.stopped(*started) == [0] * 4


def without_devices(num_rounds):
    """The same federation as a simulation: its model and its rounds."""
    done = fedexp.simulate(
        strategy="fedexp",
        robust=True,
        fraction_train=1.0,
        num_server_rounds=num_rounds,
        engine="serial",
        vectorize="off",
        **{key.replace("-", "_"): value for key, value in DATA.items()},
    )
    return {k: x.numpy() for k, x in done.model().state_dict().items()}, done.metrics


def test_what_dies_comes_back_and_the_run_ends_with_the_bits_of_a_simulation(
    served, link, processes, run_here, tmp_path, capsys, undrawn, monkeypatch
):
    """Three clients: two of an edge, and a device, whose place a SuperNode of Flower's takes."""
    out, pace = tmp_path / "out", processes.folder / "2.pace"
    pace.write_text("1")  # in the second round it waits
    two = ("--edge", processes.data(0), processes.data(1))
    edge = processes.device("anna", *two)
    device = processes.device("zoe", "--data", processes.data(2), "--app", "paced_app:client")
    processes.are_there(edge, device)  # both, so that clients have the order of their names
    ids = {node.name: node.node_id for node in submit.registered_nodes(link)}
    dead = []

    def kill():
        try:
            until(lambda: rows(out), PATIENCE)
            dead.extend([served.superlink_pid, *serverapps(served.site)])
            os.kill(dead[0], signal.SIGKILL)
        except BaseException:
            os.kill(os.getpid(), signal.SIGINT)  # the run would wait for ever
            raise

    given = ("--rounds", 2, "--min-nodes", 3, "--edges", "anna", "--out", out)
    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(kill)
        assert run_here(*FLAGS, *given) == 1
        killing.result()
    assert "the server was started again. Go on with: fedexp run" in capsys.readouterr().err
    assert len(dead) == 2
    assert served.superlink_pid not in (0, dead[0])
    assert not any(map(alive, dead))
    assert {node.name: node.node_id for node in submit.registered_nodes(link)} == ids

    until(lambda: "The server is back." in processes.said(edge), PATIENCE)
    edge.kill()
    edge.wait()
    assert memory(device.pid) < 350
    assert processes.stopped(device) == [0]
    until(lambda: status_of(link, "zoe") == "offline")
    edge, supernode = processes.device("anna", *two), processes.supernode("zoe", 2)
    processes.are_there(edge)
    until(lambda: status_of(link, "zoe") == "online", PATIENCE)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", undrawn)
    assert run_here("--resume", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"round 2/2: 3 clients, accuracy 0\.\d+, step ", lines[-3])
    model, metrics = without_devices(2)
    ours = load_file(out / "fedexp" / "model.safetensors")
    assert ours.keys() == model.keys()
    assert all(ours[k].tobytes() == model[k].tobytes() for k in ours)
    assert [x["round"] for x in rows(out)] == [1, 2]
    assert [x["num-clients"] for x in rows(out)] == [x["num-clients"] for x in metrics] == [3, 3]
    for name in ("report.html", "config.toml", "fedexp/checkpoint.safetensors", "curves.png"):
        assert (out / name).stat().st_size
    assert supernode.poll() is None
    assert processes.stopped(edge) == [0]
    assert "Stopped." in processes.said(edge)


def test_a_server_that_is_killed_leaves_no_process(served):
    """The last test of this server."""
    folder = served.site.folder
    found = " ".join(line for _, line in processes_with(folder))
    assert all(x in found for x in ("fedexp serve", "flower-superlink", "flower-superexec"))
    served.process.kill()
    served.process.wait(30)
    until(lambda: not processes_with(folder))
