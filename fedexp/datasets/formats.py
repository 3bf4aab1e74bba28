"""Readers of public file formats: a path in, verified arrays out.

Every reader raises ValueError with the file, what was expected and what was found.
"""

import csv
import gzip
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedexp.datasets.parts import Array
from fedexp.extras import need

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PICKLED = {  # what the pickle of a numpy array names; nothing else may be imported
    "_codecs.encode",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
}


def damaged(path: Path, expected: object, found: object) -> ValueError:
    """The error for a file that is not what its name says."""
    return ValueError(f"{path}: expected {expected}, found {found}. Download the file again.")


def read_idx(path: Path, shape: tuple[int, ...] = ()) -> Array:
    """An array in (gzipped) IDX: the format of MNIST, Fashion-MNIST, EMNIST and QMNIST.

    Args:
        path: read through gzip if the name ends in ``.gz``.
        shape: of one row, verified.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, "a whole gzip file", error) from error
    header = 4 + 4 * data[3] if len(data) > 3 else 4
    if len(data) < header or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise damaged(path, "an IDX header (two zero bytes, type, dimensions)", data[:4].hex())
    dtype = np.dtype(_IDX_TYPES[data[2]])
    dims = tuple(np.frombuffer(data[4:header], ">u4").tolist())
    if dims[1:] != shape or not dims:
        raise damaged(path, f"rows of shape {shape}", dims[1:])
    num_bytes = math.prod(dims) * dtype.itemsize
    if len(data) - header != num_bytes:
        raise damaged(path, f"{num_bytes} bytes of data", len(data) - header)
    values = np.frombuffer(data, dtype, offset=header).reshape(dims)
    return values.astype(dtype.newbyteorder("="), copy=False)


def read_cifar(path: Path, label_key: str) -> tuple[Array, Array]:
    """One python batch of CIFAR: images ``[n, 3, 32, 32]`` uint8 and labels ``[n]``.

    Args:
        path: a pickle; anything but arrays and built-in containers in it is refused.
        label_key: ``labels`` (CIFAR-10) or ``fine_labels`` (CIFAR-100).
    """
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[label_key.encode()], np.int64)
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise damaged(path, f"a pickled dict with data and {label_key}", repr(error)) from error
    if getattr(images, "shape", None) != (len(labels), 3072) or images.dtype != np.uint8:
        found = f"{getattr(images, 'dtype', type(images))} {getattr(images, 'shape', '')}"
        raise damaged(path, f"uint8 data of shape ({len(labels)}, 3072)", found)
    return images.reshape(-1, 3, 32, 32), labels


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # pickles older than NumPy 2
        if f"{module}.{name}" not in _PICKLED:
            raise pickle.UnpicklingError(f"it wants to import {module}.{name}")
        return super().find_class(module, name)


def read_leaf(paths: Iterable[Path]) -> dict[str, tuple[list[Any], list[Any]]]:
    """LEAF's JSON: inputs and targets by user, all files of a folder together."""
    clients = {}
    for path in sorted(paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            users, sizes, data = (content[key] for key in ("users", "num_samples", "user_data"))
            if len(users) != len(sizes):
                raise damaged(path, f"{len(users)} num_samples", len(sizes))
            for user, size in zip(users, sizes, strict=True):
                x, y = data[user]["x"], data[user]["y"]
                if not len(x) == len(y) == size:
                    raise damaged(path, f"{size} examples of {user}", f"{len(x)} and {len(y)}")
                clients[user] = (x, y)
        except (json.JSONDecodeError, LookupError, TypeError, UnicodeDecodeError) as error:
            raise damaged(path, "JSON with users, num_samples, user_data", repr(error)) from error
    return clients


def read_table(path: Path, *, num_columns: int, num_rows: int = 0, comment: str = "@|%") -> Array:
    """Comma-separated text as an array of strings ``[num_rows, num_columns]``.

    Args:
        path: CSV without a header, or ARFF.
        num_columns: verified on every row.
        num_rows: the published number, verified; 0 takes any.
        comment: first characters of the lines to skip (ARFF's header, Adult's first line).
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if line.strip() and line[0] not in comment)
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    for row in rows:
        if len(row) != num_columns:
            raise damaged(path, f"{num_columns} columns", f"{len(row)} in {','.join(row)[:60]!r}")
    if not rows or len(rows) != (num_rows or len(rows)):
        raise damaged(path, f"{num_rows or 'some'} rows", len(rows))
    return np.array(rows)


def read_libsvm(path: Path, *, num_features: int, num_rows: int = 0) -> tuple[Array, Array]:
    """LIBSVM text: dense inputs ``[n, num_features]`` float32 and raw labels ``[n]``."""
    need("sklearn", "simulation")
    from sklearn.datasets import load_svmlight_file

    try:
        x, y = load_svmlight_file(str(path), n_features=num_features, dtype=np.float32)
    except (ValueError, OverflowError) as error:
        raise damaged(
            path, f"rows 'label index:value ...', index to {num_features}", error
        ) from error
    if len(y) != (num_rows or len(y)):
        raise damaged(path, f"{num_rows} rows", len(y))
    return x.toarray(), y


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays ``x_train, y_train, x_test, y_test`` and perhaps ``keys`` of a NumPy archive."""
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise damaged(path, "a NumPy .npz archive", error) from error
    if missing := [name for name in names if name not in arrays]:
        raise damaged(path, f"arrays {', '.join(names)}", f"no {', '.join(missing)}")
    return arrays
