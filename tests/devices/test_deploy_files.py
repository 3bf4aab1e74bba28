"""What stands in ``deploy/`` and in the document agrees with the program."""

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedexp import cli
from fedexp.devices.gate import _ROUTE, Limits
from fedexp.devices.gate_server import HEADER_SECONDS, IDLE_SECONDS, MAX_CONNECTIONS_OF_ONE
from fedexp.devices.site import Site

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAMES = ("provision", "serve", "device", "run")
KNOWN = [name for name in NAMES if name in cli.COMMANDS]


def check(line):
    """Read a command as `fedexp` would."""
    _, name, *words = shlex.split(line, comments=True)
    assert name in NAMES, line
    if name in KNOWN:
        cli.parser_of(name).parse_args(words)


@pytest.mark.parametrize("name", ["fedexp-serve.service", "fedexp-device@.service"])
def test_a_unit_restarts_and_calls_a_command_that_exists(name):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string((DEPLOY / name).read_text())
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["User"] == "fedexp"
    check(unit["Service"]["ExecStart"])


def test_the_compose_file_publishes_the_gate_alone():
    text = (DEPLOY / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert services["server"]["ports"] == [f"{Site.port}:{Site.port}"]
    assert "ports" not in services["device"]
    for service in services.values():
        check(service["command"])
    assert text.startswith("# Not run by our tests")


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_another_gate_has_the_same_route_and_limits(name):
    text = (DEPLOY / name).read_text()
    route = _ROUTE.pattern.decode().removeprefix("/v1/fleet/").replace("(", "(?:")
    assert f"^/v1/fleet/({route})$" in text
    assert f"127.0.0.1:{Site.inner_port}" in text
    assert "Not run by our tests" in text
    assert re.search(rf"(max_body_size|max_size) {Limits.max_body // 2**20}(m;|MiB)", text)
    assert re.search(rf"(header_timeout|read_header) {HEADER_SECONDS:g}s", text)
    assert re.search(rf"(keepalive_timeout|idle) {IDLE_SECONDS}s", text)


def test_nginx_has_the_limits_of_an_address_too():
    text = (DEPLOY / "nginx.conf").read_text()
    assert f"rate={Limits.requests_per_second:g}r/s" in text
    assert f"burst={4 * Limits.requests_per_second:g} nodelay" in text
    assert f"limit_conn fleet_connections {MAX_CONNECTIONS_OF_ONE};" in text


def test_the_commands_of_the_document_are_read():
    text = (ROOT / "docs" / "devices.md").read_text()
    lines = re.findall(r"^    (fedexp .*)$", text, re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        check(line)


def test_the_numbers_of_the_document_are_those_of_the_program():
    text = " ".join((ROOT / "docs" / "devices.md").read_text().split())
    limits = Limits()
    assert (limits.max_body, limits.requests_per_second) == (
        Site.max_body_mib * 2**20,
        Site.requests_per_second,
    )
    rate = limits.requests_per_second
    assert f"({rate:g} requests a second, {4 * rate:g} at once; {MAX_CONNECTIONS_OF_ONE} c" in text
    assert f"A body may have {Site.max_body_mib} MiB" in text
    assert f"Port {Site.port} must be open" in text


def test_a_server_needs_no_pytorch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fedexp.devices import provision, registration, serve, submit, served\n"
        "from fedexp.cli import main; main(['help', 'serve'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
