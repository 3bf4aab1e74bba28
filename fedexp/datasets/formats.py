"""Readers of public file formats: each takes a path and returns verified arrays.

Every reader raises ValueError that names the file, what was expected and what was found.
"""

import csv
import gzip
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedexp.datasets.dealing import Array
from fedexp.datasets.pickles import read_batch
from fedexp.extras import need

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# A compressed file may hold 1 GiB, or 100 times its size: a small file could fill the memory.
_INFLATED, _RATIO = 1 << 30, 100
_SAVE = "Write it again with numpy.savez."


class DamagedFile(ValueError):
    """A file that is not what its name says."""


def damaged(
    path: Path, expected: object, found: object, remedy: str = "Download the file again."
) -> DamagedFile:
    """The error for a file that is not what its name says, in one line."""
    line = " ".join(str(found).split())[:300]
    return DamagedFile(f"{path}: expected {expected}, found {line}. {remedy}")


@contextmanager
def parsing(
    path: Path, expected: object, remedy: str = "Download the file again."
) -> Iterator[None]:
    """Turn any error of a parser of ``path`` into the error for a `damaged` file."""
    try:
        yield
    except DamagedFile:
        raise
    except Exception as error:  # a file can be wrong in more ways than there are names for
        raise damaged(path, expected, repr(error), remedy) from error


def check_inflated(path: Path, num_bytes: int) -> None:
    """Raise ``ValueError`` if a compressed file would become suspiciously large."""
    if num_bytes > max(_INFLATED, _RATIO * path.stat().st_size):
        raise DamagedFile(
            f"{path}: would inflate to {num_bytes:,} bytes, more than 1 GiB and {_RATIO} times its "
            "size. Store it uncompressed if that is what you want."
        )


def read_idx(path: Path, shape: tuple[int, ...] = ()) -> Array:
    """Read an array in (gzipped) IDX, the format of MNIST, Fashion-MNIST, EMNIST and QMNIST.

    The file has two zero bytes, one byte for the type of number, one for the number of dimensions,
    a big-endian size of 4 bytes for each dimension, and then the numbers, big-endian too.

    Args:
        path: the file; it is read through gzip if the name ends in ``.gz``.
        shape: of one row, which is verified.

    Example:
        >>> from pathlib import Path
        >>> from fedexp.datasets.formats import read_idx
        >>> header = bytes([0, 0, 0x08, 1, 0, 0, 0, 3])  # bytes, one dimension of size 3
        >>> _ = Path("labels").write_bytes(header + bytes([7, 8, 9]))
        >>> read_idx(Path("labels")).tolist()
        [7, 8, 9]
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file, parsing(path, "a whole gzip file"):
        dtype, dims = _idx_header(path, file)
        if dims[1:] != shape or not dims:
            raise damaged(path, f"rows of shape {shape}", dims[1:])
        num_bytes = math.prod(dims) * dtype.itemsize
        check_inflated(path, num_bytes)
        data = file.read(num_bytes + 1)  # one byte more, to notice a file that is too long
    if len(data) != num_bytes:
        found = len(data) if len(data) < num_bytes else f"{len(data)} or more"
        raise damaged(path, f"{num_bytes} bytes of data", found)
    values = np.frombuffer(data, dtype).reshape(dims)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _idx_header(path: Path, file: IO[bytes] | gzip.GzipFile) -> tuple[Any, tuple[int, ...]]:
    start = file.read(4)
    num_bytes = 4 * start[3] if len(start) > 3 else 0
    sizes = file.read(num_bytes)
    known = len(start) == 4 and start[:2] == b"\0\0" and start[2] in _IDX_TYPES
    if not known or len(sizes) < num_bytes:
        raise damaged(path, "an IDX header (two zero bytes, type, dimensions)", start.hex())
    return np.dtype(_IDX_TYPES[start[2]]), tuple(np.frombuffer(sizes, ">u4").tolist())


def read_cifar(path: Path, label_key: str) -> tuple[Array, Array]:
    """Read one python batch of CIFAR: images ``[n, 3, 32, 32]`` uint8 and labels ``[n]``.

    Args:
        path: a pickle in the published form; `pickles` raises an error for any other content.
        label_key: ``labels`` (CIFAR-10) or ``fine_labels`` (CIFAR-100).
    """
    content = path.read_bytes()
    with parsing(path, f"a pickled dict with data and {label_key}"):
        batch = read_batch(content)
        images, labels = batch[b"data"], batch[label_key.encode()]
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise damaged(path, f"a list of integers as {label_key}", type(labels).__name__)
    if getattr(images, "shape", None) != (len(labels), 3072):
        found = getattr(images, "shape", type(images).__name__)
        raise damaged(path, f"an array of bytes, shape ({len(labels)}, 3072)", found)
    with parsing(path, "classes"):
        # A row has the 1024 red values of an image, then the green and the blue ones.
        return images.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def read_leaf(paths: Iterable[Path]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Read LEAF's JSON files: inputs and targets by user.

    A user in several files has the examples of all of them. Users without examples are dropped.
    """
    clients: dict[str, tuple[list[Any], list[Any]]] = {}
    for path in sorted(paths):
        expected = "JSON with users, num_samples, user_data"
        with path.open(encoding="utf-8") as file, parsing(path, expected):
            content = json.load(file)
            users, sizes, data = (content[key] for key in ("users", "num_samples", "user_data"))
            if len(users) != len(sizes) or len(users) != len(set(users)):
                raise damaged(path, f"{len(set(users))} num_samples, one per user", len(sizes))
            for user, size in zip(users, sizes, strict=True):
                x, y = data[user]["x"], data[user]["y"]
                if not len(x) == len(y) == size:
                    raise damaged(path, f"{size} examples of {user}", f"{len(x)} and {len(y)}")
                if size:
                    inputs, targets = clients.setdefault(str(user), ([], []))
                    inputs.extend(x)
                    targets.extend(y)
    return clients


