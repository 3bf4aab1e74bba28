"""Real processes, sockets and certificates on loopback: devices and a SuperLink of Flower's."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context
from superlinks import ROOT, TestSite, site, wait_for

from fedexp.clients.client import client_app
from fedexp.clients.data import Examples
from fedexp.devices.data_description import DataDescription
from fedexp.models import of_shape
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedExP

pytestmark = [pytest.mark.deploy, pytest.mark.slow]
APP = ROOT / "tests" / "devices" / "deployed_app"
DESCRIBED = DataDescription((6,), num_classes=3)
CONFIG: dict[str, Any] = {
    "model": "linear",
    "local-steps": 5,
    "batch-size": 4,
    "learning-rate": 0.3,
    "seed": 3,
}
NAMES = ("anna", "bob", "clinic")
LIGHT = ("--app", "fedexp.devices.linear:client")  # for all that is not about PyTorch


def rows(p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(p)
    return rng.normal(size=(7 + p, 6)).astype("f"), rng.integers(0, 3, 7 + p)


@pytest.fixture(scope="module")
def here(tmp_path_factory: Any) -> Iterator[TestSite]:
    """A SuperLink, three devices, and an edge that nobody has started."""
    with site(tmp_path_factory.mktemp("site")) as made:
        made.superlink()
        made.register(*(made.node(name) for name in (*NAMES, "east", "west", "late")))
        for p in range(6):
            x, y = rows(p)
            np.savez(made.path / f"{p}.npz", x=x, y=y)
        yield made


def simulated(num_clients: int, num_rounds: int) -> dict[str, Any]:
    def data(context: Context) -> tuple[Examples, Examples]:
        mine = Examples(*map(torch.from_numpy, rows(int(context.node_config["partition-id"]))))
        return mine, mine

    app = client_app(lambda context: of_shape("linear", (6,), 3), data)
    grid = SerialGrid(app, num_clients, run_config=CONFIG)
    start = {k: v.numpy() for k, v in of_shape("linear", (6,), 3).state_dict().items()}
    strategy = FedExP(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, seed=0)
    *_, last = rounds(strategy, grid, to_record(start), num_rounds=num_rounds)
    return dict(from_record(last.arrays))


def folder(here: TestSite, name: str) -> Path:
    return here.path / "nodes" / name


def started(here: TestSite, names: Any = NAMES, *args: str) -> list[Any]:
    """Devices with the data of their places among ``names``."""
    return [
        here.device(folder(here, name), "--data", str(here.path / f"{p}.npz"), *args)
        for p, name in enumerate(names)
    ]


def submitted(here: TestSite, out: Path, **config: Any) -> Path:
    out.mkdir()
    here.submit(APP, out=str(out), description=DESCRIBED.text(), **config)
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    file = out / "rounds.jsonl"
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def model(out: Path, seconds: float = 90) -> dict[str, Any]:
    wait_for((out / "model.npz").exists, seconds)
    with np.load(out / "model.npz") as stored:
        return dict(stored)


def stop(*processes: Any) -> list[int]:
    for process in processes:
        process.terminate()
    return [process.wait(15) for process in processes]


@pytest.fixture(autouse=True)
def _none_left(here: TestSite) -> Iterator[None]:
    """Devices of a test that failed are no clients of the next one."""
    yield
    for process in here.processes:
        if "fedexp" in process.args and process.poll() is None:
            process.kill()
            process.wait()


def assert_same_bits(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    assert all(a[k].tobytes() == b[k].tobytes() for k in a)


def memory(process: Any) -> int:
    """MiB that a process has in memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) >> 10


def test_three_devices_give_the_bits_of_a_simulation(here, tmp_path):
    devices = started(here)
    out = submitted(here, tmp_path / "out", num_server_rounds=5)
    assert_same_bits(model(out), simulated(3, 5))
    assert not any(line["failures"] for line in lines(out))
    assert max(map(memory, devices)) < 350
    assert stop(*devices) == [0, 0, 0]
    assert "Stopped." in here.log("anna")


def test_two_edges_give_the_bits_of_the_flat_federation(here, tmp_path):
    paths = [str(here.path / f"{p}.npz") for p in range(6)]
    edges = [
        here.device(folder(here, "east"), "--edge", *paths[:3]),
        here.device(folder(here, "west"), "--edge", *paths[3:]),
    ]
    ids = []
    for name in ("east", "west"):
        wait_for((folder(here, name) / "node.id").exists, 60, log=here.path / f"{name}.log")
        ids.append((folder(here, name) / "node.id").read_text().strip())
    out = submitted(here, tmp_path / "out", num_devices=6, edges=",".join(ids))
    assert_same_bits(model(out), simulated(6, 3))
    assert stop(*edges) == [0, 0]


