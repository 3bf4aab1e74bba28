"""Sites on loopback, on ports that nobody uses."""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedexp.devices.provision import create
from fedexp.devices.site import Site

T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """So many, all of them different: each is held until the last one is found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    return free_ports(1)[0]


def new_site(folder: Path, *nodes: str, **settings: int) -> Site:
    """A site for ``localhost``; ``settings`` are those of `Site`."""
    site = Site(folder, ("localhost",), *free_ports(2), **settings)
    create(site, nodes)
    return site


def trusting(certificate: Path) -> ssl.SSLContext:
    """An outsider's view: nothing but the authority's certificate, and strict about it."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def exchange(site: Site, *parts: bytes, pause: float = 0.0, seconds: float = 20.0) -> bytes:
    """Send ``parts`` over TLS, with pauses between them; all that comes back until it ends."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(
            "localhost", site.port, ssl=trusting(site.ca_certificate)
        )
        try:
            reading = asyncio.ensure_future(_all_of(reader))
            for part in parts:
                writer.write(part)
                try:
                    await writer.drain()
                except ConnectionError:  # it has hung up on us
                    break
                await asyncio.sleep(pause)
            return await reading
        finally:
            writer.transport.abort()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while part := await reader.read(65536):
            found += part
    except ConnectionError:
        pass
    return found


def request(target: str, method: str = "POST", *headers: str, body: bytes = b"") -> bytes:
    """A request as its bytes; the connection ends with it."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def status_of(answer: bytes) -> int:
    """The first status in ``answer``; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def until(condition: Callable[[], T], seconds: float = 90.0) -> T:
    """What ``condition`` returns, once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def processes_with(text: object) -> list[tuple[int, str]]:
    """Living processes whose command lines hold ``text``, but for the tests' own: ids and lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode().replace("\0", " ")
            if str(text) in line and int(path.parent.name) != os.getpid():
                found.append((int(path.parent.name), line))
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
