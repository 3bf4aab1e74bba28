"""Datasets of a user's own data: `data` of many forms, `from_files` of the command line."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset, from_arrays
from fedexp.datasets.dealing import Array
from fedexp.datasets.frames import encoded, is_frame
from fedexp.datasets.inputs import IMPUTATIONS
from fedexp.datasets.own_files import READS, found
from fedexp.datasets.own_rows import OPTIONS, one_each, read_source
from fedexp.datasets.rows import Rows
from fedexp.datasets.targets import KINDS

_TEST_FRACTION = 0.2


def data(
    source: Any,
    *,
    target: str | None = None,
    client: Any = None,
    test: Any = None,
    drop: Collection[str] = (),
    impute: str = "",
    standardize: bool = False,
    targets: str = "auto",
    image_size: int = 0,
    seed: int = 0,
) -> Dataset:
    """Make a dataset of your own data.

    Args:
        source: a DataFrame or a dict of columns; arrays ``(x, y)``, ``(x, y, keys)`` or
            ``(x_train, y_train, x_test, y_test)``; a map-style ``torch.utils.data.Dataset`` or a
            ``datasets.Dataset``, or a pair of either that trains and tests; or a path: CSV files
            (one, a pattern or a folder), a folder of images, an ``.npz`` file, or a dataset saved
            by ``save_to_disk``. A `Dataset` is returned as it is.
        target: column to learn, for tables.
        client: the client that a row belongs to: a column; ``file`` or ``folder``, whose name is
            then the client's; or the keys of all rows.
        test: the fraction of rows that is held out, 0.2 if there is no test set. It holds for each
            client and class, up to one row; each client gives at least one row if it has two.
            Or the test set itself, in any form of ``source``.
        drop: columns that are not used.
        impute: ``mean``, ``median`` or ``zero`` of the training rows in place of missing numbers; a
            missing category becomes a category of its own.
        standardize: whether numbers get mean 0 and standard deviation 1 over the training rows.
        targets: ``classes`` or ``values`` if the target could be both.
        image_size: images are scaled to this many pixels square.
        seed: of the held-out rows, which are the same on every machine.

    Raises:
        ModuleNotFoundError: a library that reads the source is not installed.
        ValueError: data that cannot be trained on, or an option that the source does not use.

    Example:
        Six of each client's ten rows are of class "no"; a fifth of the rows are held out.

        >>> import fedexp
        >>> columns = {"age": range(20), "sick": (["no"] * 6 + ["yes"] * 4) * 2}
        >>> data = fedexp.data(columns, target="sick", client=["a"] * 10 + ["b"] * 10)
        >>> len(data.train[1]), len(data.test[1]), data.class_names, data.names
        (16, 4, ('no', 'yes'), ('a', 'b'))
    """
    for option, value, known in (
        ("impute", impute or IMPUTATIONS[0], IMPUTATIONS),
        ("targets", targets, KINDS),
    ):
        if value not in known:
            raise ValueError(f"data({option}={value!r}): must be one of {', '.join(known)}.")
    drop = [drop] if isinstance(drop, str) else list(drop)
    options = {
        **{"target": target, "client_from": client, "drop": drop, "impute": impute or ""},
        **{"standardize": standardize, "targets": targets, "image_size": image_size},
    }
    if isinstance(source, Dataset):
        _check_read("a Dataset", options | {"test_fraction": test}, frozenset())
        return source
    read = partial(read_source, target=target, drop=drop, image_size=image_size)
    kind, (train, own_test) = read(source, client)
    _check_read(kind, options, OPTIONS[kind])
    if own_test is not None and test is not None:
        raise ValueError(f"data(test={test!r:.40}): the source has a test set. Leave one out.")
    if client is not None and not isinstance(client, str):
        train = replace(train, keys=one_each(client, train))
    if client is not None and train.keys is None:
        raise ValueError(f"data(client={client!r}): {kind} have no columns. Give a key per row.")
    if own_test is not None:
        return _dataset_of(train, own_test, options)
    if test is None or isinstance(test, int | float):
        return _dataset_of(
            *train.split(_TEST_FRACTION if test is None else test, targets, seed), options
        )
    in_test = client if isinstance(client, str) else None
    return _dataset_of(train, read(test, in_test)[1][0], options)


@lru_cache(maxsize=4)
def from_files(
    path: str,
    *,
    target: str = "",
    client_from: str = "",
    test_fraction: float = _TEST_FRACTION,
    drop: str = "",
    impute: str = "",
    standardize: bool = False,
    targets: str = "auto",
    image_size: int = 0,
) -> Dataset:
    """Make a dataset of files as `data` does, from the keys of the command line.

    There is one copy per process. The held-out rows are the same for every seed of a run, so that
    seeds can be compared.

    Args:
        path: ``source`` of `data`.
        target: as in `data`.
        client_from: ``file``, ``folder`` or ``column:NAME``.
        test_fraction: ``test`` of `data`, for files without a test set.
        drop: columns, separated by commas.
        impute: as in `data`.
        standardize: as in `data`.
        targets: as in `data`.
        image_size: as in `data`.

    Raises:
        ModuleNotFoundError: a library that reads the files is not installed.
        ValueError: as in `data`.

    Example:
        >>> import pandas as pd
        >>> from fedexp.datasets import from_files
        >>> columns = {"age": range(10), "sick": ["no"] * 5 + ["yes"] * 5}
        >>> pd.DataFrame(columns).to_csv("patients.csv", index=False)
        >>> data = from_files("patients.csv", target="sick")
        >>> data.columns, data.class_names, len(data.test[1])
        (('age',), ('no', 'yes'), 2)
    """
    kind, name, column = found(path)[0], *client_from.partition(":")[::2]
    if client_from not in ("", "file", "folder") and not (name == "column" and column):
        raise ValueError(
            f"Config(client-from={client_from!r}): must be file, folder or column:NAME. "
            f"Say column:{column or name} if that is a column."
        )
    return data(
        path,
        target=target or None,
        client=column or client_from or None,
        test=test_fraction if "test_fraction" in READS[kind] else None,
        drop=[part.strip() for part in drop.split(",") if part.strip()],
        impute=impute,
        standardize=standardize,
        targets=targets,
        image_size=image_size,
    )


def _check_read(kind: str, options: Mapping[str, Any], read: frozenset[str]) -> None:
    """Raise ``ValueError`` for an option that the source does not use."""
    names = {"client_from": "client", "test_fraction": "test"}
    for option, value in options.items():
        is_plain = isinstance(value, str | int | list | None)
        if option not in read and not (is_plain and value in _NOT_GIVEN):
            raise ValueError(
                f"data({names.get(option, option)}={value!r:.40}): {kind} has no use for it. "
                "Leave it out."
            )


_NOT_GIVEN: tuple[Any, ...] = (None, "", "auto", 0, [])


def _dataset_of(train: Rows, test: Rows, options: Mapping[str, Any]) -> Dataset:
    """The dataset of training and test rows."""
    x, x_test, standardize = train.x, test.x, options["standardize"]
    columns: tuple[str, ...] = ()
    if is_frame(x):
        x, x_test, columns, is_number = encoded(
            x, x_test, impute=options["impute"], standardize=standardize
        )
        standardize = is_number.tolist() if standardize else False
    y, y_test, names = _numbered(train, test) if train.class_names else (train.y, test.y, ())
    dataset = from_arrays(
        x,
        y,
        x_test,
        y_test,
        keys=train.keys,
        test_keys=test.keys,
        impute=options["impute"],
        standardize=standardize,
        targets=options["targets"],
        columns=columns,
    )
    if not names:
        return dataset
    return replace(
        dataset,
        train=(dataset.train[0], torch.from_numpy(y)),
        test=(dataset.test[0], torch.from_numpy(y_test)),
        num_classes=len(names),
        class_names=names,
    )


def _numbered(train: Rows, test: Rows) -> tuple[Array, Array, tuple[str, ...]]:
    """Classes by number, in the order of ``train.class_names``, and the names of all of them."""
    more = sorted({*test.class_names, *test.y.tolist()} - {*train.class_names})
    names = (*train.class_names, *more)
    number = {name: i for i, name in enumerate(names)}
    if len(number) == 1:
        raise ValueError(f"data(source): all rows are of one class, {names[0]!r}. Give two.")
    y, y_test = (np.array([number[name] for name in rows.y.tolist()]) for rows in (train, test))
    return y, y_test, names
