"""Reading a user's own data: from any accepted form to `Rows`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedexp.datasets.csv_files import read_csvs
from fedexp.datasets.dataset import stacked
from fedexp.datasets.dealing import Array
from fedexp.datasets.formats import parsing, read_npz
from fedexp.datasets.frames import is_frame, table_rows
from fedexp.datasets.hub import hf_rows
from fedexp.datasets.image_files import read_images
from fedexp.datasets.inputs import array_of
from fedexp.datasets.own_files import (
    CSV,
    NPZ,
    READS,
    SAVED,
    SAVED_BY,
    SPLIT_CSV,
    SPLIT_IMAGES,
    SPLIT_SAVED,
    by_subfolder,
    found,
)
from fedexp.datasets.rows import Rows
from fedexp.extras import need

Found = tuple[Rows, Rows | None]
_FRAME, _ARRAYS = "a table", "arrays"
OPTIONS = {
    **READS,
    _FRAME: READS[CSV],
    _ARRAYS: frozenset({"client_from", "test_fraction", "impute", "standardize", "targets"}),
}
"""Options that are used, by kind of source, under their names in ``Config``."""


def read_source(source: Any, client: Any, **options: Any) -> tuple[str, Found]:
    """Read a source: its kind, a key of `OPTIONS`, its rows, and its own test rows if it has any.

    Args:
        source: as in `data`.
        client: as in `data`.
        options: ``target``, ``drop`` and ``image_size``, as in `data`.
    """
    column = client if isinstance(client, str) else None
    if isinstance(source, str | Path):
        return _read_path(str(source), column, **options)
    if isinstance(source, torch.utils.data.Dataset):
        return _ARRAYS, (_torch_rows(source), None)
    if _package(source) == "datasets":
        return _read_hf(source, column, **options)
    if isinstance(source, tuple | list):
        return _read_parts(source, client, **options)
    if isinstance(source, Mapping) or is_frame(source) or hasattr(source, "to_pandas"):
        return _FRAME, (_frame_rows(source, column, **options), None)
    if isinstance(source, torch.utils.data.DataLoader):
        raise ValueError(
            "data(source=DataLoader): clients make batches themselves. Give its dataset: "
            "loader.dataset."
        )
    raise ValueError(
        f"data(source={type(source).__name__}): must be a DataFrame, a dict of columns, arrays "
        "(x, y), a map-style torch Dataset, a datasets.Dataset or a path. Give one of these."
    )


def _read_path(path: str, client: str | None, **options: Any) -> tuple[str, Found]:
    kind, files = found(path)
    if kind in (SAVED, SPLIT_SAVED):
        need("datasets", "hub")
        from datasets import load_from_disk

        with parsing(files[0], SAVED_BY, "Save it again."):
            saved = load_from_disk(str(files[0]))
        return kind, _read_hf(saved, client, **options)[1]
    if kind == NPZ:
        return kind, _npz_rows(files)
    root = Path(path).expanduser()
    reader = _csv_rows if kind in (CSV, SPLIT_CSV) else _image_rows
    if kind not in (SPLIT_CSV, SPLIT_IMAGES):
        below = root if root.is_dir() else None
        return kind, (reader(files, client=client, root=below, **options), None)
    train, test = (
        reader(by_subfolder(root, files)[name], client=client, root=root / name, **options)
        for name in ("train", "test")
    )
    return kind, (train, test)


def _csv_rows(files: list[Path], *, client: str | None, root: Path | None, **options: Any) -> Rows:
    by = client if client in ("file", "folder") else ""
    frame, keys = read_csvs(files, by)
    return table_rows(
        frame,
        target=options["target"],
        drop=options["drop"],
        client=None if by else client,
        keys=keys,
    )


def _image_rows(
    files: list[Path], *, client: str | None, root: Path | None, **options: Any
) -> Rows:
    if client not in (None, "folder"):
        raise ValueError(
            f"data(client={client!r}): of images it must be 'folder' (--client-from folder), the "
            "folder above that of the class."
        )
    by_client = client == "folder"
    return read_images(files, root=root, by_client=by_client, size=options["image_size"])


def _npz_rows(files: list[Path]) -> Found:
    if len(files) > 1:
        raise ValueError(f"data({str(files[1])!r}): is one of several .npz files. Name one.")
    arrays = read_npz(files[0])
    train = Rows(arrays["x_train"], arrays["y_train"], arrays.get("keys"))
    return train, Rows(arrays["x_test"], arrays["y_test"])


def _read_hf(source: Any, client: str | None, **options: Any) -> tuple[str, Found]:
    splits = dict(source) if isinstance(source, Mapping) else {"train": source}
    train = splits.get("train", next(iter(splits.values())))
    test = splits["test"] if "train" in splits and "test" in splits else None
    rows = hf_rows(train, client=client, **options)
    if test is None:
        return SAVED, (rows, None)
    return SPLIT_SAVED, (rows, hf_rows(test, client=client, **options))


def _read_parts(source: Any, client: Any, **options: Any) -> tuple[str, Found]:
    """Read a pair of a training and a test set, or arrays."""
    if len(source) == 2 and all(_is_whole(x, options["target"]) for x in source):
        (kind, (train, _)), (_, (test, _)) = (read_source(x, client, **options) for x in source)
        return kind, (train, test)
    if len(source) not in (2, 3, 4):
        raise ValueError(
            f"data(source=[{len(source)}]): must be (x, y), (x, y, keys), (x_train, y_train, "
            "x_test, y_test) or a pair of datasets. Give two, three or four."
        )
    if len(source) == 4:
        return _ARRAYS, (_array_rows(*source[:2]), _array_rows(*source[2:]))
    return _ARRAYS, (_array_rows(*source), None)


def _is_whole(source: Any, target: str | None) -> bool:
    """Whether ``source`` contains its targets, as a dataset does and an array does not."""
    whole = (
        isinstance(source, str | Path | torch.utils.data.Dataset) or _package(source) == "datasets"
    )
    return whole or (target is not None and is_frame(source))


def _package(source: Any) -> str:
    return type(source).__module__.partition(".")[0]


def _frame_rows(source: Any, client: str | None, **options: Any) -> Rows:
    need("pandas", "files")
    import pandas as pd

    try:
        frame = source.to_pandas() if hasattr(source, "to_pandas") else pd.DataFrame(source)
    except ValueError as error:  # columns of different lengths
        raise ValueError(f"data(source): {error}. Give all columns one value a row.") from None
    own = {"target": options["target"], "drop": options["drop"]}
    return table_rows(frame, client=client, **own)


def _array_rows(x: Any, y: Any, keys: Any = None) -> Rows:
    y = array_of("y_train", y)
    x = x.reset_index(drop=True) if is_frame(x) else array_of("x_train", x)
    if len(x) != len(y):
        raise ValueError(
            f"data(source): x has {len(x)} rows, y has {len(y)}. Give one target a row."
        )
    rows = Rows(x.set_axis([str(c) for c in x.columns], axis=1) if is_frame(x) else x, y)
    return rows if keys is None else replace(rows, keys=one_each(keys, rows))


def one_each(keys: Any, rows: Rows) -> Array:
    """``keys`` as an array, if there is one for each row and ``rows`` have no others."""
    keys = np.asarray(keys)
    if rows.keys is not None or keys.size != len(rows.y):
        raise ValueError(
            f"data(client=[{keys.size}]): must be one key per row, {len(rows.y)}, given once."
        )
    return np.ravel(keys)


def _torch_rows(source: Any) -> Rows:
    if isinstance(source, torch.utils.data.IterableDataset):
        raise ValueError(
            "data(source): an IterableDataset has no rows by number. Make a list of it."
        )
    x, y = stacked("source", source)
    names = getattr(source, "classes", None)
    if names and y.dtype.kind in "iu" and y.ndim == 1 and 0 <= y.min() <= y.max() < len(names):
        names = tuple(map(str, names))
        return Rows(x, np.array(names)[y], None, names)
    return Rows(x, y)
