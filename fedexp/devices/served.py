"""A site that is served by a process of its own while a block runs, for tests and programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

from fedexp.devices.site import Site


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
        site: which.
        process: of `fedexp serve`.
    """

    site: Site
    process: subprocess.Popen[bytes]

    @property
    def superlink_pid(self) -> int:
        """Of Flower's SuperLink, as it is now; it changes when it dies and is started again."""
        return superlink_pid(self.site)


def superlink_pid(site: Site) -> int:
    """The process of a site's SuperLink; 0 if the site is not served, or not yet."""
    try:
        state = json.loads((site.state / "serve.json").read_text(encoding="ascii"))
        return int(state["superlink-pid"])
    except (OSError, ValueError, KeyError):
        return 0


@contextmanager
def serving(
    site: Site,
    address: str = "127.0.0.1",
    seconds: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Run `fedexp serve` until the block ends.

    Args:
        site: to serve.
        address: the gate listens on.
        seconds: to wait until it is ready.
        environment: added to that of this process.

    Yields:
        The server, once devices can reach it.

    Raises:
        RuntimeError: it ended before it was ready, with its own line; or it is not ready in time.
    """
    command = [sys.executable, "-m", "fedexp", "serve", str(site.folder), "--listen", address]
    with TemporaryFile("w+") as said:  # a pipe that nobody reads would be full one day
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, **(environment or {})},
        )
        try:
            _await_ready(site, process, seconds, said)
            yield Served(site, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()  # the kernel tells the SuperLink
                process.wait()


def _await_ready(
    site: Site, process: subprocess.Popen[bytes], seconds: float, said: IO[str]
) -> None:
    end = time.monotonic() + seconds
    ready = site.state / "serve.json"
    while time.monotonic() < end:
        if process.poll() is not None:
            said.seek(0)
            line = said.read().strip()
            raise RuntimeError(line or f"fedexp serve ended, status {process.returncode}")
        try:
            if json.loads(ready.read_text(encoding="ascii"))["pid"] == process.pid:
                return
        except (OSError, ValueError):
            pass  # not written yet
        time.sleep(0.05)
    raise RuntimeError(f"fedexp serve: not ready in {seconds:g} s.")
