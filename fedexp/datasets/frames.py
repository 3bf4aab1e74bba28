"""Tables of a user's own: which column is the target, which the client, which are inputs."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from fedexp.datasets.columns import alike, drop_flag, features, quoted, typed, typed_alike
from fedexp.datasets.dealing import Array
from fedexp.datasets.rows import Rows


class Encoded(NamedTuple):
    """A table as numbers.

    Attributes:
        train: ``[num_examples, num_features]``; NaN where a number is missing.
        test: likewise.
        columns: names of the features.
        is_number: which features are numbers; the others are levels of a category.
    """

    train: Array
    test: Array
    columns: tuple[str, ...]
    is_number: Array


def is_frame(x: Any) -> bool:
    """Whether ``x`` is a DataFrame. pandas is not imported for that: it may not be installed."""
    return type(x).__module__.partition(".")[0] == "pandas" and hasattr(x, "columns")


def table_rows(
    frame: Any,
    *,
    target: str | None,
    client: str | None = None,
    drop: Collection[str] = (),
    keys: Array | None = None,
) -> Rows:
    """The rows of a DataFrame, by the columns of the target and of the client.

    Args:
        frame: a table; it is not changed.
        target: column of the target.
        client: column of the natural client, if there is one.
        drop: columns that are not used.
        keys: natural client of each row, if no column has it.

    Raises:
        ValueError: a column does not exist or exists twice, or a target or a client is missing.
    """
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1).reset_index(drop=True)
    names = frame.columns
    if not len(frame):
        raise ValueError("data(source): has no rows. Give it at least two.")
    if twice := names[names.duplicated()].tolist():
        raise ValueError(f"data(source): two columns are called {twice[0]!r}. Rename one.")
    check_named(names, target=target, client=client, drop=drop)
    if client is not None:
        keys = whole(frame, "client", str(client))
    inputs = frame.drop(columns={str(x) for x in (target, client, *drop) if x is not None})
    if not len(inputs.columns):
        raise ValueError("data(source): no column is left as an input. Give it one.")
    y = whole(frame, "target", str(target))
    if y.dtype.kind == "U" and (pair := alike(np.unique(y).tolist())):
        raise ValueError(
            f"data(target={target!r}): {quoted(pair)} differ in case alone. Write them alike."
        )
    return Rows(inputs, y, keys)


def check_named(
    columns: Collection[str],
    *,
    target: str | None,
    client: str | None = None,
    drop: Collection[str] = (),
) -> None:
    """Raise ``ValueError`` unless the target is given, and all given names are columns."""
    if target is None or target == "":
        raise ValueError(
            f"data(target={target!r}): must name the column to learn. {_known(columns)}. "
            "Add target='NAME' (--target NAME)."
        )
    for option, name in (("target", target), ("client", client), *(("drop", x) for x in drop)):
        if name is not None and str(name) not in columns:
            raise ValueError(
                f"data({option}={name!r}): there is no such column. {_nearest(str(name), columns)}"
            )


def whole(frame: Any, option: str, name: str) -> Array:
    """The values of a column, as numbers or text.

    Raises:
        ValueError: one is missing.
    """
    column = typed(name, frame[name])
    if number := int(column.isna().sum()):
        raise ValueError(
            f"data({option}={name!r}): {number} of {len(frame)} rows have no value there. Leave "
            "these rows out of the file."
        )
    values: Array = column.to_numpy()
    return values if values.dtype.kind in "fiub" else values.astype(str)


def encoded(train: Any, test: Any, *, impute: str = "", standardize: bool = False) -> Encoded:
    """Training and test inputs as numbers; `fedexp.datasets.columns` has the rules.

    Args:
        train: a table of the input columns.
        test: likewise.
        impute: whether numbers that are missing will be filled in.
        standardize: whether numbers will be scaled.

    Raises:
        ValueError: other columns in the test set, cells that are missing without ``impute``, dates,
            text with too many levels, or integers that float32 would round if they are not scaled.
    """
    if set(train.columns) != set(test.columns):
        raise ValueError(f"data(test): {differing(test.columns, train.columns)}. Use the same.")
    pairs = {name: typed_alike(name, train[name], test[name]) for name in train.columns}
    if not impute:
        _check_whole(pairs)
    if not standardize:
        _check_exact(pairs)
    parts = [features(name, *pair, bool(impute)) for name, pair in pairs.items()]
    names, is_number, x, x_test = zip(*parts, strict=True)
    return Encoded(
        np.concatenate(x, axis=1),
        np.concatenate(x_test, axis=1),
        tuple(name for some in names for name in some),
        np.repeat(is_number, [len(some) for some in names]),
    )


def differing(names: Iterable[str], expected: Iterable[str]) -> str:
    """The sentence part that says how columns differ from the expected ones."""
    names, expected = list(names), list(expected)
    lacks = [name for name in expected if name not in names]
    has = [name for name in names if name not in expected]
    words = (("lacks", lacks), ("has the extra", has))
    return " and ".join(f"{verb} {quoted(some)}" for verb, some in words if some)


def _check_exact(pairs: dict[str, tuple[Any, Any]]) -> None:
    import pandas as pd

    for name, (column, _) in pairs.items():
        if pd.api.types.is_integer_dtype(column) and column.abs().max() > 1 << 24:
            raise ValueError(
                f"data(standardize=False): column {name!r} holds integers beyond 16,777,216, which "
                f"float32 would round. Use standardize=True (--standardize), or leave it out if it "
                f"is an id ({drop_flag([name])})."
            )


def _check_whole(pairs: dict[str, tuple[Any, Any]]) -> None:
    missing = {name: int(a.isna().sum() + b.isna().sum()) for name, (a, b) in pairs.items()}
    if not (missing := {name: number for name, number in missing.items() if number}):
        return
    (name, number), *more = missing.items()
    rows = sum(map(len, pairs[name]))
    others = ", ".join(f"{other!r} ({n})" for other, n in more[:4])
    also = f", and so have {others}{', ...' * (len(more) > 4)}" if more else ""
    raise ValueError(
        f"data(impute=''): column {name!r} has no value in {number} of {rows} rows{also}. "
        f"Use impute='median' (--impute median), or leave out ({drop_flag(missing)})."
    )


def _known(names: Iterable[str]) -> str:
    return f"Columns: {quoted(names)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    hint = f"Did you mean {by_lower[close[0]]!r}? " if close else ""
    return f"{hint}{_known(names)}."
