"""`fedexp serve` with real processes: one server for all tests of this file, on loopback."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from sites import alive, exchange, free_port, new_site, processes_with, request, trusting, until
from superlinks import TestSite

from fedexp import cli
from fedexp.devices import Link, provision, serving, submit
from fedexp.devices.flower.control import Control
from fedexp.devices.registration import synchronise

pytestmark = pytest.mark.deploy
LIST_NODES = "/v1/control/list-nodes"


SLEEP = "pathlib.Path(config['out']).write_text(str(os.getpid())); time.sleep(100)"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    site = new_site(tmp_path_factory.mktemp("served") / "site", "anna", "bob")
    with serving(site, environment={"OMP_NUM_THREADS": "1"}) as server:
        yield server


@pytest.fixture
def link(served):
    return Link.to(served.site)


def outsider(site, certificate=None):
    """A client with nothing but ``ca.crt``."""
    context = trusting(certificate or site.ca_certificate)
    return httpx.Client(base_url=f"https://localhost:{site.port}", verify=context, trust_env=False)


def routes(site):
    """All that the SuperLink itself says it serves: ``METHOD, path``."""
    context = trusting(site.ca_certificate)
    said = httpx.get(f"https://{site.inner}/openapi.json", verify=context, trust_env=False).json()
    return [(method.upper(), path) for path, x in said["paths"].items() for method in x]


def test_an_outsider_reaches_the_routes_of_devices_alone(served):
    with outsider(served.site) as client:
        found = {
            (method, path): client.request(method, path).status_code
            for method, path in [*routes(served.site), ("GET", "/docs"), ("GET", "/openapi.json")]
        }
    fleet = {key: status for key, status in found.items() if key[1].startswith("/v1/fleet/")}
    others = {key: status for key, status in found.items() if key not in fleet}
    assert ("POST", "/v1/control/start-run") in others
    assert ("POST", "/v1/runtime/acquire-task") in others
    assert set(others.values()) == {404}
    # The SuperLink's own answer to a request without a body and signature of Flower's.
    assert len(fleet) > 5
    assert not set(fleet.values()) & {200, 404, 500, 502, 503}


def test_from_inside_the_same_routes_are_there(served):
    """What the gate is for: without it, the outsider's 404 would be an answer."""
    context = trusting(served.site.ca_certificate)
    inner = f"https://{served.site.inner}"
    with httpx.Client(base_url=inner, verify=context, trust_env=False) as client:
        assert client.get("/docs").status_code == 200
        headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
        assert client.post(LIST_NODES, headers=headers).status_code == 200


def test_a_second_request_on_a_connection_is_looked_at_like_the_first(served):
    first = request("/v1/fleet/pull-messages").replace(b"Connection: close\r\n", b"")
    found = asyncio.run(exchange(served.site, first, request(LIST_NODES), pause=0.5))
    answers = found.split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) // 100 for answer in answers] == [4, 4]
    assert answers[1].startswith(b"404")
    assert not answers[0].startswith(b"404")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_not_kept(served, chunked):
    size = 64 * 2**20
    before = resident(served.process.pid), resident(served.superlink_pid)
    body = (bytes(2**20) for _ in range(64)) if chunked else bytes(size)
    with outsider(served.site) as client:
        assert client.post("/v1/fleet/push-object", content=body).status_code == 413
    assert resident(served.process.pid) - before[0] < 40 * 2**20
    assert resident(served.superlink_pid) - before[1] < 20 * 2**20


