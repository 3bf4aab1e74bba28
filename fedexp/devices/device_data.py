"""The data of one device, read with NumPy alone and brought into the form that a model takes.

A server cannot look at it, so whatever does not fit what the server describes is refused here, with
what to do about it.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedexp.datasets.own_files import CSV, IMAGES, NPZ, SPLIT_CSV, SPLIT_IMAGES, found
from fedexp.devices.data_description import DataDescription

Array = NDArray[Any]
_MISSING = {"", "?", "NA", "N/A", "nan", "NaN", "null", "None"}


@dataclass(frozen=True, eq=False)
class DeviceData:
    """A device's rows.

    Attributes:
        train: inputs ``[num_rows, ...]`` and targets ``[num_rows]``.
        test: likewise; those of ``train`` if it has no others.
        has_test: whether it has.
    """

    train: tuple[Array, Array]
    test: tuple[Array, Array]
    has_test: bool


@lru_cache(maxsize=16)
def read_device_data(path: Path, described: DataDescription) -> DeviceData:
    """The data in ``path``, in the form that ``described`` has.

    Args:
        path: an ``.npz`` of ``x`` and ``y`` (or ``x_train``, ``y_train``, ``x_test``, ``y_test``),
            CSV files, or images in a folder per class; the latter two in ``train/`` and ``test/``
            if there are rows for a test.
        described: by the server.

    Raises:
        ValueError: there is no such data, or it does not fit.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from fedexp.devices.data_description import DataDescription
        >>> from fedexp.devices.device_data import read_device_data
        >>> np.savez("mine.npz", x=np.zeros((4, 2)), y=np.array([0, 1, 1, 0]))
        >>> data = read_device_data(Path("mine.npz"), DataDescription((2,), num_classes=2))
        >>> data.train[0].dtype, data.train[1].tolist(), data.has_test
        (dtype('float32'), [0, 1, 1, 0], False)
    """
    train, test = (
        None if part is None else _fitted(path, *part, described)
        for part in _parts(path, described)
    )
    if train is None or not len(train[1]):
        raise ValueError(f"{path}: has no rows to train on. Add some.")
    return DeviceData(train, test or train, test is not None)


def check_path(path: Path) -> None:
    """Raise ``ValueError`` unless there is data of a kind that can be read."""
    _kind_of(path)


def _kind_of(path: Path) -> tuple[str, list[Path]]:
    kind, files = found(str(path))
    if kind not in (CSV, SPLIT_CSV, IMAGES, SPLIT_IMAGES, NPZ):
        raise ValueError(f"{path}: devices read CSV files, images and .npz, not {kind}.")
    if kind == NPZ and len(files) > 1:
        raise ValueError(f"{path}: holds {len(files)} .npz files. Name one.")
    return kind, files


Part = tuple[Array, Array]


def _parts(path: Path, described: DataDescription) -> Sequence[Part | None]:
    """Inputs and targets as they are stored, to train and to test on."""
    kind, files = _kind_of(path)
    if kind == NPZ:
        return _npz_parts(files[0])
    read = _image_part if kind in (IMAGES, SPLIT_IMAGES) else _table_part
    if kind in (CSV, IMAGES):
        return read(files, described), None
    by_part: dict[str, list[Path]] = {"train": [], "test": []}
    for file in files:
        by_part[file.relative_to(path).parts[0].partition(".")[0]].append(file)
    return [read(some, described) for some in by_part.values()]


def _npz_parts(file: Path) -> Sequence[Part | None]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # a file can be wrong in more ways than there are names for
        raise ValueError(f"{file}: cannot be read: {error}. Write it with numpy.savez.") from None
    names = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if lacks := [name for name in names if name not in arrays]:
        raise ValueError(
            f"{file}: has no array {lacks[0]!r}, but {sorted(arrays)}. Save x and y, or x_train, "
            "y_train, x_test and y_test."
        )
    has_test = {"x_test", "y_test"} <= arrays.keys()
    train = arrays[names[0]], arrays[names[1]]
    return train, (arrays["x_test"], arrays["y_test"]) if has_test else None


def _table_part(files: Iterable[Path], described: DataDescription) -> Part:
    if not described.columns or not described.target:
        raise ValueError(
            f"data-description: the model takes inputs {list(described.shape)} without names, the "
            "data are CSV files. Save x and y with numpy.savez."
        )
    parts = [_table(file, described) for file in files]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _table(file: Path, described: DataDescription) -> Part:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as stream:
        sample = stream.readline()
        stream.seek(0)
        separator = max(",;\t", key=sample.count)
        try:
            header, *rows = [row for row in csv.reader(stream, delimiter=separator) if row]
        except (csv.Error, ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: is no CSV file with a header: {error}.") from None
    if ragged := [i for i, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise ValueError(f"{file}: line {ragged[0]} has not {len(header)} cells. Correct it.")
    if described.target not in header:
        raise ValueError(
            f"{file}: has no column {described.target!r}, which is to be learned. It has "
            f"{', '.join(header[:8])}. Add or rename it."
        )
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    if not rows:
        return np.zeros((0, *described.shape), np.float32), np.zeros(0)
    features = [_feature(file, name, columns) for name in described.columns]
    return np.stack(features, axis=1), np.array([x.strip() for x in columns[described.target]])


def _feature(file: Path, name: str, columns: dict[str, tuple[str, ...]]) -> Array:
    """A column of numbers, or of 0 and 1 for a level of a category (``column=level``)."""
    column, _, level = name.rpartition("=")
    if name not in columns and column in columns:
        return np.array([float(cell.strip() == level) for cell in columns[column]])
    if name not in columns:
        raise ValueError(f"{file}: has no column {name!r}, which the model takes. Add it.")
    cells = [cell.strip() for cell in columns[name]]
    if missing := [i for i, cell in enumerate(cells, 2) if cell in _MISSING]:
        raise ValueError(
            f"{file}: column {name!r} has no value in line {missing[0]}. Fill it in, or leave the "
            "row out."
        )
    truth = {"true": "1", "false": "0"}
    try:
        return np.array([float(truth.get(cell.lower(), cell)) for cell in cells])
    except ValueError as error:
        raise ValueError(f"{file}: column {name!r}: {error}. Save numbers.") from None


def _image_part(files: Sequence[Path], described: DataDescription) -> Part:
    from fedexp.datasets.image_files import read_images

    height, width = described.shape[-2:] if len(described.shape) > 1 else (0, 0)
    rows = read_images(files, size=height if height == width else 0)
    images = rows.x
    channels = described.shape[0] if len(described.shape) == 3 else 0
    if images.ndim == 3 and channels:  # grey ones, for a model that takes channels
        images = np.repeat(images[:, None], channels, axis=1)
    return images, np.asarray(rows.y)


def _fitted(path: Path, x: Array, y: Array, described: DataDescription) -> Part:
    if len(x) != len(y):
        raise ValueError(f"{path}: has {len(x)} inputs and {len(y)} targets. Give one for each.")
    return _inputs(path, x, described), _targets(path, y, described)


def _inputs(path: Path, x: Array, described: DataDescription) -> Array:
    shape = described.shape
    if x.dtype == np.uint8 and described.dtype == "float32" and x.ndim > 2:
        x = np.moveaxis(x, -1, 1) if x.shape[1:] == (*shape[1:], *shape[:1]) != shape else x
        x = x[:, None] if (1, *x.shape[1:]) == shape else x
        x = x.astype(np.float32) / np.float32(255)
    x = x[:, None] if x.ndim == 1 and shape == (1,) else x
    if x.shape[1:] != shape:
        raise ValueError(
            f"{path}: an input has the shape {list(x.shape[1:])}, the model takes {list(shape)}. "
            "Prepare the data as the project's description says."
        )
    if x.dtype.kind not in "fiub" or (described.dtype != "float32" and x.dtype.kind not in "iu"):
        raise ValueError(f"{path}: inputs are {x.dtype}, the model takes {described.dtype}.")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"{path}: inputs hold NaN or infinity. Leave these rows out.")
    each = (-1, *(1,) * (len(shape) - 1))
    if described.mean or described.std:
        x = x - np.reshape(described.mean or (0.0,), each)
        x = x / np.reshape(described.std or (1.0,), each)
    return np.ascontiguousarray(x, np.dtype(described.dtype))


def _targets(path: Path, y: Array, described: DataDescription) -> Array:
    y = y.reshape(len(y)) if y.shape == (len(y), 1) else y
    if y.ndim != 1:
        raise ValueError(f"{path}: targets have the shape {list(y.shape)}, must be one per row.")
    if not described.num_classes:
        try:
            values = y.astype(np.float32)
        except ValueError as error:
            raise ValueError(f"{path}: the model learns values: {error}. Save numbers.") from None
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: targets hold NaN or infinity. Leave these rows out.")
        return values
    if described.class_names and y.dtype.kind in "UOS":
        return _numbered(path, [str(x) for x in y.tolist()], described.class_names)
    try:
        numbers = y.astype(np.float64)
    except ValueError:
        raise ValueError(
            f"{path}: classes are text such as {str(y[0])[:40]!r}, the model knows classes 0 to "
            f"{described.num_classes - 1}. Number them."
        ) from None
    whole = bool(np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all())
    if len(y) and not (whole and 0 <= numbers.min() <= numbers.max() < described.num_classes):
        raise ValueError(
            f"{path}: targets are {numbers.min():g} to {numbers.max():g}, the model knows classes "
            f"0 to {described.num_classes - 1}. Number them so, or leave the others out."
        )
    return numbers.astype(np.int64)


def _numbered(path: Path, names: Sequence[str], known: Sequence[str]) -> Array:
    number = {name: i for i, name in enumerate(known)}
    if strange := sorted({*names} - {*known}):
        raise ValueError(
            f"{path}: {strange[0]!r} is none of the classes that the model knows: "
            f"{', '.join(known[:12])}. Rename it, or leave these rows out."
        )
    return np.array([number[name] for name in names], np.int64)


def num_inputs(described: DataDescription) -> int:
    """How many numbers an input has."""
    return math.prod(described.shape)
