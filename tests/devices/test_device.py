"""A device's loop, without a network: nothing that a message does ends it."""

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from superlinks import TestSite

from fedexp.cli import main
from fedexp.devices import device as device_module
from fedexp.devices.device import Device
from fedexp.devices.flower.failures import Away, Refused, Rejected, RunEnded, UnknownNode
from fedexp.devices.flower.fleet import FleetLink, FleetTask
from fedexp.devices.limits import size_of
from fedexp.devices.node_folder import NodeFolder, new_key
from fedexp.devices.patience import Patience, Stopped, StopSign, waits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return TestSite(tmp_path_factory.mktemp("site")).node("anna")


@pytest.fixture(autouse=True)
def quick(monkeypatch: Any) -> None:
    monkeypatch.setattr("fedexp.devices.patience._FIRST", 0.001)
    monkeypatch.setattr("fedexp.devices.patience.waits", lambda *_: waits(0.001, 0.002))


class Server:
    """The other side of a ``FleetLink``: a list of what happens, and what was said to it."""

    def __init__(self, *events: Any) -> None:
        self.events = list(events)
        self.sent: list[Message] = []
        self.calls: list[Any] = []
        self.device: Any = None
        self.refuses: list[Exception] = []

    def __call__(self, *_: Any) -> "Server":
        return self

    def close(self) -> None:
        self.calls.append("close")

    def activate(self) -> int:
        self.calls.append("activate")
        if self.refuses:
            raise self.refuses.pop(0)
        return 77

    def deactivate(self, node_id: int) -> None:
        self.calls.append(("deactivate", node_id))

    def heartbeat(self) -> bool:
        return True

    def next_task(self) -> Any:
        if not self.events:
            self.device.stop.set()
            return None
        event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        return FleetTask(event.metadata, None) if event else None

    def load(self, task: FleetTask, limit: int) -> Message:
        if task.metadata.group_id == "damaged":
            raise ValueError("the message cannot be read")
        if task.metadata.group_id == "ended":
            raise RunEnded("over")
        message = Message(RecordDict(), 77, "train", group_id=task.metadata.group_id)
        return message

    def run_config(self, run_id: int) -> dict[str, Any]:
        self.calls.append(("config", run_id))
        return {"seed": 1}

    def send(self, reply: Message, seconds: float) -> int:
        if reply.metadata.group_id == "large" and not reply.has_error():
            raise Rejected("413: too large")
        self.sent.append(reply)
        return 0


def message(group_id: str) -> Message:
    return Message(RecordDict(), 77, "train", group_id=group_id)


def ran(folder: Path, monkeypatch: Any, *events: Any, **settings: Any) -> Server:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "raise":
            raise RuntimeError("broken")
        return Message(RecordDict(), reply_to=message)

    server = Server(*events)
    server.refuses = settings.pop("refuses", [])
    monkeypatch.setattr(device_module, "FleetLink", server)
    server.device = Device(NodeFolder.read(folder), app, {"name": "anna"}, **settings)
    server.device.run()
    return server


def ok(message: Message, context: Context) -> Message:
    if message.metadata.group_id == "raise":
        raise RuntimeError("broken")
    return Message(RecordDict(), reply_to=message)


def outcomes(server: Server) -> list[str]:
    return [str(x.error.reason) if x.has_error() else "ok" for x in server.sent]


def test_whatever_a_message_does_the_device_goes_on(folder, monkeypatch):
    server = ran(
        *(folder, monkeypatch, message("1"), message("raise"), message("damaged")),
        *(message("ended"), message("large"), Away("gone"), Rejected("400"), message("2")),
        respond=ok,
    )
    assert outcomes(server) == [
        "ok",
        "RuntimeError: broken",
        "the message cannot be read",
        "413: too large",
        "ok",
    ]
    assert server.calls.count(("config", 1)) == 1
    assert server.calls[-2:] == [("deactivate", 77), "close"]


def test_an_app_that_raises_becomes_an_error_reply(folder, monkeypatch, capsys):
    server = ran(folder, monkeypatch, message("raise"), message("raise"))
    assert all("RuntimeError: broken" in reason for reason in outcomes(server))
    assert capsys.readouterr().err.count("RuntimeError: broken") == 1, "it is said once"


