"""Real processes, sockets and certificates on loopback: devices and a SuperLink of Flower's."""

import json
import os
import re
import signal
import socket
import threading
import time
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
    strategy = FedExP(fraction_evaluate=0.0, min_available_nodes=1, seed=0)
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


def assert_same_bits(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    assert all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_three_devices_give_the_bits_of_a_simulation(here, tmp_path):
    devices = started(here)
    out = submitted(here, tmp_path / "out", num_server_rounds=5)
    assert_same_bits(model(out), simulated(3, 5))
    assert not any(line["failures"] for line in lines(out))
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


def test_a_killed_device_gets_back_in_at_once(here, tmp_path):
    devices = started(here)
    out = submitted(here, tmp_path / "out", num_server_rounds=12, timeout=15.0)
    wait_for(lambda: len(lines(out)) >= 2, 90, log=here.path / "superlink.log")
    devices[1].kill()
    devices[1].wait()
    devices[1:2] = [
        here.device(folder(here, "bob"), "--data", str(here.path / "1.npz")),
    ]
    after = model(out, 120)
    seen = lines(out)
    assert len(seen) == 12
    assert not seen[-1]["failures"], "it answers again"
    expected = simulated(3, 12)
    for name, array in after.items():
        np.testing.assert_allclose(array, expected[name], atol=0.5)
    stop(*devices)


def test_whatever_an_app_raises_is_an_error_reply_and_the_device_goes_on(here, tmp_path):
    device = here.device(
        *(folder(here, "late"), "--data", str(here.path / "0.npz"), "--app", "raising:app"),
        *("--max-memory", "1.5G"),
    )
    out = submitted(here, tmp_path / "out", num_devices=1, num_server_rounds=4)
    model(out)
    reasons = [line["failures"] for line in lines(out)]
    assert "KeyError: 'no such thing'" in reasons[0][0]
    assert "SystemExit: 3" in reasons[1][0]
    assert "MemoryError" in reasons[2][0]
    assert reasons[3] == []
    assert device.poll() is None
    assert stop(device) == [0]


def test_data_that_does_not_fit_are_refused_on_both_sides(here, tmp_path):
    np.savez(here.path / "wide.npz", x=np.zeros((3, 7)), y=np.zeros(3))
    device = here.device(folder(here, "late"), "--data", str(here.path / "wide.npz"))
    out = submitted(here, tmp_path / "out", num_devices=1, num_server_rounds=2)
    model(out)
    assert "the model takes [6]" in lines(out)[0]["failures"][0]
    assert here.log("late").count("the model takes [6]") == 1, "said once"
    assert stop(device) == [0]


def test_a_device_waits_for_a_server_that_restarts(here):
    device = here.device(folder(here, "late"), "--data", str(here.path / "0.npz"))
    name = here.path / "late.log"
    before = here.log("late").count("is node") if name.exists() else 0
    wait_for(lambda: here.log("late").count("is node") > before, 30)
    superlink = next(x for x in here.processes if "flower-superlink" in str(x.args))
    os.killpg(superlink.pid, signal.SIGKILL)
    superlink.wait()
    wait_for(lambda: "is not there" in here.log("late"), 30)
    here.processes.remove(superlink)
    here.superlink()
    wait_for(lambda: "The server is back." in here.log("late"), 60)
    assert stop(device) == [0]


def refusal(here: TestSite, name: str, seconds: float = 30) -> str:
    """The one line with which a device of this folder ends."""
    device = here.device(folder(here, name), "--data", str(here.path / "0.npz"))
    assert device.wait(seconds) == 1
    errors = [x for x in here.log(name).splitlines() if x.startswith("fedexp: error:")]
    assert len(errors) == 1
    assert "Traceback" not in here.log(name)
    return errors[0]


def test_an_unknown_key_is_refused(here):
    here.node("stranger")
    assert "does not accept this node's key" in refusal(here, "stranger")


def test_another_authority_is_refused(here, tmp_path):
    other = TestSite(tmp_path / "other")
    (here.node("misled") / "ca.crt").write_bytes(other.ca.read_bytes())
    assert "a certificate that ca.crt does not vouch for" in refusal(here, "misled")


def test_another_host_is_refused(here):
    here.node("elsewhere", host="127.0.0.2")
    assert re.search(r"does not vouch for: .*127\.0\.0\.2", refusal(here, "elsewhere"))


def serving(files: tuple[Path, Path] | None) -> tuple[int, threading.Event]:
    """A port that answers without TLS, or with a certificate; and what ends it."""
    import ssl

    end, server = threading.Event(), socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)

    def serve() -> None:
        while not end.is_set():
            try:
                connection, _ = server.accept()
                with connection:
                    if context:
                        context.wrap_socket(connection, server_side=True).close()
                    else:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                continue
        server.close()

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], end


def test_an_expired_certificate_is_refused(here):
    port, end = serving(here.server_files(lasts=timedelta(days=-1)))
    here.node("patient", port=port)
    assert "certificate has expired" in refusal(here, "patient")
    end.set()


def test_plain_text_is_refused(here):
    port, end = serving(None)
    here.node("plain", port=port)
    assert "does not speak TLS" in refusal(here, "plain")
    end.set()


def test_two_processes_cannot_be_one_node(here):
    first = here.device(folder(here, "late"), "--data", str(here.path / "0.npz"))
    time.sleep(4)
    second = here.device(folder(here, "late"), "--data", str(here.path / "0.npz"))
    assert second.wait(30) == 2
    assert "another process is this node" in here.log("late")
    assert stop(first) == [0]


def memory(process: Any) -> int:
    """MiB that a process has in memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) >> 10


@pytest.mark.parametrize(("app", "most"), [("fedexp.devices.linear:client", 110), (None, 350)])
def test_a_device_needs_little_memory(here, tmp_path, app, most):
    own = ["--app", app] if app else []
    device = here.device(folder(here, "late"), "--data", str(here.path / "0.npz"), *own)
    out = submitted(here, tmp_path / "out", num_devices=1, num_server_rounds=3)
    after = model(out)
    for name, array in simulated(1, 3).items():
        np.testing.assert_allclose(after[name], array, rtol=1e-4, atol=1e-6)
    assert memory(device) < most
    if app:
        maps = Path(f"/proc/{device.pid}/maps").read_text()
        assert "libtorch" not in maps
    assert stop(device) == [0]
