"""Columns of a user's own tables: which are numbers, which become one-hot, what is missing.

- Numbers and truth values stay numbers. So does a column of text in which every cell is a number.
- Other text, and categories, become one column of 0 and 1 per level, named ``column=level``. The
  levels are those of the training rows; a level that only the test set has is 0 in all columns.
- A cell is missing if it is NaN or a text of `MISSING`. With ``impute``, missing numbers are filled
  in from the training rows, and missing categories get a level of their own, ``column=missing``.
- Dates raise an error. So does text with more than `MOST_LEVELS` levels, or with more than 20
  levels that have fewer than two rows each on average, such as names of people.
"""

import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedexp.datasets.dealing import Array

MISSING = ("", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "None", "<NA>")
MOST_LEVELS = 50
_FEW_LEVELS = 20  # with at most so many levels text is a category, however few rows share one
_FEW_NUMBERS = 10  # at most so many numbers beside a few rows of other text may be codes
_NUMBER = r"[-+\u2212$€£]?\s*\d[\d.,'’\s]*[%$€£]?"
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?"


def typed(name: str, column: Any) -> Any:
    """Convert a column to numbers or truth values if it holds nothing else, or to text.

    Missing cells become NaN.

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


def typed_alike(name: str, train: Any, test: Any) -> tuple[Any, Any]:
    """Convert both columns to numbers, or both to text."""
    import pandas as pd

    # Together, so that one cell of text in the test set makes both of them text.

    both = pd.concat([train, test], ignore_index=True)
    if isinstance(train.dtype, pd.CategoricalDtype):  # of numbers too
        texts = both.astype(object).map(str, na_action="ignore")
        both = texts.where(~texts.isin(MISSING))
    else:
        both = typed(name, both)
    return both[: len(train)], both[len(train) :]


def features(name: str, train: Any, test: Any, impute: bool) -> tuple[Any, bool, Array, Array]:
    """The features that a column becomes.

    Returns:
        Their names, whether they are numbers, and the training and test values, each
        ``[num_rows, num_features]``.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(train):
        return [name], True, *(x.to_numpy(np.float64)[:, None] for x in (train, test))
    if impute and train.isna().any():
        train, test = train.fillna("missing"), test.fillna("missing")
    _check_levels(name, pd.concat([train, test]).dropna())
    # The indexer gives -1 for a level that the training rows lack, and that equals no column.
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
            f"but is none. Save it as 1234.5, or leave it out ({drop_flag([name])})."
        )
    is_category = len(levels) <= _FEW_LEVELS or len(levels) <= min(MOST_LEVELS, len(column) / 2)
    if 0 < 3 * len(odd) < len(column) and (
        not is_category or len(levels) - odd.nunique() > _FEW_NUMBERS
    ):
        raise ValueError(
            f"data(source): column {name!r} holds {odd.iloc[0]!r}, in {len(odd)} of {len(column)} "
            f"rows it is no number. Correct or empty it, or leave it out ({drop_flag([name])})."
        )
    if is_category:
        _warn_of_cases(name, levels)
        return
    raise ValueError(
        f"data(source): column {name!r} holds {len(levels)} different texts in {len(column)} rows "
        f"({quoted(levels[:2])}, ...), too many to become columns of 0 and 1. "
        f"{_leave_out([name])} if it is an id, or group its levels."
    )


def alike(levels: Iterable[str]) -> list[str]:
    """The first two levels that differ in case alone, if there are any."""
    seen: dict[str, str] = {}
    for level in levels:
        if (other := seen.setdefault(level.casefold(), level)) != level:
            return [other, level]
    return []


def _warn_of_cases(name: str, levels: list[str]) -> None:
    if pair := alike(levels):
        logging.getLogger("flwr").warning(
            "Column %r: %s differ in case alone, and become two inputs", name, quoted(pair)
        )


def _date(name: str, some: Any) -> str:
    return (
        f"data(source): column {name!r} holds dates ({next(iter(some), '')}). "
        f"{_leave_out([name])}, or save a number, such as the days since the first."
    )


def _leave_out(names: list[str]) -> str:
    return f"Leave it out (drop={names!r}, {drop_flag(names)})"


def drop_flag(names: Iterable[str]) -> str:
    """The flag of the command line that drops columns."""
    some = list(names)
    return f"--drop {','.join(some[:8])}{',...' * (len(some) > 8)}"


def quoted(names: Iterable[str], most: int = 12) -> str:
    """The first names in quotes, and the number of the others.

    Example:
        >>> from fedexp.datasets.columns import quoted
        >>> quoted(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    names = list(names)
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
