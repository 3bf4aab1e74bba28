"""A process with all that it starts: paused, continued, measured and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any, Self

_PROC = Path("/proc")
_SECONDS_TO_END = 30.0


class Remote:
    """A Python module run as a process that talks to this one.

    It is stopped (SIGSTOP) whenever it has nothing to do: Flower's simulation is busy even
    between rounds, and would slow down whoever is measured next.

    Args:
        module: run with ``args`` and the address of its link as arguments.
        args: of the module.
    """

    def __init__(self, module: str, *args: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.log = Path(self._folder.name, "log")
        self.start = time.perf_counter()
        with Listener() as listener, open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *args, str(listener.address)],
                env=os.environ | _environment(self._folder.name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._link = listener.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGCONT)
        left = tree(self._process.pid)
        try:
            self._link.send(0)
            self._process.wait(_SECONDS_TO_END)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        for pid in left:
            _kill(pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def ask(self, value: Any) -> Any:
        """The answer to ``value``; stopped before and after.

        Raises:
            RuntimeError: it ended; with the last lines that it printed.
        """
        self._signal(signal.SIGCONT)
        try:
            self._link.send(value)
            return self._link.recv()
        except (EOFError, OSError):
            raise RuntimeError(self.log.read_text(errors="replace")[-3000:]) from None
        finally:
            self._signal(signal.SIGSTOP)

    def gb(self, key: str = "VmRSS") -> float:
        """Resident size, or with ``VmHWM`` its peak, summed over the processes that run now.

        Pages that processes share count as often.
        """
        return sum(_kb(pid, key) for pid in tree(self._process.pid)) / 1e6

    def _signal(self, number: int) -> None:
        for pid in tree(self._process.pid):
            _kill(pid, number)


def tree(root: int) -> list[int]:
    """``root`` and its descendants."""
    parents = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(text.split()[0])] = int(text.rpartition(")")[2].split()[1])
    found = [root] if root in parents else []
    for parent in found:
        found.extend(pid for pid, of in parents.items() if of == parent)
    return found


def _kb(pid: int, key: str) -> int:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _environment(folder: str) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": "1",
        "FLWR_HOME": folder,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
