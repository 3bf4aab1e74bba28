"""Start a run on a site's server, watch it and stop it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedexp.devices.site import Site

if TYPE_CHECKING:
    from fedexp.devices.flower.control import Control


@dataclass(frozen=True)
class Link:
    """How to reach a SuperLink: on its own machine, or through ``ssh -L 9191:127.0.0.1:9191``.

    Attributes:
        address: ``HOST:PORT``; the certificate is for ``127.0.0.1`` and ``localhost`` too.
        ca_certificate: PEM file of the site's authority.

    Example:
        >>> from pathlib import Path
        >>> from fedexp.devices import Link, Site
        >>> Link.to(Site(Path("/srv/site"), ("fl.example.org",))).address
        '127.0.0.1:9191'
    """

    address: str
    ca_certificate: Path

    @classmethod
    def to(cls, site: Site) -> Link:
        """The SuperLink of a site that is served on this machine, or tunnelled to it."""
        return cls(site.inner, site.ca_certificate)


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        status: ``pending``, ``starting``, ``running`` or ``finished``.
        sub_status: ``completed``, ``failed`` or ``stopped`` once it is finished, else empty.
        details: why it failed, in Flower's words.
        bytes_sent: from the server to nodes.
        bytes_received: from nodes.

    Example:
        >>> from fedexp.devices import RunStatus
        >>> RunStatus("finished", "completed", "", bytes_sent=9, bytes_received=9).sub_status
        'completed'
    """

    status: str
    sub_status: str
    details: str
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True)
class NodeStatus:
    """A registered node.

    Attributes:
        node_id: Flower's number for it; stays the same over restarts.
        name: as in ``nodes.json``; empty if it was registered by other means.
        status: ``registered`` (never seen yet), ``online`` or ``offline``.

    Example:
        >>> from fedexp.devices import NodeStatus
        >>> NodeStatus(17, "anna", "online").name
        'anna'
    """

    node_id: int
    name: str
    status: str


def start_run(app: Path, link: Link, run_config: Mapping[str, bool | int | float | str]) -> int:
    """Send a Flower app to the server and start it.

    The app's ServerApp runs on the server as the user of `fedexp serve`.

    Args:
        app: folder with a ``pyproject.toml``.
        link: to the SuperLink.
        run_config: replaces values of the app's own.

    Returns:
        The run's id.

    Raises:
        ValueError: the folder holds no Flower app.
        RuntimeError: the SuperLink refuses it.
        ConnectionError: no SuperLink answers.
    """
    with _control(link) as control:
        return control.start_run(app, run_config)


def run_status(run_id: int, link: Link) -> RunStatus:
    """How far the run is.

    Raises:
        RuntimeError: there is no such run.
        ConnectionError: no SuperLink answers, perhaps because it is being restarted.
    """
    with _control(link) as control:
        run = control.run(run_id)
    now = run.status
    return RunStatus(now.status, now.sub_status, now.details, run.bytes_sent, run.bytes_recv)


def stop_run(run_id: int, link: Link) -> bool:
    """End the run; False if it had ended by itself."""
    with _control(link) as control:
        return control.stop_run(run_id)


def registered_nodes(link: Link) -> list[NodeStatus]:
    """The nodes that are let in."""
    with _control(link) as control:
        found = control.nodes()
    return [
        NodeStatus(node.node_id, node.name, node.status)
        for node in found
        if node.status != "unregistered"
    ]


def _control(link: Link) -> Control:
    from fedexp.devices.flower.control import Control  # Flower takes a second to import

    return Control(link.address, link.ca_certificate)
