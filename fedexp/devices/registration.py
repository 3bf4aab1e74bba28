"""Keep the SuperLink's list of nodes equal to the site's."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization

from fedexp.devices.flower.control import Control
from fedexp.devices.pki import fingerprint, read_public_line
from fedexp.devices.site import NodeEntry, Site, read_nodes


@dataclass(frozen=True)
class Registered:
    """What a synchronisation has changed.

    Attributes:
        added: names of nodes that are let in from now on.
        removed: names of revoked nodes that were shut out.
        strangers: how many nodes are let in that the site does not list.
    """

    added: list[str]
    removed: list[str]
    strangers: int


def synchronise(site: Site) -> Registered:
    """Register the nodes of ``nodes.json``, and unregister those that are revoked.

    Nodes that are registered already keep their ids, so this may be called at any time.

    Raises:
        ValueError: ``nodes.json`` is damaged.
        RuntimeError, ConnectionError: the SuperLink refuses, or does not answer.
    """
    entries = {entry.fingerprint: entry for entry in read_nodes(site)}
    with Control(site.inner, site.ca_certificate) as control:
        here = {
            _fingerprint(node.public_key): node.node_id
            for node in control.nodes()
            if node.status != "unregistered"
        }
        added, removed = [], []
        for known, entry in entries.items():
            if entry.revoked and known in here:
                control.unregister(here[known])
                removed.append(entry.name)
            elif not entry.revoked and known not in here:
                control.register(_pem(entry), entry.name)
                added.append(entry.name)
    return Registered(added, removed, len(here.keys() - entries.keys()))


def _fingerprint(pem: bytes) -> str:
    """Of a key that the SuperLink holds; the key itself if it is of a form that is not ours."""
    try:
        return fingerprint(serialization.load_pem_public_key(pem))  # type: ignore[arg-type]
    except (ValueError, AttributeError):
        return repr(pem)


def _pem(entry: NodeEntry) -> bytes:
    key = read_public_line(entry.public_key, f"nodes.json: {entry.name}")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
