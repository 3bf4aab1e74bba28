"""Rounds over real processes on loopback: ``fedexp device`` against ``flower-supernode``.

Three nodes train the linear model on rows of their own for a server with TLS and signed requests.
Run from the root of the repository::

    python -m benchmarks.deployment [--rounds 5] [--out FILE.json]

Seconds depend on what else the machine does; CPU seconds and memory hardly do. A node's memory is
the largest sum over its processes at one time of what each has for itself plus its part of what
they share (PSS); its CPU seconds are those of all its processes, without those of the start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedexp.devices.data_description import DataDescription
from tests.devices.superlinks import ROOT, TestSite, site, wait_for

NODES = ("anna", "bob", "clinic")
FEATURES, CLASSES, ROWS = 561, 6, 200
KINDS = ("fedexp device, NumPy", "fedexp device, PyTorch", "flower-supernode")
_TICK = os.sysconf("SC_CLK_TCK")


class Meter:
    """Memory and CPU seconds of process groups, looked at five times a second."""

    def __init__(self, groups: list[int]) -> None:
        self.groups = groups
        self.cpu: dict[int, dict[int, float]] = defaultdict(dict)  # by group, then by process
        self.peak: dict[int, int] = defaultdict(int)  # KiB by group
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def used(self) -> dict[int, float]:
        """CPU seconds of each group so far."""
        return {group: sum(self.cpu[group].values()) for group in self.groups}

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            now: dict[int, int] = defaultdict(int)
            for entry in Path("/proc").iterdir():
                with suppress(OSError, ValueError, IndexError):
                    self._look(entry, now)
            for group, size in now.items():
                self.peak[group] = max(self.peak[group], size)

    def _look(self, entry: Path, now: dict[int, int]) -> None:
        pid = int(entry.name)
        stat = (entry / "stat").read_text().rpartition(")")[2].split()
        group = int(stat[2])
        if group not in self.groups:
            return
        self.cpu[group][pid] = (int(stat[11]) + int(stat[12])) / _TICK
        rolled = (entry / "smaps_rollup").read_text()
        now[group] += int(re.findall(r"^Pss:\s+(\d+)", rolled, re.M)[0])


def app_of(path: Path) -> Path:
    """The app whose server runs FedExP over devices, with a ClientApp that a SuperNode can run."""
    shutil.copytree(ROOT / "benchmarks" / "deployed_app", path)
    file = path / "pyproject.toml"
    file.write_text(file.read_text().replace("deployed.nothing:app", "fedexp.devices.app:client"))
    return path


def start_nodes(here: TestSite, kind: str, folders: list[Path]) -> list[Any]:
    """A node of this kind on each folder."""
    started = []
    for i, folder in enumerate(folders):
        data = str(here.path / f"{i}.npz")
        if kind == "flower-supernode":
            settings = f"data='{data}' name='{folder.name}'"
            command = [
                *("flower-supernode", "--superlink", f"127.0.0.1:{here.port}"),
                *("--port", str(9300 + os.getpid() % 300 + i), "--host", "127.0.0.1"),
                *("--root-certificates", str(here.ca)),
                *("--auth-supernode-private-key", str(folder / "node.key")),
                *("--node-config", settings),
            ]
            started.append(here.start(*command, log=f"{folder.name}.log"))
        else:
            own = ["--app", "fedexp.devices.linear:client"] if "NumPy" in kind else []
            started.append(here.device(folder, "--data", data, *own))
    return started


def measured(here: TestSite, kind: str, app: Path, num_rounds: int) -> dict[str, Any]:
    """One run over nodes of one kind."""
    folders = [here.path / "nodes" / f"{name}{KINDS.index(kind)}" for name in NODES]
    nodes = start_nodes(here, kind, folders)
    meter = Meter([node.pid for node in nodes])
    time.sleep(15)  # until all of them wait for messages
    before, out = meter.used(), here.path / f"out{KINDS.index(kind)}"
    out.mkdir()
    described = DataDescription((FEATURES,), num_classes=CLASSES).text()
    run_id = here.submit(app, out=str(out), description=described, num_server_rounds=num_rounds)
    wait_for((out / "model.npz").exists, 600, log=here.path / "superlink.log")
    time.sleep(1)
    cpu = [used - before[group] for group, used in meter.used().items()]
    meter.close()
    traffic = bytes_of(here, run_id)
    for node in nodes:
        node.terminate()
    for node in nodes:
        node.wait(30)
    seconds = [json.loads(x)["seconds"] for x in (out / "rounds.jsonl").read_text().splitlines()]
    return {
        "kind": kind,
        "seconds a round": round(statistics.median(seconds), 2),
        "CPU seconds a device and message": round(statistics.mean(cpu) / (num_rounds + 1), 2),
        "MiB a device": round(max(meter.peak.values()) / 1024),
        "kB a round": round(traffic / num_rounds / 1000, 1),
    }


def bytes_of(here: TestSite, run_id: int) -> int:
    """What the SuperLink sent to nodes and got from them in a run."""
    from flwr.proto.control_pb2 import ListRunsRequest

    with here.control() as client:
        run = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
    return int(run.bytes_sent + run.bytes_recv)


def main() -> None:
    """Measure all kinds, one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, site(Path(folder) / "site") as here:
        here.superlink()
        here.register(*(here.node(f"{x}{i}") for i in range(len(KINDS)) for x in NODES))
        for i in range(len(NODES)):
            rng = np.random.default_rng(i)
            x, y = rng.normal(size=(ROWS, FEATURES)).astype("f"), rng.integers(0, CLASSES, ROWS)
            np.savez(here.path / f"{i}.npz", x=x, y=y)
        app = app_of(Path(folder) / "app")
        rows = []
        for kind in KINDS:
            rows.append(measured(here, kind, app, given.rounds))
            print(" | ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