def test_a_server_that_forgot_the_node_lets_it_in_again(folder, monkeypatch):
    server = ran(folder, monkeypatch, UnknownNode("who?"), message("1"), respond=ok)
    assert server.calls.count("activate") == 2
    assert outcomes(server) == ["ok"]


def test_a_place_that_was_left_without_a_word_is_freed_first(folder, monkeypatch):
    ran(folder, monkeypatch)
    server = ran(folder, monkeypatch)
    assert server.calls[:2] == [("deactivate", 77), "activate"]


def test_a_key_that_was_taken_away_ends_the_device(folder, monkeypatch):
    with pytest.raises(UnknownNode, match="revoked"):
        ran(folder, monkeypatch, refuses=[Away("later"), UnknownNode("revoked")])


def test_sigterm_in_training_sends_a_last_word(folder, monkeypatch):
    def slow(message: Message, context: Context) -> Message:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        time.sleep(20)
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    server = ran(folder, monkeypatch, message("1"), message("2"), respond=slow)
    assert outcomes(server) == ["the device was stopped."]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_an_app_says_the_same(folder, monkeypatch):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(20)
        raise AssertionError

    server = Server(message("1"))
    monkeypatch.setattr(device_module, "FleetLink", server)
    server.device = Device(NodeFolder.read(folder), app)
    server.device.run()
    assert outcomes(server) == ["the device was stopped."]


def test_any_app_is_introduced(folder, monkeypatch):
    asked = Message(RecordDict({"config": ConfigRecord({"device": True})}), 77, "query")
    server = Server(asked)
    server.load = lambda task, limit: asked  # type: ignore[method-assign]
    monkeypatch.setattr(device_module, "FleetLink", server)
    server.device = Device(NodeFolder.read(folder), ClientApp(), {"name": "anna"})
    server.device.run()
    assert server.sent[0].content["device"]["names"] == ["anna"]


def call_for(*answers: object) -> Callable[[], object]:
    """A call that returns its answers, or raises them, one after another."""
    left = iter(answers)

    def call() -> object:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    return call


def test_waits_grow_and_a_call_is_made_again():
    said: list[str] = []
    assert Patience(StopSign(), said.append)(call_for(Away("gone"), Away("gone"), 3)) == 3
    assert said == ["gone. Trying again.", "The server is back."]


@pytest.mark.parametrize("answer", [RunEnded(), Rejected(), UnknownNode(), Refused()])
def test_a_server_that_answers_with_a_refusal_is_back(answer):
    said: list[str] = []
    patiently = Patience(StopSign(), said.append)
    with pytest.raises(type(answer)):
        patiently(call_for(Away("gone"), answer))
    assert said == ["gone. Trying again.", "The server is back."]
    assert patiently.reached


def test_patience_ends_with_the_last_try_or_the_stop():
    def gone() -> None:
        raise Away("gone")

    with pytest.raises(Away):
        Patience(StopSign(), print)(gone, tries=3)
    stop = StopSign()
    stop.set()
    with pytest.raises(Stopped):
        Patience(stop, print)(gone)


def test_a_server_that_never_spoke_tls_is_given_up():
    def cut() -> None:
        raise Away("EOF", in_handshake=True)

    with pytest.raises(Refused, match="does not speak TLS"):
        Patience(StopSign(), lambda line: None)(cut)


def link_to(folder: Path, answer: Any) -> FleetLink:
    node = NodeFolder.read(folder)
    link = FleetLink(node.server, node.ca, node.key)
    link._client._client = httpx.Client(transport=httpx.MockTransport(answer))
    return link


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((412, UnknownNode), (401, Refused), (403, RunEnded), (404, Refused), (429, Away)),
        *((502, Away), (503, Away), (504, Away), (408, Away), (413, Rejected), (500, Rejected)),
    ],
)
def test_each_status_has_a_meaning(folder, status, kind):
    headers = {"retry-after": "7"}
    link = link_to(folder, lambda request: httpx.Response(status, headers=headers, text="no"))
    with pytest.raises(kind) as raised:
        link.activate()
    assert "\n" not in str(raised.value)
    if kind is Away:
        assert raised.value.wait == 7.0


def test_a_server_that_speaks_otherwise_is_away(folder):
    link = link_to(folder, lambda request: httpx.Response(200, content=b"\xff<html>"))
    with pytest.raises(Away, match="no sound answer"):
        link.activate()


