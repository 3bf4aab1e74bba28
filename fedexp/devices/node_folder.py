"""The folder that makes a machine a node: where its server is, and the key that it is known by."""

from __future__ import annotations

import fcntl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedexp.devices.pki import new_node_key, node_key_file, public_line
from fedexp.devices.private_files import write_private

KEY, PUBLIC_KEY, SETTINGS, AUTHORITY = "node.key", "node.pub", "node.toml", "ca.crt"
_MEMORY = "node.id"  # the id that the server gave, for the next start


@dataclass(frozen=True)
class NodeFolder:
    """What ``fedexp provision`` has made for a node.

    Attributes:
        path: the folder.
        server: ``HOST:PORT``.
        name: of the node.
        ca: the certificate that the server's own comes from.
        key: the node's private key.
    """

    path: Path
    server: str
    name: str
    ca: bytes
    key: bytes

    @classmethod
    def read(cls, path: Path) -> NodeFolder:
        """Read a folder.

        Raises:
            ValueError: a file is missing, or is not what its name says.
        """
        if not path.is_dir():
            raise ValueError(f"{path}: there is no such folder. Name the folder of the node.")
        for name in (SETTINGS, AUTHORITY, KEY):
            if not (path / name).is_file():
                remedy = "Make one with --new-key" if name == KEY else "Ask for the node's folder"
                raise ValueError(f"{path}: has no {name}. {remedy}.")
        try:
            settings = tomllib.loads((path / SETTINGS).read_text(encoding="utf-8"))
            server, name = str(settings["server"]), str(settings["name"])
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
            raise ValueError(
                f"{path / SETTINGS}: must say server and name: {error}. Ask for the node's folder."
            ) from None
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{path / SETTINGS}: server={server!r} must be HOST:PORT.")
        return cls(path, server, name, (path / AUTHORITY).read_bytes(), (path / KEY).read_bytes())

    @property
    def node_id(self) -> int | None:
        """The id that the server gave this node when it was last let in, if it is known."""
        try:
            return int((self.path / _MEMORY).read_text())
        except (OSError, ValueError):
            return None

    def remember(self, node_id: int) -> None:
        """Keep ``node_id`` for the next start; a folder that cannot be written to forgets it."""
        with suppress(OSError):
            (self.path / _MEMORY).write_text(f"{node_id}\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no other process be this node.

        Raises:
            ValueError: one is.
        """
        with (self.path / KEY).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"{self.path}: another process is this node. Stop it, or name another folder."
                ) from None
            yield


def new_key(path: Path) -> Path:
    """Make the key of a node in its folder; the file to hand over, with the public part.

    Raises:
        ValueError: there is a key.
    """
    path.mkdir(parents=True, exist_ok=True)
    if (path / KEY).exists():
        raise ValueError(f"{path / KEY}: is there. Hand over {path / PUBLIC_KEY}, or delete both.")
    key = new_node_key()
    write_private(path / KEY, node_key_file(key))
    (path / PUBLIC_KEY).write_text(public_line(key.public_key(), path.resolve().name) + "\n")
    return path / PUBLIC_KEY
