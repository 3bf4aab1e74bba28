"""Ray started and joined: what runs, what is left behind, what is refused."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest
from offspring import descendants, kill, left_of

ray = pytest.importorskip("ray")
from fedexp.simulation.ray.grid import RayGrid  # noqa: E402

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
ENV = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": PATHS}
SCRIPT = """
import os, sys
import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp
from builders import content, record
from fedexp.records import from_record
from fedexp.simulation import RayGrid, SerialGrid
from fedexp.strategies import FedExP

end, address, num_workers = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]) or None
driver = os.getpid()
app = ClientApp()

@app.train()
def train(message, context):
    server_round = message.content["config"]["server-round"]
    if server_round == 2 and os.getpid() != driver:
        print("hello from a client")
        print("a warning", file=sys.stderr)
    rng = np.random.default_rng([context.node_id, server_round])
    sent = from_record(message.content["arrays"])
    arrays = {name: x + rng.normal(size=x.shape) for name, x in sent.items()}
    return Message(content(arrays, num_examples=1 + context.node_id), reply_to=message)

def rounds(grid, num_rounds):
    strategy = FedExP(fraction_train=0.5, fraction_evaluate=0.0, seed=0)
    start = record({"w": np.linspace(-1, 1, 12)})
    return from_record(strategy.start(grid, start, num_rounds=num_rounds).arrays)

options = {"num_workers": num_workers, "ray_address": address, "worker_log": end == "interrupt"}
with RayGrid(app, 12, **options) as grid:
    got = rounds(grid, 2)
    expected = rounds(SerialGrid(app, 12), 2)
    same = all(np.array_equal(got[name], expected[name]) for name in expected)
    print("ready", grid._workers.count, same, flush=True)
    if end == "interrupt":
        rounds(grid, 10**6)
"""


@contextmanager
def simulation(end="success", address="", num_workers=1, **options):
    """A process that has taken two rounds, and its lines up to the one that says so."""
    with program(SCRIPT, end, address, str(num_workers), **options) as process:
        lines = []
        while not lines or (lines[-1] and not lines[-1].startswith("ready")):
            lines.append(process.stdout.readline())
        found = descendants(process.pid)
        try:
            yield process, lines, found
        finally:
            kill(found)


@contextmanager
def program(code, *words, stderr=subprocess.DEVNULL, **env):
    """A process of Python, ended with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        env=ENV | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            kill([process.pid, *descendants(process.pid)])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that shows what its workers print: its output, errors, processes, and those left."""
    log = tmp_path_factory.mktemp("interrupted") / "log"
    with (
        log.open("w") as file,
        # An address in the environment is somebody else's cluster: a grid starts its own.
        simulation("interrupt", stderr=file, RAY_ADDRESS="127.0.0.1:1") as (process, lines, found),
    ):
        process.send_signal(signal.SIGINT)
        lines += process.stdout
        assert process.wait(60) != 0
        yield lines, log.read_text().splitlines(), found, left_of(found)


@pytest.mark.deploy
def test_no_process_is_left_behind_by_an_interrupt(interrupted):
    lines, _, found, left = interrupted
    assert "ready 1 True\n" in lines
    assert any("raylet" in command for command in found.values())
    assert left == {}


@pytest.mark.deploy
def test_what_workers_print_is_shown_on_request_with_the_worker(interrupted):
    lines, errors, found, _ = interrupted
    (worker,) = [pid for pid, command in found.items() if command.startswith("ray::_Act")]
    said = [line for line in lines if "hello" in line]
    assert said == [f"worker {worker}: hello from a client\n"] * len(said)
    warned = [line for line in errors if "a warning" in line]
    assert warned == [f"worker {worker}: a warning"] * len(warned)
    assert len(said) == len(warned) >= 6  # of the clients of round 2
    assert "\x1b[" not in "".join(said + warned)


CELLS = """
import faulthandler, sys
import ray
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from fedexp.simulation import RayGrid
from fedexp.simulation.ray import cluster

faulthandler.dump_traceback_later(300, exit=True)
app = ClientApp()

@app.train()
def train(message, context):
    print("hello from a client")
    print("a warning", file=sys.stderr)
    return Message(RecordDict(), reply_to=message)

def usable(grid):
    messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    return [reply.has_content() for reply in grid.send_and_receive(messages)] == [True] * 3

first = RayGrid(app, 3, num_workers=1)
second = RayGrid(app, 3, num_workers=1)
print(usable(first), usable(second))
first.close()
print(usable(second), ray.is_initialized())
second = RayGrid(app, 3, num_workers=1)  # the cell again: nothing closes the one before
print(usable(second))
second.close()
second.close()
print(ray.is_initialized())

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
with RayGrid(app, 3) as joined:
    with RayGrid(app, 3, num_workers=2) as other:  # grids of one process share the CPUs
        print(usable(joined), usable(other))
