"""Serve a site: a SuperLink on ``127.0.0.1``, its nodes, and the gate on the public port."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import signal
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from socket import socket
from typing import Any

from fedexp.devices.certificate_checks import check_certificates
from fedexp.devices.gate import Gate
from fedexp.devices.gate_server import gate_on, listen
from fedexp.devices.private_files import write_private
from fedexp.devices.site import Site, read_nodes
from fedexp.devices.superlink import SuperLink

MAX_RESTARTS = 5  # of the SuperLink, in RESTART_SECONDS
RESTART_SECONDS = 300.0


def serve(site: Site, address: str = "", *, gate: bool = True) -> None:
    """Serve until Ctrl-C or SIGTERM; no process is left then.

    A SuperLink that dies is started again with its database, and nodes come back by themselves.
    What `fedexp provision` changes in the list of nodes is in force within seconds.

    Args:
        site: whose certificates are checked first.
        address: the gate listens on; all of this machine's if empty.
        gate: whether to open it; if not, another program must be the gate, as in ``deploy/``.

    Raises:
        ValueError: a certificate is not in order, a port is taken, or the site is served already.
        RuntimeError: the SuperLink does not start, or dies again and again.
    """
    ends = check_certificates(site)
    read_nodes(site)  # damage is said before anything is started
    if ends - datetime.now(UTC) < timedelta(days=30):
        _say(f"A certificate ends on {ends:%F}. See `fedexp provision --renew-server`.")
    with _alone(site), ExitStack() as held:
        public = held.enter_context(listen(address, site.port)) if gate else None
        listen("127.0.0.1", site.inner_port).close()  # Flower says it with a traceback
        _allow_many_connections()
        asyncio.run(_Serving(site).run(public))


class _Serving:
    """What happens while a site is served."""

    def __init__(self, site: Site) -> None:
        self._site, self._superlink = site, SuperLink(site)
        self._deaths: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._listed = 0  # of which version of nodes.json the SuperLink knows

    async def run(self, public: socket | None) -> None:
        """All of it, until a signal comes or something fails; no gate if ``public`` is None."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await _first(stop.wait(), self._serve(public))
        finally:
            (self._site.state / "serve.json").unlink(missing_ok=True)
            await self._superlink.stop()
        _say("Stopped.")

    async def _serve(self, public: socket | None) -> None:
        # Flower takes a second or two to import: meanwhile its SuperLink does the same.
        importing = asyncio.to_thread(import_module, "fedexp.devices.registration")
        await asyncio.gather(self._superlink.start(), importing)
        await self._list_nodes()
        parts = [self._keep_superlink(), self._keep_nodes()]
        async with AsyncExitStack() as held:
            if public is not None:
                gate, server = await held.enter_async_context(gate_on(self._site, public))
                parts += [_report(gate), _ending(server)]
            self._write_state()
            where = self._site.server if public else f"{self._site.inner} without a gate"
            _say(f"Serving {where}. Ctrl-C ends it.")
            await _first(*parts)
        raise RuntimeError("the gate ended. Start the server again.")

    async def _keep_superlink(self) -> None:
        """Start it again when it has died, but not for ever."""
        while True:
            code = await self._superlink.wait()
            now = time.monotonic()
            if len(self._deaths) == MAX_RESTARTS and now - self._deaths[0] < RESTART_SECONDS:
                raise RuntimeError(
                    f"Flower's SuperLink has died {MAX_RESTARTS + 1} times in "
                    f"{RESTART_SECONDS:g} s: {self._superlink.last_words}"
                )
            self._deaths.append(now)
            _say(f"Flower's SuperLink has died (status {code}) and is started again.")
            await self._superlink.stop()  # what it had started
            await self._superlink.start()
            self._listed = 0
            self._write_state()

    async def _keep_nodes(self) -> None:
        """Follow ``nodes.json``."""
        while True:
            await asyncio.sleep(1)
            try:
                await self._list_nodes()
            except ConnectionError:
                continue  # the SuperLink is being started again
            except ValueError as error:
                _say(str(error))
                await asyncio.sleep(10)

    async def _list_nodes(self) -> None:
        from fedexp.devices.registration import synchronise

        written = (self._site.folder / "nodes.json").stat().st_mtime_ns
        if written == self._listed:
            return
        done = await asyncio.to_thread(synchronise, self._site)
        self._listed = written
        if done.added:
            _say(f"Registered: {', '.join(done.added)}.")
        if done.removed:
            _say(f"Shut out: {', '.join(done.removed)}.")
        if done.strangers:
            _say(f"{done.strangers} registered nodes are not in nodes.json.")

    def _write_state(self) -> None:
        """For programs that wait until we are ready, or look for our processes."""
        state = {"pid": os.getpid(), "superlink-pid": self._superlink.pid}
        write_private(self._site.state / "serve.json", json.dumps(state).encode("ascii"))


async def _first(*parts: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends, and end the others; raises what that one raised."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _ending(server: asyncio.Task[None]) -> None:
    """Wait for it, and let it go on if we are ended."""
    await asyncio.shield(server)


async def _report(gate: Gate) -> None:
    """Say once a minute how many requests were refused, if any were."""
    before: Counter[int] = Counter()
    while True:
        await asyncio.sleep(60)
        if new := gate.refused - before:
            listed = ", ".join(f"{count} with {status}" for status, count in sorted(new.items()))
            _say(f"Requests that the gate refused in the last minute: {listed}.")
        before = gate.refused.copy()


@contextmanager
def _alone(site: Site) -> Iterator[None]:
    """Keep others from serving the same site."""
    with (site.state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{site.folder}: is served already. End that server first.") from None
        yield


def _allow_many_connections() -> None:
    """The usual limit of 1024 open files is reached by the gate's connections alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _say(line: str) -> None:
    with suppress(BrokenPipeError):  # who read it has gone; the server goes on
        print(line, flush=True)
