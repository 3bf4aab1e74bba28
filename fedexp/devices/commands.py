"""The commands `fedexp provision` and `fedexp serve`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedexp.parser import Once, Parser, WholeNumber

Values = dict[str, Any]


def add_provision_flags(parser: Parser) -> None:
    """Flags of `fedexp provision`."""
    parser.add_argument("SITE", help="folder of the site")
    for name, metavar, text in (
        ("host", "NAME[,NAME]", "names or addresses by which devices reach the server"),
        ("nodes", "NAME[,NAME]", "of a new site"),
        ("add", "NODE", "add a node to a site"),
        ("public-key", "FILE", "with --add: of a node that makes its own key"),
        ("revoke", "NODE", "shut a node out"),
    ):
        parser.add_argument(f"--{name}", action=Once, dest=name, metavar=metavar, help=text)
    for name, text in (
        ("port", "public port of a new site (default: 8443)"),
        ("inner-port", "port of Flower's SuperLink on 127.0.0.1 (default: 9191)"),
        ("days", "validity of the server's certificate (default: 365)"),
    ):
        parser.add_argument(f"--{name}", action=WholeNumber, dest=name, metavar="N", help=text)
    text = "new key and certificate for the server, of the same authority; with --host, new names"
    parser.add_argument(
        "--renew-server", action=Once, nargs=0, const=True, dest="renew-server", help=text
    )


def add_serve_flags(parser: Parser) -> None:
    """Flags of `fedexp serve`."""
    parser.add_argument("SITE", help="folder that `fedexp provision` made")
    text = "address of this machine that the gate listens on (default: all)"
    parser.add_argument("--listen", action=Once, metavar="ADDRESS", help=text)
    text = "open no public port: nginx or Caddy is the gate, see docs/devices.md"
    parser.add_argument("--no-gate", action=Once, nargs=0, const=True, dest="no-gate", help=text)


def provision(values: Values) -> None:
    """Make a site, or change one; print what was done and when certificates end."""
    from fedexp.devices.provision import expiries
    from fedexp.devices.site import Site

    asked = [name for name in _CHANGES if values[name]]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]}: one thing at a time. Call it twice.")
    change = asked[0] if asked else None
    allowed = _CHANGES[change][0] if change else {"host", "nodes", "port", "inner-port", "days"}
    given = {name for name, value in values.items() if value is not None} - {"SITE", change}
    if odd := sorted(given - allowed):
        where = f"--{change}" if change else "a new site"
        raise ValueError(f"--{odd[0]} has no meaning for {where}. Leave it out.")
    if change:
        _CHANGES[change][1](Site.of(values["SITE"]), values)
    else:
        _create(values)
    for name, end in expiries(Site.of(values["SITE"])).items():
        print(f"The certificate of the {name} ends on {end:%F}.")


def serve(values: Values) -> None:
    """Serve a site until Ctrl-C."""
    from fedexp.devices import serve as server
    from fedexp.devices.site import Site

    if values["listen"] and values["no-gate"]:
        raise ValueError("--listen has no meaning with --no-gate. Leave it out.")
    site = Site.of(values["SITE"])
    server.serve(site, values["listen"] or "", gate=not values["no-gate"])


def _create(values: Values) -> None:
    from fedexp.devices.pki import SERVER_DAYS
    from fedexp.devices.provision import create
    from fedexp.devices.site import Site

    if not values["host"]:
        raise ValueError("--host is missing. Name the server as devices reach it.")
    ports = {key.replace("-", "_"): values[key] for key in ("port", "inner-port") if values[key]}
    site = Site(Path(values["SITE"]).absolute(), _names(values["host"]), **ports)
    nodes = _names(values["nodes"] or "")
    create(site, nodes, values["days"] or SERVER_DAYS)
    print(f"Made {values['SITE']}. Keep {site.ca_key} where the server is not, if you can.")
    for name in nodes:
        print(f"Hand {site.node_folder(name)} over to {name}, on a way that no other can read.")


def _add(site: Any, values: Values) -> None:
    from fedexp.devices.provision import add

    file = values["public-key"]
    entry = add(site, values["add"], Path(file) if file else None)
    print(f"Added {entry.name}, whose key is {entry.fingerprint}.")
    secret = "; nothing in it is secret" if file else ", on a way that no other can read"
    print(f"Hand {site.node_folder(entry.name)} over to it{secret}.")


def _revoke(site: Any, values: Values) -> None:
    from fedexp.devices.provision import revoke

    revoke(site, values["revoke"])
    print(f"Revoked {values['revoke']}. A running server shuts it out within seconds.")


def _renew(site: Any, values: Values) -> None:
    from fedexp.devices.pki import SERVER_DAYS
    from fedexp.devices.provision import renew_server

    hosts = _names(values["host"]) if values["host"] else site.hosts
    changed = replace(site, hosts=hosts)
    changed.check("provision --renew-server")
    renew_server(changed, values["days"] or SERVER_DAYS)
    print("Renewed the server's certificate. Start the server again; nodes need nothing new.")
    if hosts[0] != site.hosts[0]:
        print(f"Nodes that exist call {site.server}: write {changed.server} into their node.toml.")


_CHANGES: dict[str, tuple[set[str], Callable[[Any, Values], None]]] = {
    "add": ({"public-key"}, _add),
    "revoke": (set(), _revoke),
    "renew-server": ({"host", "days"}, _renew),
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
