"""Processes that a test has started: found by parent, and seen to end."""

import os
import signal
import time
from pathlib import Path


def descendants(root):
    """Pid to command of every process below ``root``; zombies do not count."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)], commands[int(folder.name)] = int(parent), command
    found = [root]
    for parent in found:
        found.extend(pid for pid, of in parents.items() if of == parent)
    return {pid: commands[pid] for pid in found[1:]}


def left_of(processes, seconds=20):
    """Those of ``processes`` that still run after ``seconds``."""
    end = time.monotonic() + seconds
    while (left := {pid: c for pid, c in processes.items() if _runs(pid)}) and (
        time.monotonic() < end
    ):
        time.sleep(0.2)
    return left


def kill(processes):
    """End them, whatever they do."""
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def resident_mb(pids):
    """Memory of processes, in megabytes."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) / 256


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