def resident(pid):
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_plain_text_wrong_names_and_other_authorities_are_refused(served, tmp_path):
    site = served.site
    other = new_site(tmp_path / "other")
    with (
        outsider(site, other.ca_certificate) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("/")
    for name in ("fl.example.org", "127.0.0.2"):
        with (
            socket.create_connection(("127.0.0.1", site.port), 10) as raw,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            trusting(site.ca_certificate).wrap_socket(raw, server_hostname=name)
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.HTTPError):
        client.post(f"http://localhost:{site.port}/v1/fleet/pull-messages")


def test_the_superlink_does_not_listen_for_others(served):
    """127.0.0.2 is another address of this machine, as that of its network would be."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.site.inner_port), 5)


def test_what_is_written_is_for_the_owner_alone(served):
    for path in served.site.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.name == "lock", path
    assert (served.site.state / "state.db").is_file()


def test_nodes_come_and_go_while_the_server_runs(served, link):
    def names():
        return {node.name for node in submit.registered_nodes(link)}

    provision.add(served.site, "carl")
    until(lambda: "carl" in names())
    ids = {node.name: node.node_id for node in submit.registered_nodes(link)}
    provision.revoke(served.site, "carl")
    until(lambda: "carl" not in names())
    assert {node.name: node.node_id for node in submit.registered_nodes(link)}.items() < ids.items()


def test_a_node_that_is_registered_already_is_no_error(served, link):
    """As when two see a change of nodes.json at once."""
    before = submit.registered_nodes(link)
    done = synchronise(served.site)
    assert (done.added, done.removed, done.strangers) == ([], [], 0)
    public = serialization.load_ssh_public_key(
        (served.site.node_folder("anna") / "node.pub").read_bytes()
    )
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with Control(served.site.inner, served.site.ca_certificate) as control:
        assert control.register(pem, "anna") is False
    assert submit.registered_nodes(link) == before


def app(folder, body):
    """A Flower app whose ServerApp does ``body``."""
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "tiny"\nversion = "0.1.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "tests"\n'
        '[tool.flwr.app.components]\nserverapp = "tiny.app:app"\nclientapp = "tiny.app:client"\n'
        '[tool.flwr.app.config]\nout = ""\nseconds = 0.0\n'
    )
    (folder / "tiny" / "__init__.py").touch()
    (folder / "tiny" / "app.py").write_text(
        "import os, pathlib, time\n"
        "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
        "app = ServerApp()\nclient = ClientApp()\n"
        f"@app.main()\ndef main(grid, context):\n    config = context.run_config\n    {body}\n"
    )
    return folder


def finished(link, run):
    def status():
        now = submit.run_status(run, link)
        return now if now.status == "finished" else None

    return until(status, 90)


def started(link, folder):
    """A run whose ServerApp sleeps: its id, that of its process, and what its status was."""
    out, seen = folder / "pid", []
    run = submit.start_run(app(folder / "app", SLEEP), link, {"out": str(out)})

    def running():
        seen.append(submit.run_status(run, link).status)
        return seen[-1] == "running" and out.exists() and out.read_text()

    return run, int(until(running, 90)), seen


def test_a_run_is_submitted_watched_and_stopped(served, link, tmp_path):
    run, pid, seen = started(link, tmp_path)
    assert seen == sorted(seen, key=["pending", "starting", "running"].index)
    assert submit.stop_run(run, link)
    done = finished(link, run)
    assert (done.status, done.sub_status) == ("finished", "stopped")
    assert not submit.stop_run(run, link)
    until(lambda: not alive(pid))


REFUSALS = {
    "stranger": "does not accept this node's key",
    "misled": "a certificate that ca.crt does not vouch for",
    "elsewhere": "does not vouch for: .*127.0.0.1",
    "late": "certificate has expired",
    "plain": "does not speak TLS",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_device_that_is_refused_ends_with_one_line(served, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedexp.devices.limits.set_threads", lambda number: None)
    other = TestSite(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2), "f"), y=np.zeros(3))
    files = {
        "elsewhere": lambda: other.server_files(host="fl.example.org"),
        "late": lambda: other.server_files(lasts=timedelta(days=-1)),
        "plain": tuple,
    }
    with contextlib.ExitStack() as held:
        if name in files:
            node = other.node(name, port=held.enter_context(answering(*files[name]())))
        else:
            node = other.node(name, host="localhost", port=served.site.port)
        if name == "stranger":
            (node / "ca.crt").write_bytes(served.site.ca_certificate.read_bytes())
        words = ["device", str(node), "--data", str(tmp_path / "data.npz")]
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--app", "fedexp.devices.linear:client"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    (error,) = [x for x in said.splitlines() if x.startswith("fedexp: error:")]
    assert re.search(REFUSALS[name], error)
    assert "Traceback" not in said


@contextlib.contextmanager
def answering(*files):
    """A port that answers with these files of a certificate and its key; without TLS if none."""
    server, context = socket.create_server(("127.0.0.1", 0)), None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)

    def serve():
        with contextlib.suppress(OSError):  # it is closed
            while True:
                answer(server.accept()[0])

    def answer(connection):
        with contextlib.suppress(OSError), connection:
            if context:
                context.wrap_socket(connection, server_side=True).close()
            else:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)  # which ends accept()
        server.close()
        thread.join(30)


def test_what_cannot_be_submitted_is_one_line(served, link, tmp_path):
    with pytest.raises(ValueError, match="is no Flower app"):
        submit.start_run(tmp_path, link, {})
    with pytest.raises(RuntimeError, match=r"the SuperLink refused: Run ID not found"):
        submit.run_status(5, link)
    nobody = Link(f"127.0.0.1:{free_port()}", link.ca_certificate)
    with pytest.raises(ConnectionError, match="no SuperLink answers"):
        submit.registered_nodes(nobody)


def serve_fails(capsys, site):
    """The line of a server that does not start."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", str(site.folder), "--listen", "127.0.0.1"])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_a_site_is_served_once(served, capsys):
    assert "is served already" in serve_fails(capsys, served.site)


@pytest.mark.parametrize("name", ["port", "inner_port"])
def test_a_taken_port_is_one_line(served, tmp_path, capsys, name):
    taken = getattr(served.site, name)
    site = replace(new_site(tmp_path / "site"), **{name: taken})
    site.save()
    assert f"port {taken}: Address already in use" in serve_fails(capsys, site)


def test_ctrl_c_leaves_no_process(served, link, tmp_path):
    """The last test of this server."""
    _, pid, _ = started(link, tmp_path)
    folder = served.site.folder
    found = " ".join(line for _, line in processes_with(folder))
    assert all(x in found for x in ("serve", "flower-superlink", "flower-superexec", "serverapp"))
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    assert not processes_with(folder)
    assert not alive(pid)
    assert not (served.site.state / "serve.json").exists()