def failing(error: Exception) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("failed") from error

    return answer


def test_each_failure_of_tls_has_a_meaning(folder):
    unsafe = ssl.SSLCertVerificationError(1, "CERTIFICATE_VERIFY_FAILED")
    unsafe.verify_message = "certificate has expired"
    with pytest.raises(Refused, match="certificate has expired"):
        link_to(folder, failing(unsafe)).activate()
    plain = ssl.SSLError(1, "wrong")
    plain.reason = "WRONG_VERSION_NUMBER"
    with pytest.raises(Refused, match="does not speak TLS"):
        link_to(folder, failing(plain)).activate()
    for cut in (ssl.SSLEOFError(8, "EOF"), ConnectionResetError()):
        with pytest.raises(Away) as raised:
            link_to(folder, failing(cut)).activate()
        assert raised.value.in_handshake
    with pytest.raises(Away) as raised:
        link_to(folder, failing(ConnectionRefusedError())).activate()
    assert not raised.value.in_handshake


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("node.toml", "server = 3", "must say server and name"),
        ("node.toml", 'server = "here"\nname = "a"', "must be HOST:PORT"),
        ("node.toml", None, "has no node.toml"),
        ("ca.crt", None, "has no ca.crt"),
        ("node.key", None, "Make one with --new-key"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, name, content, reason):
    folder = TestSite(tmp_path).node("a")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(ValueError, match=reason):
        NodeFolder.read(folder)


@pytest.mark.parametrize(("name", "reason"), [("node.key", "node.key: no"), ("ca.crt", "in PEM")])
def test_files_that_are_no_key_and_no_certificate_are_refused(tmp_path, name, reason):
    folder = TestSite(tmp_path).node("a")
    (folder / name).write_text("nothing")
    node = NodeFolder.read(folder)
    with pytest.raises(ValueError, match=reason):
        FleetLink(node.server, node.ca, node.key)


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    from cryptography.hazmat.primitives.serialization import (
        load_ssh_private_key,
        load_ssh_public_key,
    )

    public = new_key(tmp_path / "new")
    key = tmp_path / "new" / "node.key"
    assert key.stat().st_mode & 0o777 == 0o600
    mine = load_ssh_private_key(key.read_bytes(), None).public_key()
    assert mine == load_ssh_public_key(public.read_bytes())
    with pytest.raises(ValueError, match="is there"):
        new_key(tmp_path / "new")


def test_one_process_at_a_time_is_a_node(folder):
    node = NodeFolder.read(folder)
    with (
        node.held(),
        pytest.raises(ValueError, match="another process is this node"),
        node.held(),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["FOLDER"], "takes --data PATH, or --edge"),
        (["FOLDER", "--data", "x", "--edge", "y"], "takes --data PATH, or --edge"),
        (["FOLDER", "--data", "x", "--new-key"], "--new-key takes no other flag, --data"),
        (["FOLDER", "--data", "x", "--max-memory", "much"], "must be a size such as 300M"),
        (["nowhere", "--data", "x"], "there is no such folder"),
        (["FOLDER", "--data", "nowhere"], "there is no such file"),
        (["FOLDER", "--data", "DATA", "--app", "nowhere:app"], "Is it on the Python path?"),
        (["FOLDER", "--data", "DATA", "--app", "os:path"], "must be a ClientApp"),
        (["FOLDER", "--data", "DATA", "--max-memory", "1M"], "the device has"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, monkeypatch, words, reason):
    monkeypatch.setattr("fedexp.devices.limits.set_threads", lambda number: None)
    np.savez(tmp_path / "mine.npz", x=np.zeros((1, 2)), y=np.zeros(1))
    places = {"FOLDER": str(folder), "DATA": str(tmp_path / "mine.npz")}
    with pytest.raises(SystemExit) as raised:
        main(["device", *(places.get(word, word) for word in words)])
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_a_new_key_is_handed_over(tmp_path, capsys):
    main(["device", str(tmp_path), "--new-key"])
    assert f"Hand over {tmp_path / 'node.pub'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"), [("300M", 300 << 20), ("1.5G", 3 << 29), ("2048", 2048), ("4 KiB", 4096)]
)
def test_sizes(text, size):
    assert size_of(text) == size
