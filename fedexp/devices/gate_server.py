"""The gate's TLS server: uvicorn, with the limits that it lacks."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import h11
import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedexp.devices.gate import Gate, Limits
from fedexp.devices.rates import owner_of
from fedexp.devices.site import Site

MAX_CONNECTIONS = 1024
MAX_CONNECTIONS_OF_ONE = 256  # one address cannot take them all
HEADER_SECONDS = 10.0
IDLE_SECONDS = 5


class GateProtocol(H11Protocol):
    """HTTP/1.1 whose headers must come in time, on no more connections than there is room for.

    uvicorn waits for ever for a first request, and for the rest of a header.
    """

    caller = ""
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one too many."""
        super().connection_made(transport)
        self.caller = owner_of(self.client[0]) if self.client else ""
        of_one = sum(1 for x in self.connections if getattr(x, "caller", None) == self.caller)
        if len(self.connections) > MAX_CONNECTIONS or of_one > MAX_CONNECTIONS_OF_ONE:
            transport.abort()
        else:
            self._await_header()

    def data_received(self, data: bytes) -> None:
        """Read on; the clock runs while a header is incomplete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._header_is_there()
        elif self._deadline is None:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._header_is_there()
        super().connection_lost(exc)

    def _await_header(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _header_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen(address: str, port: int) -> socket.socket:
    """A socket on the public port.

    Args:
        address: of this machine; all of its addresses if empty.
        port: to listen on.

    Raises:
        ValueError: another program has the port, or the address is none of this machine's.
    """
    both = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in address else socket.AF_INET
    try:
        return socket.create_server(
            (address, port), family=family, dualstack_ipv6=both, backlog=512
        )
    except OSError as error:
        where = f"{address or 'all addresses'}, port {port}"
        raise ValueError(f"cannot listen on {where}: {error.strerror or error}.") from None


@asynccontextmanager
async def gate_on(
    site: Site, public: socket.socket
) -> AsyncIterator[tuple[Gate, asyncio.Task[None]]]:
    """Serve the gate while the block runs.

    Args:
        site: says which certificate, SuperLink and limits.
        public: listens; closed in the end.

    Yields:
        The gate, and the task that ends only if the server does.
    """
    limits = Limits(
        max_body=site.max_body_mib * 2**20, requests_per_second=site.requests_per_second
    )
    trusted = ssl.create_default_context(cafile=str(site.ca_certificate))
    async with httpx.AsyncClient(
        base_url=f"https://{site.inner}",
        verify=trusted,
        trust_env=False,  # a proxy of the environment has no business here
        timeout=httpx.Timeout(60, connect=5),
        # The SuperLink closes after 5 s: a connection that is older may just be closing.
        limits=httpx.Limits(max_connections=64, keepalive_expiry=2),
    ) as client:
        gate = Gate(client, limits)
        server = _Server(_config(site, gate))
        task = asyncio.create_task(server.serve([public]))
        try:
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
            yield gate, task
        finally:
            server.should_exit = True
            await asyncio.gather(task, return_exceptions=True)


def _config(site: Site, gate: Gate) -> uvicorn.Config:
    return uvicorn.Config(
        gate,
        http=GateProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        ssl_certfile=site.server_certificate,
        ssl_keyfile=site.server_key,
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,  # anyone could write X-Forwarded-For
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=32 * 1024,
    )