def test_devices_survive_their_messages_and_a_killed_one_gets_back_in(here, tmp_path):
    np.savez(here.path / "wide.npz", x=np.zeros((3, 7)), y=np.zeros(3))
    raising = here.device(
        *(folder(here, "anna"), "--data", str(here.path / "0.npz"), "--app", "raising:app"),
        *("--max-memory", "1.5G"),
    )
    light = here.device(
        *(folder(here, "bob"), "--data", str(here.path / "1.npz"), *LIGHT),
    )
    misfit = here.device(folder(here, "clinic"), "--data", str(here.path / "wide.npz"))
    killed = here.device(folder(here, "late"), "--data", str(here.path / "3.npz"), *LIGHT)
    out = submitted(here, tmp_path / "out", num_devices=4, num_server_rounds=6, timeout=15.0)
    wait_for(lambda: len(lines(out)) >= 2, 90, log=here.path / "superlink.log")
    killed.kill()
    killed.wait()
    killed = here.device(folder(here, "late"), "--data", str(here.path / "3.npz"), *LIGHT)
    model(out, 200)
    reasons = [" | ".join(line["failures"]) for line in lines(out)]
    assert "KeyError: 'no such thing'" in reasons[0]
    assert "SystemExit: 3" in reasons[1]
    assert "MemoryError" in reasons[2]
    assert all("the model takes [6]" in text for text in reasons)
    assert here.log("clinic").count("the model takes [6]") == 1, "said once"
    assert len(lines(out)[-1]["failures"]) == 1, "all others train in the end"
    assert memory(light) < 110
    assert "libtorch" not in Path(f"/proc/{light.pid}/maps").read_text()
    assert stop(raising, light, misfit, killed) == [0, 0, 0, 0]


def test_a_device_waits_for_a_server_that_restarts(here):
    before = here.log("late").count("is node") if (here.path / "late.log").exists() else 0
    device = here.device(folder(here, "late"), "--data", str(here.path / "0.npz"), *LIGHT)
    wait_for(lambda: here.log("late").count("is node") > before, 60)
    second = here.device(folder(here, "late"), "--data", str(here.path / "0.npz"), *LIGHT)
    assert second.wait(60) == 2
    assert "another process is this node" in here.log("late")
    superlink = next(x for x in here.processes if "flower-superlink" in x.args)
    os.killpg(superlink.pid, signal.SIGKILL)
    superlink.wait()
    wait_for(lambda: "is not there" in here.log("late"), 60)
    here.processes.remove(superlink)
    here.superlink()
    wait_for(lambda: "The server is back." in here.log("late"), 90)
    assert stop(device) == [0]


REFUSALS = {
    "stranger": "does not accept this node's key",
    "misled": "a certificate that ca.crt does not vouch for",
    "elsewhere": "does not vouch for: .*127.0.0.1",
    "patient": "certificate has expired",
    "plain": "does not speak TLS",
}


def test_a_device_that_is_refused_ends_with_one_line(here, tmp_path):
    other = TestSite(tmp_path / "other")
    here.node("stranger")
    (here.node("misled") / "ca.crt").write_bytes(other.ca.read_bytes())
    ends = []
    for name, files in (
        ("elsewhere", here.server_files(host="fl.example.org")),
        ("patient", here.server_files(lasts=timedelta(days=-1))),
        ("plain", None),
    ):
        port, end = serving(files)
        here.node(name, port=port)
        ends.append(end)
    devices = {
        name: here.device(folder(here, name), "--data", str(here.path / "0.npz"), *LIGHT)
        for name in REFUSALS
    }
    for name, device in devices.items():
        assert device.wait(60) == 1
        errors = [x for x in here.log(name).splitlines() if x.startswith("fedexp: error:")]
        assert len(errors) == 1
        assert re.search(REFUSALS[name], errors[0])
        assert "Traceback" not in here.log(name)
    for end in ends:
        end.set()


def serving(files: tuple[Path, Path] | None) -> tuple[int, threading.Event]:
    """A port that answers without TLS, or with a certificate; and what ends it."""
    end, server = threading.Event(), socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)

    def serve() -> None:
        with server:
            while not end.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    answer(connection)

    def answer(connection: socket.socket) -> None:
        with connection:
            if context:
                context.wrap_socket(connection, server_side=True).close()
            else:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], end
