"""Flower's own simulation on loopback: a SuperLink in a folder of its own, and ``flwr`` on it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BIN = Path(sys.executable).parent


@contextlib.contextmanager
def simulation_superlink(folder: Path, **environment: str) -> Iterator[dict[str, str]]:
    """The environment in which ``flwr`` finds it; ended with all it started.

    Args:
        folder: of its own.
        environment: variables that its runs see.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    env = (
        os.environ
        | environment
        | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
    )
    command = [BIN / "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    with open(folder / "superlink.log", "w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=env,
            cwd=folder,  # where its runs write what they name by a relative path
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


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert process.poll() is None, "the SuperLink ended"
            assert time.monotonic() < end, "the SuperLink did not answer"
            time.sleep(0.2)


def flwr(env: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    """What a command of Flower answers."""
    return subprocess.run(
        [BIN / "flwr", *map(str, args)], env=env, capture_output=True, text=True, timeout=300
    )


def statuses(env: dict[str, str]) -> dict[str, str]:
    """How the last run of each app ended; ``flwr run`` exits with 0 even if it failed."""
    runs = json.loads(flwr(env, "list", "--format", "json").stdout)["runs"]
    return {run["fab-name"]: run["status"] for run in reversed(runs)}
