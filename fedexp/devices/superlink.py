"""Flower's SuperLink as a child process on ``127.0.0.1``, and the end of all that it starts."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import ssl
import subprocess
import sys
import sysconfig
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import httpx

from fedexp.devices.private_files import write_private
from fedexp.devices.site import Site

START_SECONDS = 90.0  # imports alone take 10 on a busy machine
STOP_SECONDS = 10.0
_MARK = "FEDEXP_SERVED"  # an environment variable: all offspring of ours inherit it
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_TELLING = re.compile(r"^[\w.]*(Error|Exception)\b.*:|^ERROR|^\[code")


class SuperLink:
    """One process of ``flower-superlink`` and its offspring: SuperExec and ServerApps.

    The inner connection has TLS, with the certificate of the gate, although it never leaves the
    machine. While the SuperLink is down, another user of the machine could listen on its port; the
    gate would hand him the devices' models, and SuperNodes would run code that he sends.

    Args:
        site: says which certificate, port and database.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._mark = uuid.uuid4().hex
        self._tail: deque[str] = deque(maxlen=40)  # what it said last
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        return self._process.pid if self._process else 0

    @property
    def last_words(self) -> str:
        """The last line that says what went wrong, of a traceback or of Flower's log."""
        lines = [line for line in self._tail if line]
        telling = [line for line in lines if _TELLING.search(line)]
        return (telling or lines or ["it said nothing"])[-1][:300]

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ends at once, or does not answer in time.
        """
        _write_flower_config(self._site)
        self._tail.clear()
        # Not asyncio's: its wait() also waits for all offspring that hold the pipe.
        self._process = subprocess.Popen(
            _command(self._site),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(self._site) | {_MARK: self._mark},
            cwd=self._site.state,
            start_new_session=True,  # Ctrl-C is for us; we end it when the gate is closed
            umask=0o077,  # of the database
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()
        ended, answers = asyncio.create_task(self.wait()), asyncio.create_task(self._answers())
        try:
            done, _ = await asyncio.wait(
                {ended, answers}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
            answers.cancel()
        if answers not in done:
            await self.stop()
            how = "ended" if ended in done else f"did not answer in {START_SECONDS:g} s"
            raise RuntimeError(f"Flower's SuperLink {how}: {self.last_words}")

    async def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None, "start() comes first"
        while (code := self._process.poll()) is None:
            await asyncio.sleep(0.1)
        return code

    async def stop(self) -> None:
        """End it, and all that it has started; nothing happens if nothing is left."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self.wait()
        await self._end_offspring()
        if self._reader is not None:
            self._reader.join(5)  # the pipe is closed once all who hold it are gone

    async def _end_offspring(self) -> None:
        """SuperExec and ServerApps run in sessions of their own, and may outlive the SuperLink."""
        for number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 50)):
            for _ in range(patience):
                found = list(_marked(self._mark))
                if not found:
                    return
                for pid in found:
                    _kill(pid, number)
                await asyncio.sleep(0.1)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Keep its last lines; ``state/superlink.log``, which Flower rotates, has them all."""
        assert process.stdout is not None, "start() asked for a pipe"
        with process.stdout as pipe:
            for line in pipe:
                text = _ESCAPES.sub("", line.decode("utf-8", "replace"))
                self._tail.append(" ".join(text.split()))

    async def _answers(self) -> None:
        trusted = ssl.create_default_context(cafile=str(self._site.ca_certificate))
        async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
            while True:
                try:
                    answer = await client.get(f"https://{self._site.inner}/health", timeout=5)
                    if answer.is_success:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1)


def _command(site: Site) -> list[str]:
    return [
        str(Path(sysconfig.get_path("scripts")) / "flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(site.inner_port)),
        *("--ssl-ca-certfile", str(site.ca_certificate)),
        *("--ssl-certfile", str(site.server_certificate)),
        *("--ssl-keyfile", str(site.server_key)),
        "--enable-supernode-auth",
        *("--database", str(site.state / "state.db")),
        *("--log-file", str(site.state / "superlink.log")),
    ]


def _environment(site: Site) -> dict[str, str]:
    """Flower's settings; the user's own win, but for the folder."""
    usual = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # an app must not install packages
    }
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    own = {"FLWR_HOME": str(site.state / "flwr"), "PATH": path}  # it calls flower-superexec
    return usual | dict(os.environ) | own


def _write_flower_config(site: Site) -> None:
    """Let ``FLWR_HOME=SITE/state/flwr flwr list`` and its like find the SuperLink."""
    home = site.state / "flwr"
    home.mkdir(mode=0o700, exist_ok=True)
    text = (
        '[superlink]\ndefault = "site"\n\n[superlink.site]\n'
        f'address = "{site.inner}"\nroot-certificates = "{site.ca_certificate}"\n'
    )
    write_private(home / "config.toml", text.encode("utf-8"))


def _end_with_parent() -> None:
    """In the child: ask the kernel for SIGTERM when we are gone, even if we are killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _marked(mark: str) -> Iterator[int]:
    """Processes of this user that carry our mark; none where there is no ``/proc``."""
    wanted = f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)
        except OSError:  # another user's, or just gone
            continue


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
