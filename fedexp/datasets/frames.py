"""Tables of a user's own: which columns are numbers, which become one-hot, what is missing.

- Numbers and truth values stay, and so does text that is nothing but numbers.
- Other text, and categories, become one column of 0 and 1 per level, named ``column=level``. The
  levels are those of the training rows; another one in the test set is 0 in all of them.
- A cell is missing if it is NaN or a text of `MISSING`. With ``impute``, numbers are filled in
  from the training rows, and a missing category is a level of its own, ``column=missing``.
- Dates are refused, and so is text with more than `MOST_LEVELS` levels, or with more than 20 that
  have fewer than two rows each on average, such as names.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from fedexp.datasets.parts import Array
from fedexp.datasets.rows import Rows

MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>")
MOST_LEVELS = 50
_FEW_LEVELS = 20  # up to which text is a category, however few rows share a level
_NUMBER = r"[-+$€£]?\s*\d[\d.,' ]*\s*[%$€£]?"
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?"


class Encoded(NamedTuple):
    """A table as numbers.

    Attributes:
        train: ``[num_examples, num_features]``; NaN where a number is missing.
        test: likewise.
        columns: names of the features.
        is_number: which features are numbers, not a level.
    """

    train: Array
    test: Array
    columns: tuple[str, ...]
    is_number: Array


def is_frame(x: Any) -> bool:
    """Whether ``x`` is a DataFrame; nothing is imported to find out."""
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
        drop: columns to leave out.
        keys: natural client of each row, if no column has it.

    Raises:
        ValueError: a column is not there or there twice, or a target or a client is missing.
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
    return Rows(inputs, whole(frame, "target", str(target)), keys)


def check_named(
    columns: Collection[str],
    *,
    target: str | None,
    client: str | None = None,
    drop: Collection[str] = (),
) -> None:
    """Raise ``ValueError`` unless there is a target, and all that is named is a column."""
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
    """Training and test inputs as numbers; see the module for the rules.

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
    pairs = {name: _typed_alike(name, train[name], test[name]) for name in train.columns}
    if not impute:
        _check_whole(pairs)
    if not standardize:
        _check_exact(pairs)
    parts = [_features(name, *pair, bool(impute)) for name, pair in pairs.items()]
    names, is_number, x, x_test = zip(*parts, strict=True)
    return Encoded(
        np.concatenate(x, axis=1),
        np.concatenate(x_test, axis=1),
        tuple(name for some in names for name in some),
        np.repeat(is_number, [len(some) for some in names]),
    )


def typed(name: str, column: Any) -> Any:
    """A column as numbers or truth values if it holds nothing else, or as text; NaN if missing.

    Raises:
        ValueError: dates, or cells that are neither numbers nor text.
    """
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise ValueError(_date(name, column.dropna().iloc[:1].astype(str)))
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return column.astype(float) if column.hasnans else column
    known = column.dropna()
    if wrong := [
        x for x in known if isinstance(x, bytes | complex) or not pd.api.types.is_scalar(x)
    ]:
        raise ValueError(
            f"data(source): column {name!r} holds {type(wrong[0]).__name__}, must hold numbers or "
            f"text. {_leave_out([name])}."
        )
    texts = known.astype(str).str.strip()
    texts = texts[~texts.isin(MISSING)]
    values, lower = pd.to_numeric(texts, errors="coerce"), texts.str.lower()
    if values.isna().any():
        values = lower == "true" if lower.isin(["true", "false"]).all() else texts
    if len(values) == len(column):
        return values
    is_text = values is texts
    return values.reindex(column.index) if is_text else values.astype(float).reindex(column.index)


def differing(names: Iterable[str], expected: Iterable[str]) -> str:
    """How columns differ from those expected, in words."""
    names, expected = list(names), list(expected)
    lacks = [name for name in expected if name not in names]
    has = [name for name in names if name not in expected]
    words = (("lacks", lacks), ("has the extra", has))
    return " and ".join(f"{verb} {_listed(some)}" for verb, some in words if some)


