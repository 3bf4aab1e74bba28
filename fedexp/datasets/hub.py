"""Datasets of Hugging Face: from the Hub through ``flwr-datasets``, and tables in memory."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from fedexp.datasets.dataset import Dataset, from_arrays
from fedexp.datasets.dealing import Array
from fedexp.datasets.frames import check_named, table_rows, whole
from fedexp.datasets.holdout import held_out
from fedexp.datasets.image_files import pixels, stacked_images
from fedexp.datasets.rows import Rows
from fedexp.extras import need


def from_hub(
    spec: str, *, impute: str = "", standardize: bool = False, targets: str = "auto"
) -> Dataset:
    """Download a dataset of the Hub: ``owner/name``, with ``:target`` or ``:target:key`` behind it.

    Args:
        spec: the repository, then the column of the target (by default the only column of classes)
            and the column of the natural client (by default there are no natural clients).
        impute: as in `from_arrays`.
        standardize: as in `from_arrays`.
        targets: as in `from_arrays`.

    Raises:
        ModuleNotFoundError: flwr-datasets is not installed.
        ValueError: columns that are not there.

    Example:
        >>> from fedexp.datasets import from_hub
        >>> from_hub("ylecun/mnist:label").num_classes  # doctest: +SKIP
        10
    """
    need("flwr_datasets", "hub")
    from flwr_datasets import FederatedDataset

    name, target, key = [*spec.split(":"), "", ""][:3]
    federated = FederatedDataset(dataset=name, partitioners={"train": 1}, shuffle=False)
    train = federated.load_split("train")
    try:
        test = federated.load_split("test")
    except ValueError:  # no such split
        test = None
    return from_table(
        train,
        test,
        target=target,
        key=key,
        impute=impute,
        standardize=standardize,
        targets=targets,
    )


def from_table(
    train: Any,
    test: Any = None,
    *,
    target: str = "",
    key: str = "",
    impute: str = "",
    standardize: bool = False,
    targets: str = "auto",
) -> Dataset:
    """Make a dataset of ``datasets.Dataset`` tables; columns but target and key are inputs.

    Args:
        train: a table whose inputs are one column of images or token lists, or any number of
            numeric columns.
        test: a table of the same columns; None holds out a fifth of the rows.
        target: column of classes or numbers; by default the only ``ClassLabel`` column.
        key: column of natural clients, or none.
        impute: as in `from_arrays`.
        standardize: as in `from_arrays`.
        targets: as in `from_arrays`.

    Raises:
        ValueError: as in `from_arrays`, and for columns that are not there.

    Example:
        >>> import datasets
        >>> from fedexp.datasets import from_table
        >>> columns = {"age": range(10), "sick": [0, 1] * 5, "hospital": ["a"] * 6 + ["b"] * 4}
        >>> table = datasets.Dataset.from_dict(columns)
        >>> data = from_table(table, target="sick", key="hospital")
        >>> len(data.train[1]), len(data.test[1]), data.names
        (8, 2, ('a', 'b'))
    """
    need("flwr_datasets", "hub")
    from datasets import concatenate_datasets

    target = target or _only_class_column(train)
    if absent := [name for name in (target, key) if name and name not in train.column_names]:
        known = ", ".join(train.column_names)
        raise ValueError(f"from_table(column={absent[0]!r}): there is none. Columns: {known}.")
    table = train if test is None else concatenate_datasets([train, test])
    columns = [name for name in table.column_names if name not in (target, key)]
    x, y = _inputs(table, columns), _target(table, target)
    is_last = np.arange(len(table)) >= len(train)
    is_test = held_out(_strata(y), 0.2) if test is None else is_last
    return from_arrays(
        *(x[~is_test], y[~is_test], x[is_test], y[is_test]),
        keys=np.asarray(table[key][:])[~is_test] if key else None,
        impute=impute,
        standardize=standardize,
        targets=targets,
        columns=columns,
    )


def hf_rows(
    table: Any,
    *,
    target: str | None = None,
    client: str | None = None,
    drop: Collection[str] = (),
    image_size: int = 0,
) -> Rows:
    """Read a ``datasets.Dataset``: a table, or one column of images, arrays or tokens.

    Args:
        table: its columns of classes give their names.
        target: column of the target; by default the only ``ClassLabel`` column.
        client: column of the natural client, if there is one.
        drop: columns to leave out.
        image_size: images are scaled to this many pixels square; 0 leaves them.

    Raises:
        ValueError: columns that are not there, or cannot be inputs together.
    """
    from datasets import ClassLabel, Value

    target, known = target or _only_class_column(table), table.column_names
    check_named(known, target=target, client=client, drop=drop)
    columns = [name for name in known if name not in (target, client, *drop)]
    scalars = [x for x in known if isinstance(table.features[x], ClassLabel | Value)]
    frame = table.select_columns(scalars).to_pandas()
    for name in scalars:
        if isinstance(kind := table.features[name], ClassLabel):
            frame[name] = [None if i is None or i < 0 else kind.names[i] for i in table[name]]
    if set(columns) <= set(scalars):
        rows = table_rows(frame, target=target, client=client, drop={*drop} & {*scalars})
    else:
        x = _images_or_inputs(table, columns, image_size)
        keys = None if client is None else whole(frame, "client", client)
        rows = Rows(x, whole(frame, "target", target), keys)
    kind = table.features[target]
    return replace(rows, class_names=tuple(kind.names)) if isinstance(kind, ClassLabel) else rows


def _images_or_inputs(table: Any, columns: list[str], size: int) -> Array:
    from datasets import Image

    if len(columns) == 1 and isinstance(table.features[columns[0]], Image):
        need("PIL", "files")
        images = list(table[columns[0]])
        if none := [i for i, image in enumerate(images) if image is None]:
            raise ValueError(f"row {none[0]}: has no {columns[0]}. Leave such rows out.")
        images = [pixels(image, size) for image in images]
        return stacked_images(images, [f"row {i}" for i in range(len(images))])
    return _inputs(table, columns)


def _only_class_column(table: Any) -> str:
    from datasets import ClassLabel

    found = [name for name, kind in table.features.items() if isinstance(kind, ClassLabel)]
    if len(found) != 1:
        raise ValueError(
            f"from_table(target=''): {len(found)} columns hold classes. Name one of: "
            f"{', '.join(table.column_names)}, as in `hub:owner/name:column`."
        )
    return str(found[0])


def _inputs(table: Any, columns: list[str]) -> Array:
    arrays = [_feature(table, name) for name in columns]
    if not arrays:
        raise ValueError("from_table(train): has no column beside target and key. Give it inputs.")
    if len(arrays) == 1:
        return arrays[0]
    for name, values in zip(columns, arrays, strict=True):
        if values.ndim > 1:
            raise ValueError(
                f"from_table(column={name!r}): holds arrays of shape {values.shape[1:]}, beside "
                "other columns only numbers go. Remove it, or the others (drop, remove_columns)."
            )
    if any(values.dtype.kind not in "fiub" for values in arrays):
        arrays = [values.astype(object) for values in arrays]  # else all would become text
    return np.stack(arrays, axis=1)


def _feature(table: Any, name: str) -> Array:
    from datasets import ClassLabel, Value

    if isinstance(table.features[name], ClassLabel | Value):
        return np.asarray(table[name][:])
    try:
        return np.stack([np.asarray(row) for row in table[name]])
    except ValueError as error:
        raise ValueError(
            f"from_table(column={name!r}): {error}. Give all its rows one shape."
        ) from None


def _target(table: Any, name: str) -> Array:
    from datasets import ClassLabel

    values = np.asarray(table[name][:])
    if isinstance(table.features[name], ClassLabel) and -1 in values:
        raise ValueError(
            f"from_table(column={name!r}): {np.count_nonzero(values == -1)} rows have no class "
            "(-1). Leave them out; a test set without classes cannot be scored."
        )
    return values


def _strata(y: Array) -> Array:
    """What a held-out set is balanced by: the classes, if there are any."""
    if y.ndim > 1 or y.dtype.kind not in "iUS":
        return np.zeros(len(y), np.int64)
    return np.unique(y, return_inverse=True)[1]
