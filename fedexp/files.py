"""Files that are whole or not there, in UTF-8 whatever the locale."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedexp.arrays import Arrays, first_non_finite


def atomically(
    path: Path,
    write: Callable[[Path], object],
    *,
    before: Path | None = None,
    lasting: bool = False,
) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place in one step.

    Its permissions are those that the process gives to any new file.

    Args:
        path: of the file.
        write: fills the file whose path it gets.
        before: where the old file goes; with it the new one is ``lasting``, and there before the
            old one moves: whenever the power fails, one is whole.
        lasting: the new file is on the disk, not only in the system's memory, before this returns.
    """
    lasting = lasting or before is not None
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        write(beside)
        beside.chmod(mode)  # safetensors makes a file that its owner alone can read
        if lasting:
            on_disk(beside)
        if before:
            with suppress(FileNotFoundError):
                path.replace(before)
        beside.replace(path)
        if lasting:
            on_disk(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove what ``atomically`` was writing into ``folder`` when its process was killed.

    Args:
        folder: is looked through, not those below it.
        is_ours: whether a file of this name is written here; others stay.
    """
    for path in folder.glob(".*.*"):
        name, _, process = path.name[1:].rpartition(".")
        if process.isdecimal() and is_ours(name) and path.is_file() and not _lives(int(process)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if os.name == "nt":  # there signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def on_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot
            raise
    finally:
        os.close(number)


def save_text(path: Path, text: str) -> None:
    """Write ``text``."""
    atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def save_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    save_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What ``save_json`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def save_model(
    path: Path,
    arrays: Arrays,
    metadata: Mapping[str, str] | None = None,
    *,
    before: Path | None = None,
    lasting: bool = False,
) -> None:
    """Write ``arrays`` in the safetensors format; all else is as in ``atomically``."""
    contiguous = {name: np.array(x, order="C") for name, x in arrays.items()}
    own = dict(metadata) if metadata else None

    def write(beside: Path) -> None:
        _save_file(contiguous, beside, own)

    atomically(path, write, before=before, lasting=lasting)


def read_model(path: Path, like: Arrays) -> dict[str, Any]:
    """The arrays in ``path``, in the order of ``like``.

    Raises:
        ValueError: no such file, or it holds other names, shapes or dtypes, NaN or infinity.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError, TypeError, KeyError) as error:  # also of NumPy: bfloat16
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read: {said}. Name a .safetensors file.") from None
    return fitted(found, like, str(path))


def fitted(found: Arrays, like: Arrays, owner: str) -> dict[str, Any]:
    """The arrays ``found``, in the order of ``like``.

    Args:
        found: by name.
        like: those of the model.
        owner: where they were found, for the messages.

    Raises:
        ValueError: they have other names, shapes or dtypes, or hold NaN or infinity.
    """
    if odd := sorted(found.keys() ^ like.keys()):
        where = "is only there" if odd[0] in found else "is not in it"
        raise ValueError(f"{owner}: holds another model: {odd[0]!r} {where}. Use the same model.")
    for name, x in like.items():
        if found[name].shape != x.shape:
            raise ValueError(
                f"{owner}: {name!r} has shape {found[name].shape}, the model's has {x.shape}. "
                "Use the same model."
            )
        if found[name].dtype != x.dtype:
            raise ValueError(
                f"{owner}: {name!r} is {found[name].dtype}, the model's is {x.dtype}. "
                "Save it in the model's own."
            )
    if bad := first_non_finite(found):
        raise ValueError(f"{owner}: {bad!r} holds NaN or infinity. Give another model.")
    return {name: found[name] for name in like}


def reason(error: OSError) -> str:
    """What the system says of ``error``, and of which file."""
    name = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{name}"


def _save_file(arrays: Arrays, path: Path, metadata: dict[str, str] | None) -> None:
    try:
        save_file(dict(arrays), path, metadata)
    except SafetensorError as error:  # as Python itself would say it
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error
