"""Make a site and change its nodes; nothing that is there is deleted, and the authority stays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedexp.devices import pki
from fedexp.devices.private_files import make_private_folder, write_private
from fedexp.devices.site import NAME, NodeEntry, Site, read_nodes, save_nodes


def create(site: Site, nodes: Sequence[str], days: int = pki.SERVER_DAYS) -> None:
    """Make the folder of ``site`` with keys for the server and for ``nodes``.

    It is made beside its place and put there in one step, so a half-made site is never seen.

    Args:
        site: says where, and the server's names and ports.
        nodes: names of the nodes.
        days: how long the server's certificate is valid.

    Raises:
        ValueError: something is there already, or a name cannot be.
    """
    site.check("provision")
    for name in nodes:
        _check_name(name)
    if len(set(nodes)) < len(nodes):
        raise ValueError("provision --nodes: a name is given twice. Names must differ.")
    _check_free(site.folder)
    beside = Path(tempfile.mkdtemp(prefix=f".{site.folder.name}.", dir=site.folder.parent))
    try:
        _fill(replace(site, folder=beside), nodes, days)
        beside.replace(site.folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # ours, and gone if it was put in its place


def add(site: Site, name: str, public_key: Path | None = None) -> NodeEntry:
    """Add a node, whose folder is then ready to be handed over.

    Args:
        site: takes the node.
        name: new.
        public_key: of a node that keeps its private key to itself; a key is made if None.

    Raises:
        ValueError: the name or the key is taken, or the file holds no fitting key.
    """
    _check_name(name)
    entries = read_nodes(site)
    if name in {entry.name for entry in entries} or site.node_folder(name).exists():
        raise ValueError(f"provision --add {name}: there is a node of this name. Take another.")
    key = None
    if public_key is None:
        key = pki.new_node_key()
        public = key.public_key()
    else:
        public = pki.read_public_line(public_key.read_text(encoding="utf-8"), str(public_key))
    entry = _entry(name, public)
    if taken := [x.name for x in entries if x.fingerprint == entry.fingerprint]:
        raise ValueError(f"{public_key}: is the key of {taken[0]!r} already. Make another.")
    _hand_over(site, entry, key)
    save_nodes(site, [*entries, entry])
    return entry


def revoke(site: Site, name: str) -> None:
    """Shut a node out; a running server does so within seconds.

    Raises:
        ValueError: there is no such node, or it is revoked already.
    """
    entries = read_nodes(site)
    known = {entry.name: entry for entry in entries}
    if name not in known:
        raise ValueError(f"provision --revoke {name}: no such node. Known: {sorted(known)}.")
    if known[name].revoked:
        raise ValueError(f"provision --revoke {name}: was revoked on {known[name].revoked}.")
    at = replace(known[name], revoked=_now())
    save_nodes(site, [at if entry.name == name else entry for entry in entries])


def renew_server(site: Site, days: int = pki.SERVER_DAYS, now: datetime | None = None) -> datetime:
    """Give the server a new key and certificate of the same authority; when they expire.

    Nodes need nothing new. A running server must be started again.

    Args:
        site: with the host names that the certificate is to have.
        days: how long it is valid.
        now: the time of issue; the present if None.

    Raises:
        ValueError: the authority's key is not there.
    """
    if not site.ca_key.is_file():
        raise ValueError(f"{site.ca_key}: is not there. Bring the authority's key back for this.")
    loaded = serialization.load_pem_private_key(site.ca_key.read_bytes(), None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{site.ca_key}: is not a key that fedexp made. Restore it from a copy.")
    authority = pki.Signed(loaded, _read(site.ca_certificate))
    server = pki.new_server(authority, site.hosts, days, now)
    # The certificate goes last: until then the old one is there, and `serve` sees that they differ.
    write_private(site.server_key, pki.key_file(server.key))
    write_private(site.server_certificate, pki.certificate_file(server.certificate), 0o644)
    site.save()
    return server.certificate.not_valid_after_utc


def expiries(site: Site) -> dict[str, datetime]:
    """When the certificates end, by what they are of."""
    paths = {"authority": site.ca_certificate, "server": site.server_certificate}
    return {name: _read(path).not_valid_after_utc for name, path in paths.items()}


def _fill(site: Site, nodes: Sequence[str], days: int) -> None:
    """A new folder's content."""
    site.folder.chmod(0o700)
    for name in ("ca", "server", "nodes", "state"):
        make_private_folder(site.folder / name)
    authority = pki.new_authority()
    write_private(site.ca_key, pki.key_file(authority.key))
    write_private(site.ca_certificate, pki.certificate_file(authority.certificate), 0o644)
    renew_server(site, days)
    save_nodes(site, [])
    for name in nodes:
        add(site, name)


def _hand_over(site: Site, entry: NodeEntry, key: ec.EllipticCurvePrivateKey | None) -> None:
    """Make the node's folder, in one step."""
    folder = site.node_folder(entry.name)
    beside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=folder.parent))
    try:
        told = tomli_w.dumps({"server": site.server, "name": entry.name})
        write_private(beside / "node.toml", told.encode("utf-8"), 0o644)
        write_private(beside / "ca.crt", site.ca_certificate.read_bytes(), 0o644)
        write_private(beside / "node.pub", f"{entry.public_key}\n".encode(), 0o644)
        if key is not None:
            write_private(beside / "node.key", pki.node_key_file(key))
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _entry(name: str, key: ec.EllipticCurvePublicKey) -> NodeEntry:
    return NodeEntry(name, pki.public_line(key, name), pki.fingerprint(key), _now())


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"provision: {name!r} cannot be a node's name. Use letters, digits, '.', '_' and '-'."
        )


def _check_free(folder: Path) -> None:
    if (folder / "site.toml").exists():
        raise ValueError(
            f"{folder}: holds a site, and its authority is never replaced. Use --add NODE, "
            "--renew-server or --revoke NODE."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: is there already and not empty. Name a new folder.")


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path}: holds no certificate. Restore it from a copy.") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
