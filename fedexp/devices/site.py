"""The folder of a site: where its keys, certificates, nodes and database are."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import tomli_w

from fedexp.devices.pki import is_address
from fedexp.devices.private_files import write_private

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*")


@dataclass(frozen=True)
class Site:
    """A server and its nodes, in a folder that `fedexp provision` makes.

    Attributes:
        folder: absolute.
        hosts: names or addresses by which devices reach the server; the first is what new nodes
            are told.
        port: the public one, of the gate.
        inner_port: that of Flower's SuperLink, on ``127.0.0.1`` alone.
        max_body_mib: the largest request that the gate forwards, in MiB; Flower sends arrays in
            pieces of 5 MiB.
        requests_per_second: of one address, on average; devices behind one router share it.

    Example:
        >>> from pathlib import Path
        >>> from fedexp.devices import Site
        >>> Site(Path("site"), ("fl.example.org", "192.0.2.1")).server
        'fl.example.org:8443'
    """

    folder: Path
    hosts: tuple[str, ...]
    port: int = 8443
    inner_port: int = 9191
    max_body_mib: int = 16
    requests_per_second: int = 100

    @classmethod
    def of(cls, folder: str | Path) -> Site:
        """The site in ``folder``.

        Raises:
            ValueError: there is none, or its ``site.toml`` is not as it should be.
        """
        path = Path(folder).absolute() / "site.toml"
        if not path.is_file():
            raise ValueError(
                f"{folder}: holds no site, it has no site.toml. Make one with `fedexp provision`."
            )
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not TOML, or not UTF-8
            raise ValueError(f"{path}: is not TOML: {error}. Correct it.") from None
        known = {f.name.replace("_", "-"): f.name for f in fields(cls) if f.name != "folder"}
        if unknown := sorted(values.keys() - known.keys()):
            raise ValueError(f"{path}: unknown {unknown}. Known: {sorted(known)}.")
        hosts = values.pop("hosts", ())
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise ValueError(f"{path}: hosts must be a list of names. Correct it.")
        for key, value in values.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{path}: {key} = {value!r} must be a whole number from 1.")
        site = cls(path.parent, tuple(hosts), **{known[key]: x for key, x in values.items()})
        site.check(str(path))
        return site

    def check(self, owner: str) -> None:
        """Refuse values that cannot be; ``owner`` begins the message.

        Raises:
            ValueError: no host, one that is no name or address, or ports that cannot be used.
        """
        if not self.hosts:
            raise ValueError(f"{owner}: no host. Name the server as devices reach it.")
        for host in self.hosts:
            if not (is_address(host) or _HOST.fullmatch(host)):
                raise ValueError(
                    f"{owner}: {host!r} is neither a host name nor an address. Leave out the port "
                    "and https://."
                )
        for port in (self.port, self.inner_port):
            if not 1 <= port <= 65535:
                raise ValueError(f"{owner}: port {port} must be between 1 and 65535.")
        if self.port == self.inner_port:
            raise ValueError(f"{owner}: the ports must differ. Both are {self.port}.")

    def save(self) -> None:
        """Write ``site.toml``."""
        values = {key.replace("_", "-"): x for key, x in asdict(self).items() if key != "folder"}
        text = tomli_w.dumps({**values, "hosts": list(self.hosts)})
        write_private(self.folder / "site.toml", text.encode("utf-8"), 0o644)

    @property
    def server(self) -> str:
        """``HOST:PORT`` that devices call."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def inner(self) -> str:
        """``HOST:PORT`` of the SuperLink."""
        return f"127.0.0.1:{self.inner_port}"

    @property
    def ca_key(self) -> Path:
        """The authority's key; only ``--renew-server`` needs it."""
        return self.folder / "ca" / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        """What every client of the server must have."""
        return self.folder / "ca" / "ca.crt"

    @property
    def server_key(self) -> Path:
        """The key of gate and SuperLink."""
        return self.folder / "server" / "server.key"

    @property
    def server_certificate(self) -> Path:
        """The certificate of gate and SuperLink."""
        return self.folder / "server" / "server.crt"

    @property
    def state(self) -> Path:
        """The folder of the database and of what Flower writes."""
        return self.folder / "state"

    def node_folder(self, name: str) -> Path:
        """What is handed over to a node."""
        return self.folder / "nodes" / name


@dataclass(frozen=True)
class NodeEntry:
    """A line of ``nodes.json``.

    Attributes:
        name: of the node.
        public_key: in OpenSSH's form.
        fingerprint: of the key.
        added: when, in ISO 8601.
        revoked: when, or None.
    """

    name: str
    public_key: str
    fingerprint: str
    added: str
    revoked: str | None = None


def read_nodes(site: Site) -> list[NodeEntry]:
    """All nodes that were ever added, in that order.

    Raises:
        ValueError: ``nodes.json`` is damaged.
    """
    path = site.folder / "nodes.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [NodeEntry(**entry) for entry in entries]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}. Restore it from a copy.") from None


def save_nodes(site: Site, entries: list[NodeEntry]) -> None:
    """Write ``nodes.json``."""
    text = json.dumps([asdict(entry) for entry in entries], indent=2) + "\n"
    write_private(site.folder / "nodes.json", text.encode("utf-8"))