print(ray.is_initialized())
held = ray.remote(num_cpus=1)(type("Holder", (), {"is_there": lambda self: True})).remote()
ray.get(held.is_there.remote())
cluster._FREE_SECONDS = 0.3
try:
    RayGrid(app, 3, num_workers=2)
except ValueError as error:
    print(str(error).replace(" ", "_"))
ray.shutdown()

last = RayGrid(app, 3, num_workers=1)
print(usable(last), flush=True)
print("open", flush=True)
input()
raise SystemError("as a test wants it")
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """What the cells print, the processes that are there before they fail, and those after it."""
    log = tmp_path_factory.mktemp("cells") / "log"
    with log.open("w") as file, program(CELLS, stderr=file) as process:
        lines = list(takewhile(lambda line: line != "open\n", process.stdout))
        found = descendants(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) != 0
        left = left_of(found)
        kill(left)
    assert "SystemError: as a test wants it" in log.read_text(), log.read_text()[-2000:]
    assert "a warning" not in log.read_text()  # which nobody has asked for
    return "".join(lines).split(), found, left


@pytest.mark.deploy
def test_several_grids_live_in_one_process_and_the_last_one_ends_ray(cells):
    assert cells[0][:6] == ["True"] * 5 + ["False"]


@pytest.mark.deploy
def test_grids_share_the_cpus_of_the_callers_ray_which_goes_on(cells):
    assert cells[0][6:9] == ["True"] * 3
    refused = cells[0][9].replace("_", " ")
    assert "num workers=2, num gpus=0): only 1 CPUs and 0 GPUs of the cluster are free" in refused
    assert cells[0][10:] == ["True"]  # and a Ray of our own after it


@pytest.mark.deploy
def test_no_process_is_left_behind_by_a_failure(cells):
    _, found, left = cells
    assert any("raylet" in command for command in found.values())
    assert left == {}


def test_without_ray_the_grid_says_what_to_install():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "ray" else find(name, *args)
import fedexp.simulation
try:
    from fedexp.simulation import RayGrid
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.stdout.strip() == "ray is not installed. Run: pip install 'fedexp[simulation]'"


HEAD = ["--head", "--include-dashboard", "false", "--no-monitor"]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def node(*args):
    """A Ray node, ended with all that it started."""
    command = [Path(sys.executable).parent / "ray", "start", "--block", "--num-cpus", "1"]
    command += ["--include-log-monitor", "false", "--disable-usage-stats"]
    process = subprocess.Popen(
        [*command, "--node-ip-address", "127.0.0.1", *args],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill([process.pid, *descendants(process.pid)])
        process.wait()


@pytest.mark.deploy
def test_two_nodes_on_loopback_are_one_grid_with_the_bits_of_the_serial_grid():
    address = f"127.0.0.1:{_free_port()}"
    port = address.split(":")[1]
    with (
        # Sockets want short paths.
        tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder,
        node(*HEAD, "--port", port, "--temp-dir", folder) as head,
    ):
        _until_it_listens(int(port))
        with node("--address", address) as second:
            _until_there_are(2, address)
            assert head.poll() is None
            assert second.poll() is None
            with simulation("success", address, num_workers=0) as (process, lines, _):
                assert lines == ["ready 2 True\n"]
                assert process.wait(60) == 0
            assert head.poll() is None  # a cluster that was joined goes on


def _until_it_listens(port, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the head node does not listen")


def _until_there_are(count, address, seconds=60):
    from ray._raylet import GcsClient

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = [n for n in GcsClient(address=address).get_all_node_info().values() if n.state == 0]
        if len(alive) == count:
            return
        time.sleep(0.5)
    raise AssertionError("the second node did not join")


def test_gpus_that_are_not_there_are_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"num_gpus=2\): needs 2 GPUs, this machine has 1\."):
        RayGrid(object(), 4, num_gpus=2)
    assert not ray.is_initialized()


@pytest.mark.parametrize(("argument", "value"), [("num_workers", 0), ("num_workers", -1)])
def test_a_grid_without_workers_is_refused(argument, value):
    with pytest.raises(ValueError, match=rf"RayGrid\({argument}={value}\)"):
        RayGrid(object(), 4, **{argument: value})
    assert not ray.is_initialized()


def test_an_unknown_way_to_vectorize_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match=r"RayGrid\(vectorize='perhaps'\): must be one of"):
        RayGrid(object(), 4, vectorize="perhaps")
    assert not ray.is_initialized()


def test_a_grid_of_no_nodes_is_refused():
    with pytest.raises(ValueError, match=r"RayGrid\(num_nodes=0\): must be at least 1"):
        RayGrid(object(), 0)