def read_table(path: Path, *, num_columns: int, num_rows: int = 0, comment: str = "@|%") -> Array:
    """Read comma-separated text as an array of strings ``[num_rows, num_columns]``.

    Args:
        path: CSV without a header, or ARFF.
        num_columns: number of cells, which is verified for every row.
        num_rows: the published number of rows, which is verified; 0 accepts any.
        comment: lines that start with one of these are skipped (ARFF's header, Adult's first line).
    """
    with path.open(encoding="utf-8", newline="") as file, parsing(path, "comma-separated text"):
        lines = (line for line in file if line.strip() and line[0] not in comment)
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    for row in rows:
        if len(row) != num_columns:
            raise damaged(path, f"{num_columns} columns", f"{len(row)} in {','.join(row)[:60]!r}")
    if not rows or len(rows) != (num_rows or len(rows)):
        raise damaged(path, f"{num_rows or 'some'} rows", len(rows))
    return np.array(rows)


def read_libsvm(path: Path, *, num_features: int, num_rows: int = 0) -> tuple[Array, Array]:
    """Read LIBSVM text: dense inputs ``[n, num_features]`` float32 and raw labels ``[n]``."""
    need("sklearn", "simulation")
    from sklearn.datasets import load_svmlight_file

    with (
        path.open("rb") as file,
        parsing(path, f"rows 'label index:value ...', index to {num_features}"),
    ):
        x, y = load_svmlight_file(file, n_features=num_features, dtype=np.float32)
    if len(y) != (num_rows or len(y)):
        raise damaged(path, f"{num_rows} rows", len(y))
    if not np.isfinite(x.data).all():
        raise damaged(path, "numbers", "NaN or infinity")
    return x.toarray(), y


def read_npz(path: Path) -> dict[str, Array]:
    """Read ``x_train, y_train, x_test, y_test`` and, if present, ``keys`` of a NumPy archive."""
    names = ["x_train", "y_train", "x_test", "y_test"]
    with (
        path.open("rb") as file,
        parsing(path, "a NumPy .npz archive", _SAVE),
        zipfile.ZipFile(file) as archive,
    ):
        members = set(archive.namelist())
        if missing := [name for name in names if f"{name}.npy" not in members]:
            raise damaged(path, f"arrays {', '.join(names)}", f"no {', '.join(missing)}", _SAVE)
        wanted = [*names, "keys"] if "keys.npy" in members else names
        check_inflated(path, sum(_member_bytes(path, archive, name) for name in wanted))
        return {name: _member(archive, name) for name in wanted}


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(f"{name}.npy") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _member_bytes(path: Path, archive: zipfile.ZipFile, name: str) -> int:
    """The size of an array in bytes by its header, which must agree with the archive's."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.hasobject:
            remedy = "Save it as numbers, or as text with .astype(str)."
            raise damaged(path, f"numbers or text in {name}", "objects", remedy)
        num_bytes = math.prod(shape) * dtype.itemsize
        if file.tell() + num_bytes != member.file_size:
            found = member.file_size - file.tell()
            raise damaged(path, f"{num_bytes} bytes in {name}", found, _SAVE)
    return num_bytes
