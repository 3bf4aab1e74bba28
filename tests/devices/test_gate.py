"""The gate alone: what it forwards, what it refuses, how much and how long it reads."""

import asyncio
import contextlib
import socket
import ssl
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
from sites import exchange, free_port, new_site, request, status_of, trusting

from fedexp.devices import gate_server
from fedexp.devices.gate import Gate, Limits
from fedexp.devices.gate_server import gate_on, listen
from fedexp.devices.rates import Rates

ROUTE = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return new_site(tmp_path_factory.mktemp("gate") / "site", max_body_mib=1)


def superlink(asked, request):
    """Answers for the SuperLink, and keeps what it was asked."""
    asked.append(request)
    headers = {"content-type": "application/protobuf", "flwr-x": "y", "set-cookie": "z"}
    return httpx.Response(401, content=b"who are you", headers=headers)


def answers(*requests, limits=None, behind=None):
    """What the gate says to requests of `ask`, with no server around it; and what came through."""
    asked = []
    handler = behind or partial(superlink, asked)

    async def run():
        client = httpx.AsyncClient(
            transport=httpx.MockTransport(handler), base_url="https://127.0.0.1:1"
        )
        async with client:
            gate = Gate(client, limits or Limits())
            async with caller(gate, "192.0.2.1") as one:
                return [await one.request(method, url, **more) for method, url, more in requests]

    return asyncio.run(run()), asked


def caller(gate, address):
    """A client of ``gate`` that calls from ``address``."""
    outside = httpx.ASGITransport(gate, client=(address, 1))
    return httpx.AsyncClient(transport=outside, base_url="https://h")


def ask(url=ROUTE, method="POST", **more):
    return method, url, more


def test_a_route_of_devices_is_forwarded_with_its_body_and_flowers_headers():
    headers = {
        "flwr-signature": "s",
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "x-forwarded-for": "127.0.0.1",
        "authorization": "Bearer x",
    }
    (answer,), (seen,) = answers(ask(content=b"\x00\xffbody", headers=headers))
    assert (answer.status_code, answer.content) == (401, b"who are you")
    assert answer.headers["flwr-x"] == "y"
    assert "set-cookie" not in answer.headers
    assert (seen.url.path, seen.content) == (ROUTE, b"\x00\xffbody")
    assert seen.headers["flwr-signature"] == "s"
    assert seen.headers["accept"] == "application/protobuf"
    assert not {"x-forwarded-for", "authorization"} & set(seen.headers)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_are_not_found(method):
    (answer,), asked = answers(ask(method=method))
    assert (answer.status_code, asked) == (404, [])


def test_a_body_without_a_length_is_counted_while_it_is_read():
    async def endless():
        for _ in range(1000):
            await asyncio.sleep(0)
            yield bytes(1000)

    (answer,), asked = answers(ask(content=endless()), limits=Limits(max_body=5000, seconds=1))
    assert (answer.status_code, asked) == (413, [])


def test_a_body_of_just_the_limit_goes_through():
    sizes = ask(content=bytes(5000)), ask(content=bytes(5001))
    got, asked = answers(*sizes, limits=Limits(max_body=5000))
    assert [answer.status_code for answer in got] == [401, 413]
    assert [len(request.content) for request in asked] == [5000]


def test_requests_beyond_the_rate_are_refused_and_told_to_wait():
    got, asked = answers(*[ask()] * 10, limits=Limits(requests_per_second=0.5))
    assert [answer.status_code for answer in got] == [401] * 2 + [429] * 8
    assert got[-1].headers["retry-after"] == "5"
    assert len(asked) == 2


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.PoolTimeout])
def test_a_superlink_that_is_away_is_a_503_which_flowers_clients_retry(error):
    def away(request):
        raise error("away")

    (answer,), _ = answers(ask(), behind=away)
    assert answer.status_code == 503


@pytest.mark.parametrize(
    ("holding", "other", "status"),
    [(["a"], "a", 503), (["a"], "b", 401), (["a", "b"], "c", 503)],
)
def test_what_is_held_at_once_is_limited_and_given_back(holding, other, status):
    """1000 bytes in all, and half of it for one address."""

    async def run():
        reached, go = asyncio.Semaphore(0), asyncio.Event()

        async def slow():
            yield bytes(400)
            reached.release()
            await go.wait()
            yield bytes(1)

        handler = httpx.MockTransport(partial(superlink, []))
        async with httpx.AsyncClient(transport=handler, base_url="https://x") as client:
            gate = Gate(client, Limits(max_held=1000))
            async with caller(gate, "a") as a, caller(gate, "b") as b, caller(gate, "c") as c:
                callers = {"a": a, "b": b, "c": c}
                waiting = [
                    asyncio.ensure_future(callers[x].post(ROUTE, content=slow())) for x in holding
                ]
                for _ in waiting:
                    await reached.acquire()
                during = await callers[other].post(ROUTE, content=bytes(300))
                go.set()
                held = await asyncio.gather(*waiting)
                after = await callers[other].post(ROUTE, content=bytes(500))
                return during.status_code, {x.status_code for x in [*held, after]}

    assert asyncio.run(run()) == (status, {401})