def _typed_alike(name: str, train: Any, test: Any) -> tuple[Any, Any]:
    """Both columns as numbers, or both as text."""
    import pandas as pd

    both = pd.concat([train, test], ignore_index=True)
    if isinstance(train.dtype, pd.CategoricalDtype):  # of numbers too
        texts = both.astype(object).map(str, na_action="ignore")
        both = texts.where(~texts.isin(MISSING))
    else:
        both = typed(name, both)
    return both[: len(train)], both[len(train) :]


def _features(name: str, train: Any, test: Any, impute: bool) -> tuple[Any, bool, Array, Array]:
    """Names of the features that a column becomes, whether it is a number, and both blocks."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(train):
        return [name], True, *(x.to_numpy(np.float64)[:, None] for x in (train, test))
    if impute and train.isna().any():
        train, test = train.fillna("missing"), test.fillna("missing")
    _check_levels(name, pd.concat([train, test]).dropna())
    levels = sorted(train.dropna().unique())
    codes = (pd.Index(levels).get_indexer(x)[:, None] for x in (train, test))
    blocks = ((x == np.arange(len(levels))).astype(float) for x in codes)
    return [f"{name}={level}" for level in levels], False, *blocks


def _check_levels(name: str, column: Any) -> None:
    import pandas as pd

    levels = sorted(column.unique())
    if levels and all(re.fullmatch(_DATE, level) for level in levels):
        raise ValueError(_date(name, levels))
    odd = column[pd.to_numeric(column, errors="coerce").isna()]
    if len(odd) and all(re.fullmatch(_NUMBER, level) for level in levels):
        raise ValueError(
            f"data(source): column {name!r} holds {max(odd, key=len)!r}, which looks like a number "
            f"but is none. Save it as 1234.5, or leave it out ({_drop([name])})."
        )
    if len(levels) <= _FEW_LEVELS or len(levels) <= min(MOST_LEVELS, len(column) / 2):
        return
    if 0 < 3 * len(odd) < len(column):
        raise ValueError(
            f"data(source): column {name!r} holds {odd.iloc[0]!r}, in {len(odd)} of {len(column)} "
            f"rows it is no number. Correct it, or leave it out ({_drop([name])})."
        )
    raise ValueError(
        f"data(source): column {name!r} holds {len(levels)} different texts in {len(column)} rows "
        f"({_listed(levels[:2])}, ...), too many to become columns of 0 and 1. "
        f"{_leave_out([name])} if it is an id, or group its levels."
    )


def _check_exact(pairs: dict[str, tuple[Any, Any]]) -> None:
    import pandas as pd

    for name, (column, _) in pairs.items():
        if pd.api.types.is_integer_dtype(column) and column.abs().max() > 1 << 24:
            raise ValueError(
                f"data(standardize=False): column {name!r} holds integers beyond 16,777,216, which "
                f"float32 would round. Use standardize=True (--standardize), or leave it out if it "
                f"is an id ({_drop([name])})."
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
        f"Use impute='median' (--impute median), or leave out ({_drop(missing)})."
    )


def _known(names: Iterable[str]) -> str:
    return f"Columns: {_listed(names)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    hint = f"Did you mean {by_lower[close[0]]!r}? " if close else ""
    return f"{hint}{_known(names)}."


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _date(name: str, some: Any) -> str:
    return (
        f"data(source): column {name!r} holds dates ({next(iter(some), '')}). "
        f"{_leave_out([name])}, or save a number, such as the days since the first."
    )


def _drop(names: Iterable[str]) -> str:
    some = list(names)
    return f"--drop {','.join(some[:8])}{',...' * (len(some) > 8)}"


def _leave_out(names: list[str]) -> str:
    return f"Leave it out (drop={names!r}, {_drop(names)})"
