"""The SuperLink as a child process, played by small programs that misbehave."""

import asyncio
import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from sites import new_site

from fedexp.devices import superlink
from fedexp.devices.gate_server import listen
from fedexp.devices.registration import Registered
from fedexp.devices.serve import _Serving
from fedexp.devices.superlink import SuperLink, _environment


@pytest.fixture
def site(tmp_path):
    return new_site(tmp_path / "site")


@pytest.fixture
def played_by(monkeypatch):
    """Let a program in Python be the SuperLink; it answers at once if ``answers``."""

    def play(code, answers=False):
        monkeypatch.setattr(superlink, "_command", lambda site: [sys.executable, "-c", code])
        if answers:
            monkeypatch.setattr(SuperLink, "_answers", lambda self: asyncio.sleep(1))

    return play


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("print('INFO : hello'); raise OSError('disk full')", "OSError: disk full"),
        ("print('\\x1b[91mERROR \\x1b[0m:   bad address'); print('bye'); exit(3)", "bad address"),
        (
            "print('sql.DatabaseError: no\\n(Background on this error)'); exit(1)",
            "DatabaseError: no",
        ),
        ("print('goodbye')", "goodbye"),
        ("", "it said nothing"),
    ],
)
def test_a_superlink_that_ends_at_once_gets_its_last_words(site, played_by, said, line):
    played_by(said)
    with pytest.raises(RuntimeError, match=f"Flower's SuperLink ended: .*{line}"):
        asyncio.run(SuperLink(site).start())


def test_a_superlink_that_never_answers_is_given_up_and_ended(site, played_by, monkeypatch):
    monkeypatch.setattr(superlink, "START_SECONDS", 1.0)
    played_by("import time; print('thinking', flush=True); time.sleep(100)")
    link = SuperLink(site)
    with pytest.raises(RuntimeError, match="did not answer in 1 s: thinking"):
        asyncio.run(link.start())
    assert not alive(link.pid)


def test_what_it_starts_is_ended_with_it_also_what_ignores_that(site, played_by, monkeypatch):
    """As SuperExec does: a session of its own. And worse: it does not listen to SIGTERM."""
    monkeypatch.setattr(superlink, "STOP_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(100)"
    played_by(
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True)\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "time.sleep(100)\n",
        answers=True,
    )

    async def run():
        link = SuperLink(site)
        await link.start()
        child = int((site.state / "pid").read_text())
        assert alive(link.pid)
        assert alive(child)
        await link.stop()
        return link.pid, child

    assert not any(map(alive, asyncio.run(run())))


def test_the_database_is_made_for_the_owner_alone(site, played_by):
    played_by("open('state.db', 'w'); import time; time.sleep(100)", answers=True)

    async def run():
        link = SuperLink(site)
        await link.start()
        await link.stop()

    asyncio.run(run())
    assert (site.state / "state.db").stat().st_mode & 0o777 == 0o600


def test_a_superlink_that_dies_again_and_again_ends_the_server(site, played_by, monkeypatch, capfd):
    monkeypatch.setattr("fedexp.devices.serve.MAX_RESTARTS", 2)
    monkeypatch.setattr(SuperLink, "_answers", lambda self: asyncio.sleep(0))
    played_by("import time; time.sleep(0.2); raise ValueError('no luck')")

    async def run():
        serving = _Serving(site)
        serving._deaths = type(serving._deaths)(maxlen=2)
        await serving._superlink.start()
        await serving._keep_superlink()

    with pytest.raises(RuntimeError, match=r"has died 3 times in 300 s: ValueError: no luck"):
        asyncio.run(run())
    assert capfd.readouterr().out.count("is started again") == 2


def test_flowers_commands_find_the_superlink(site, played_by):
    played_by("")
    with pytest.raises(RuntimeError):
        asyncio.run(SuperLink(site).start())
    config = tomllib.loads((site.state / "flwr" / "config.toml").read_text())["superlink"]
    assert config["default"] == "site"
    assert config["site"]["address"] == f"127.0.0.1:{site.inner_port}"
    assert Path(config["site"]["root-certificates"]).is_absolute()


def test_without_a_gate_no_public_port_is_opened(site, played_by, monkeypatch, capfd):
    """A program of another kind is the gate then; here it has the port already."""
    known = Registered(["anna"], ["bob"], 2)
    monkeypatch.setattr("fedexp.devices.registration.synchronise", lambda site: known)
    played_by("import time; time.sleep(100)", answers=True)

    async def run():
        asyncio.get_running_loop().call_later(2, os.kill, os.getpid(), signal.SIGTERM)
        await _Serving(site).run(None)

    with listen("127.0.0.1", site.port):
        asyncio.run(run())
    assert capfd.readouterr().out.splitlines() == [
        "Registered: anna.",
        "Shut out: bob.",
        "2 registered nodes are not in nodes.json.",
        f"Serving 127.0.0.1:{site.inner_port} without a gate. Ctrl-C ends it.",
        "Stopped.",
    ]


def test_a_list_of_nodes_that_is_damaged_later_is_said_and_not_the_end(site, monkeypatch, capfd):
    (site.folder / "nodes.json").write_text("[{")

    async def run():
        async with asyncio.timeout(2):
            await _Serving(site)._keep_nodes()

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert capfd.readouterr().out.count("nodes.json: cannot be read") == 1


def test_a_superlink_that_is_away_keeps_the_list_for_later(site, capfd):
    serving = _Serving(site)

    async def run():
        async with asyncio.timeout(2):
            await serving._keep_nodes()

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert capfd.readouterr().out == ""
    assert serving._listed == 0


def test_it_looks_for_runs_no_more_often_than_flower_does(site, monkeypatch):
    """Five looks a second take a twentieth of a core of a server that has nothing to do."""
    monkeypatch.delenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", raising=False)
    assert float(_environment(site).get("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "1")) >= 1