def test_a_rate_is_per_address_and_comes_back():
    now = [0.0]
    rates = Rates(per_second=2, burst=3, clock=lambda: now[0])
    assert [rates.admits("a") for _ in range(4)] == [True] * 3 + [False]
    assert rates.admits("b")
    now[0] = 0.5  # one token
    assert [rates.admits("a") for _ in range(2)] == [True, False]
    now[0] = 1000.0  # never more than the bucket holds
    assert [rates.admits("a") for _ in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_a_subnet_of_ipv6_counts_as_one_address(one, other, same):
    rates = Rates(per_second=0, burst=1)
    assert rates.admits(one)
    assert rates.admits(other) is not same


def test_the_table_of_addresses_does_not_grow(monkeypatch):
    monkeypatch.setattr("fedexp.devices.rates._MAX_ADDRESSES", 2)
    rates = Rates(per_second=0, burst=1, clock=lambda: 0.0)
    assert [rates.admits(x) for x in ("a", "b", "b", "c")] == [True, True, False, True]
    assert not rates.admits("b")  # c has put a out, which was not heard of for longest
    assert rates.admits("a")


def on_sockets(site, *clients):
    """What each of ``clients`` returns, run one after the other against a gate on a real port."""

    @asynccontextmanager
    async def gate():
        with listen("127.0.0.1", site.port) as public:
            async with gate_on(site, public):
                yield

    async def run():
        async with gate():
            return [await client() for client in clients]

    return asyncio.run(run())


TRICKS = [
    "//v1/fleet/pull-messages",
    "/v1//fleet/pull-messages",
    "/v1/fleet//pull-messages",
    "/v1/fleet/",
    "/v1/fleet",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..;/control/list-nodes",
    "/v1/fleet/..\\control\\list-nodes",
    "/v1/fleet/pull-messages?x=/v1/control/list-nodes",
    "/v1/fleet/pull-messages%00",
    "/v1/fleet/pull-messages%0d%0aX:%20y",
    "/v1/fleet/pull-messages#/v1/control/list-nodes",
    "/v1/%66leet/pull-messages",
    "/V1/FLEET/pull-messages",
    "https://localhost/v1/control/list-nodes",
    "https://localhost/v1/fleet/pull-messages",
    "localhost:443",
    "*",
    "/",
]


def test_no_spelling_of_a_path_gets_past_the_gate(site):
    def trick(path):
        return partial(exchange, site, request(path))

    found = on_sockets(site, *map(trick, [*TRICKS, ROUTE]))
    statuses = dict(zip([*TRICKS, ROUTE], map(status_of, found), strict=True))
    # 503: it would have been forwarded, if a SuperLink were there.
    assert statuses == {**dict.fromkeys(TRICKS, 404), ROUTE: 503}


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.2"])
def test_a_connection_is_not_upgraded(site, protocol):
    headers = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}")
    headers += ("HTTP2-Settings: AAMAAABkAAQAAP__", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    found = on_sockets(
        site,
        partial(exchange, site, request("/v1/control/list-nodes", "GET", *headers)),
        partial(exchange, site, request(ROUTE, "POST", *headers)),
    )
    assert list(map(status_of, found)) == [404, 503]


def test_a_second_request_on_a_connection_is_looked_at_like_the_first(site):
    first = request(ROUTE).replace(b"Connection: close\r\n", b"")
    both = first + request("/v1/control/list-nodes")
    (found,) = on_sockets(site, partial(exchange, site, both))
    assert found.count(b"HTTP/1.1 ") == 1  # a refusal hangs up
    assert status_of(found) == 503


def test_a_request_with_two_lengths_cannot_hide_another(site):
    """Whichever length the SuperLink believed, it gets a request of the gate's own making."""
    hidden = request("/v1/control/list-nodes")
    headers = (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked")
    twice = ("Content-Length: 0", f"Content-Length: {len(hidden)}")
    chunked = b"0\r\n\r\n" + hidden
    found = on_sockets(
        site,
        partial(exchange, site, request(ROUTE, "POST", *headers, body=chunked)),
        partial(exchange, site, request(ROUTE, "POST", *twice, body=hidden)),
    )
    assert found[0].count(b"HTTP/1.1 ") == 1
    assert status_of(found[1]) == 400


@pytest.mark.parametrize("length", ["-1", "1e9", "99999999999999999999999", "0x10", ""])
def test_an_odd_length_is_refused(site, length):
    (found,) = on_sockets(
        site, partial(exchange, site, request(ROUTE, "POST", f"Content-Length: {length}"))
    )
    assert status_of(found) in (400, 413)


def sent_whole_then_read(site, data):
    """As clients do that write all of a request before they look for an answer."""
    found = b""
    with (
        socket.create_connection(("127.0.0.1", site.port), 20) as raw,
        trusting(site.ca_certificate).wrap_socket(raw, server_hostname="localhost") as outside,
        contextlib.suppress(ConnectionError, ssl.SSLError),
    ):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            outside.sendall(data)
        while part := outside.recv(65536):
            found += part
    return found


def test_a_refused_request_is_read_on_before_the_connection_ends():
    """Hanging up at once resets the connection: some systems lose the answer then (RFC 9112)."""
    happened, left = [], [b"x", b"y", b""]

    async def receive():
        happened.append("read")
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(event):
        happened.append(event.get("status") or event["more_body"])

    scope = {"type": "http", "method": "POST", "raw_path": ROUTE.encode(), "query_string": b""}
    scope |= {"client": ("a", 1), "headers": [(b"content-length", b"9999999999")]}
    asyncio.run(Gate(httpx.AsyncClient(), Limits())(scope, receive, send))
    assert happened == [413, True, "read", "read", "read", False]


def test_who_sends_too_much_still_reads_why(site):
    declared = request(ROUTE, body=bytes(8 * 2**20))
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    chunked = request(ROUTE, "POST", "Transfer-Encoding: chunked") + chunk * 128 + b"0\r\n\r\n"
    found = on_sockets(
        site,
        partial(asyncio.to_thread, sent_whole_then_read, site, declared),
        partial(asyncio.to_thread, sent_whole_then_read, site, chunked),
    )
    assert list(map(status_of, found)) == [413, 413]


def test_long_headers_are_refused(site):
    endless = request(ROUTE, "POST", "X: " + "y" * 100_000)[:-4]
    (found,) = on_sockets(site, partial(exchange, site, endless))
    assert status_of(found) == 400


@pytest.mark.parametrize(
    "parts",
    [
        [],  # a handshake, and silence
        [b"POST /v1/fl"],
        [b"POST / HTTP/1.1\r\nHost: x\r\n", *[b"X: y\r\n"] * 20],  # a line at a time
        # A keep-alive connection that begins a second request and never ends it:
        [request("/x").replace(b"Connection: close\r\n", b"") + b"POST /", *[b"x"] * 20],
    ],
)
def test_slow_headers_are_cut_off(site, monkeypatch, parts):
    monkeypatch.setattr(gate_server, "HEADER_SECONDS", 0.5)

    async def timed():
        start = asyncio.get_running_loop().time()
        await exchange(site, *parts, pause=0.1)
        return asyncio.get_running_loop().time() - start

    (seconds,) = on_sockets(site, timed)
    assert seconds < 3  # a client that were listened to would take longer, or 20 s


def test_a_slow_body_is_cut_off(site, monkeypatch):
    monkeypatch.setattr(gate_server, "Limits", partial(Limits, seconds=0.5))
    head = request(ROUTE, "POST", "Content-Length: 1000")
    (found,) = on_sockets(site, partial(exchange, site, head, *[b"x"] * 20, pause=0.1))
    assert status_of(found) == 408


def test_one_address_cannot_take_all_connections(site, monkeypatch):
    monkeypatch.setattr(gate_server, "MAX_CONNECTIONS_OF_ONE", 3)
    monkeypatch.setattr(gate_server, "HEADER_SECONDS", 1.0)

    async def five():
        late = [exchange(site, pause=0), *[exchange(site) for _ in range(4)]]
        waiting = [asyncio.ensure_future(x) for x in late]
        await asyncio.sleep(0.5)
        cut_off = sum(x.done() for x in waiting)
        await asyncio.gather(*waiting)
        return cut_off, status_of(await exchange(site, request(ROUTE)))

    ((cut_off, later),) = on_sockets(site, five)
    assert (cut_off, later) == (2, 503)


def test_plain_text_is_not_answered(site):
    async def plain():
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(request(ROUTE))
        try:
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    (found,) = on_sockets(site, plain)
    assert b"HTTP" not in found


def test_a_port_that_is_taken_is_named():
    port = free_port()
    with (
        listen("127.0.0.1", port),
        pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1, port {port}: Address"),
    ):
        listen("127.0.0.1", port)


def test_all_addresses_means_both_kinds():
    port = free_port()
    with listen("", port), pytest.raises(ValueError, match="all addresses"):
        listen("", port)
