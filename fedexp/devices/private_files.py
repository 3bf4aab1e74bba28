"""Files that are whole or not there, and that no other user of the machine can read."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put ``data`` into ``path`` in one step.

    `fedexp.files.atomically` gives a new file the usual mode; a private key must never have been
    readable for others, so this one is born with its mode.

    Args:
        path: replaced if it is there.
        data: the whole content.
        mode: permissions of the file.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a process that died and had our number
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def make_private_folder(path: Path) -> None:
    """Make ``path``, which must not exist, for this user alone."""
    path.mkdir(mode=0o700)
    path.chmod(0o700)  # whatever the umask took away


def check_private(path: Path) -> None:
    """Refuse a key that others can read.

    Raises:
        ValueError: the mode of ``path`` lets its group or everyone read or write it.
    """
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ValueError(
            f"{path}: other users can read this key (mode {mode:o}). Run `chmod 600 {path}`, and "
            "make a new key if they may have done so."
        )
