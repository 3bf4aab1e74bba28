"""What can happen to a run, made to happen: kills, signals, full and read-only disks, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from fedexp import cli

_PATIENCE = 180.0  # seconds in which a start ends, or gets as far as is waited for
_TRACEBACK = 99


class Start:
    """One start of ``fedexp ...`` in a process of its own, forked: what it imports is there.

    Args:
        args: of the command line.
        log: what it prints.
    """

    def __init__(self, args: Sequence[str], log: Path) -> None:
        self.log = log
        self._code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(args, log)

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Its exit code, once it has ended.

        Raises:
            TimeoutError: it hangs; it is killed.
        """
        end = time.monotonic() + _PATIENCE
        while (code := self.ended()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"a start hangs, see {self.log}")
            time.sleep(0.01)
        return code

    def signal(self, number: int) -> int:
        """Send a signal; its exit code. No process that it has started is left behind."""
        below = descendants(self.pid)
        if self.ended() is None:
            os.kill(self.pid, number)
        code = self.wait()
        end = time.monotonic() + 20
        while (left := [pid for pid in below if _lives(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return code

    def workers(self) -> list[int]:
        """Processes of Ray in which its clients train."""
        return [pid for pid, text in descendants(self.pid).items() if text.startswith("ray::_")]


def _run(args: Sequence[str], log: Path) -> None:
    """In the child: run the command, and end."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(number, 1)
    os.dup2(number, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    code = 0
    try:
        cli.main(args)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = _TRACEBACK
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def descendants(root: int) -> dict[int, str]:
    """Process to command line of all below ``root``."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    found = [root]
    for parent in found:
        found += [pid for pid, of in parents.items() if of == parent]
    texts = {}
    for pid in found[1:]:
        with suppress(OSError):
            texts[pid] = (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    return texts


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Disk:
    """A small disk of its own in memory, which can be filled and made read-only; needs root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, left: int) -> None:
        """Leave ``left`` bytes."""
        state = os.statvfs(self.folder)
        size = max(0, state.f_bavail * state.f_frsize - left)
        with suppress(OSError), open(self.folder / "filler", "wb") as file:
            for _ in range(0, size, 4096):
                file.write(bytes(4096))
                file.flush()

    def free(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def read_only(self, on: bool) -> None:
        """Let nothing be written, or let it again."""
        options = f"remount,{'ro' if on else 'rw'}"
        subprocess.run(["mount", "-o", options, self.folder], check=True)


@contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[Disk | None]:
    """A disk mounted at ``folder``; None where this process may not mount any."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield Disk(folder) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def damage(path: Path, draw: Random) -> str:
    """Damage a file, as disks and people do; how."""
    data = bytearray(path.read_bytes())
    how = draw.choice(["bit flipped", "cut short", "emptied", "removed", "zeros"])
    if how == "removed":
        path.unlink()
        return how
    at = draw.randrange(len(data))
    if how == "bit flipped":
        data[at] ^= 1 << draw.randrange(8)
    elif how == "zeros":
        data[at : at + 512] = bytes(len(data[at : at + 512])) or b"\1"
    path.write_bytes({"cut short": data[:at], "emptied": b""}.get(how, bytes(data)))
    return how
