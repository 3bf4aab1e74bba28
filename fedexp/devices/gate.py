"""The only thing that the outside can reach: it forwards the routes of devices and nothing else.

Flower's SuperLink serves devices, operators and its own processes on one port, and asks only
devices for a signature: whoever reaches it can submit code that it runs. The SuperLink therefore
listens on ``127.0.0.1``, and this gate on the public port.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from fedexp.devices.rates import Rates, owner_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# As the bytes came: no percent sign, dot or second slash that the SuperLink might read otherwise.
_ROUTE = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
_FORWARDED = (b"content-type", b"accept")  # and Flower's own; no other header is of use


@dataclass(frozen=True)
class Limits:
    """What one caller, and all of them, may take.

    Attributes:
        max_body: bytes of one request.
        max_held: bytes of all requests that are being read or forwarded at once; one address may
            take half of it.
        requests_per_second: of one address, on average; four times as many in a burst.
        seconds: to read a request, and again to answer it.
    """

    max_body: int = 16 * 2**20
    max_held: int = 256 * 2**20
    requests_per_second: float = 100.0
    seconds: float = 120.0


class Gate:
    """An ASGI application that forwards ``POST /v1/fleet/…`` to the SuperLink.

    Args:
        client: whose base address is the SuperLink's.
        limits: see there.

    Attributes:
        refused: how many requests got which status.
    """

    def __init__(self, client: httpx.AsyncClient, limits: Limits) -> None:
        self.refused: Counter[int] = Counter()
        self._client, self._limits = client, limits
        self._rates = Rates(limits.requests_per_second, 4 * limits.requests_per_second)
        self._held: Counter[str] = Counter()  # bytes, by caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        caller = owner_of(scope["client"][0]) if scope["client"] else ""
        body = Body(self._limits, partial(self._reserve, caller), receive)
        try:
            response = await self._forwarded(scope, caller, body)
        except Refusal as refusal:
            self.refused[refusal.status] += 1
            await _refuse(refusal, body, send)
        else:
            async with asyncio.timeout(self._limits.seconds):
                await _answer(response, send)

    async def _forwarded(self, scope: Scope, caller: str, body: Body) -> httpx.Response:
        """The SuperLink's answer."""
        if not self._rates.admits(caller):
            raise Refusal(429, "too many requests from this address")
        route = scope["raw_path"]
        if scope["method"] != "POST" or scope["query_string"] or not _ROUTE.fullmatch(route):
            raise Refusal(404, "not found")
        try:
            content = await body.read(scope["headers"])
            return await self._client.post(
                route.decode("ascii"), content=content, headers=_forwarded_headers(scope)
            )
        except httpx.HTTPError:  # Flower's clients try again after 503
            raise Refusal(503, "the server is starting or busy") from None
        finally:
            body.release()

    def _reserve(self, caller: str, size: int) -> bool:
        """Count bytes that are held, or no longer held if ``size < 0``; False if too many are."""
        most = self._limits.max_held
        if size > 0 and (self._held.total() + size > most or self._held[caller] + size > most // 2):
            return False
        self._held[caller] += size
        if not self._held[caller]:
            del self._held[caller]
        return True


class Refusal(Exception):
    """An answer that is not the SuperLink's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Body:
    """A request's body, counted while it comes, whatever the sender says of its length.

    Args:
        limits: of the gate.
        reserve: counts what all requests hold.
        receive: gives the next part.
    """

    def __init__(self, limits: Limits, reserve: Callable[[int], bool], receive: Receive) -> None:
        self._limits, self._reserve, self._receive = limits, reserve, receive
        self._parts: list[bytes] = []
        self._size = 0
        self._more = True

    async def read(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """All of it.

        Raises:
            Refusal: it is too large, too slow, or cut off, or others hold too much.
        """
        declared = dict(headers).get(b"content-length", b"0")
        if int(declared) > self._limits.max_body:
            raise Refusal(413, "too large")
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._collect()
        except TimeoutError:
            raise Refusal(408, "too slow") from None
        content = b"".join(self._parts)
        self._parts.clear()  # else it would be held twice while it is forwarded
        return content

    def release(self) -> None:
        """Say that it is held no longer."""
        self._parts.clear()
        self._reserve(-self._size)

    async def skip(self) -> None:
        """Throw the rest away as it comes."""
        while self._more:
            await self._next()

    async def _next(self) -> bytes:
        event = await self._receive()
        self._more = event.get("more_body", False)
        if event["type"] == "http.disconnect":
            raise Refusal(400, "cut off")
        return bytes(event.get("body", b""))

    async def _collect(self) -> None:
        while self._more:
            part = await self._next()
            if self._size + len(part) > self._limits.max_body:
                raise Refusal(413, "too large")
            if not self._reserve(len(part)):
                raise Refusal(503, "the server is busy")
            self._size += len(part)
            self._parts.append(part)


def _forwarded_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [
        (name, value)
        for name, value in scope["headers"]
        if name in _FORWARDED or name.startswith(b"flwr-")
    ]


async def _answer(response: httpx.Response, send: Send) -> None:
    headers = [
        (name.lower(), value)
        for name, value in response.headers.raw
        if name.lower() == b"content-type" or name.lower().startswith(b"flwr-")
    ]
    headers.append((b"content-length", b"%d" % len(response.content)))
    start = {"type": "http.response.start", "status": response.status_code, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": response.content})


async def _refuse(refusal: Refusal, body: Body, send: Send) -> None:
    """Say no and hang up, but listen for a while: who is still sending would miss the answer."""
    text = refusal.text.encode("ascii")
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", b"%d" % len(text)),
        (b"connection", b"close"),
    ]
    if refusal.status in (429, 503):
        headers.append((b"retry-after", b"5"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": True})
    if refusal.status != 408:  # who was too slow once is not waited for again
        with contextlib.suppress(TimeoutError, Refusal):
            async with asyncio.timeout(5):
                await body.skip()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
