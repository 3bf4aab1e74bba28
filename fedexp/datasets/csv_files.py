"""CSV files of a user's own: one table of several files, each cell as the file has it."""

import gzip
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedexp.datasets.formats import DamagedFile, damaged, parsing
from fedexp.datasets.frames import MISSING, differing
from fedexp.datasets.own_files import short_names
from fedexp.datasets.parts import Array
from fedexp.extras import need

_SEPARATORS = ",;\t|"
_REMEDY = "Save it as CSV in UTF-8, the first line with the names of the columns."


def read_csvs(paths: Sequence[Path], client: str = "") -> tuple[Any, Array | None]:
    """One DataFrame of all files, and of each row the client its file stands for.

    A first line with more semicolons, tabs or bars than commas separates by those; with semicolons
    a comma in a number is a decimal point.

    Args:
        paths: with a line of column names each, the same columns in any order.
        client: ``file`` or ``folder``, by whose name a client goes; empty for no clients.

    Raises:
        ModuleNotFoundError: pandas is not installed.
        ValueError: a file that is no table, without rows, or with other columns than the first.
    """
    need("pandas", "files")
    import pandas as pd

    frames = [_frame(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if set(frame.columns) != set(frames[0].columns):
            raise DamagedFile(
                f"{path}: {differing(frame.columns, frames[0].columns)}, compared with {paths[0]}. "
                "Give all files the same columns."
            )
    is_number = pd.DataFrame([frame.dtypes.map(pd.api.types.is_numeric_dtype) for frame in frames])
    mixed = is_number.columns[is_number.any() & ~is_number.all()]
    if len(mixed):  # 1 in one file and '01' in another would be two levels
        frames = [_frame(path, dict.fromkeys(mixed, str)) for path in paths]
    names = (
        short_names(paths) if client == "file" else [path.absolute().parent.name for path in paths]
    )
    keys = np.repeat(names, [len(frame) for frame in frames]) if client else None
    return pd.concat(frames, ignore_index=True), keys


def _frame(path: Path, dtype: dict[str, type] | None = None) -> Any:
    import pandas as pd

    with parsing(path, "a table", _REMEDY), _plainly(path), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        header = _first_line(path)
        separator = max(_SEPARATORS, key=re.sub(r'"[^"]*"', "", header).count)
        frame = pd.read_csv(
            path,
            sep=separator,
            decimal="," if separator == ";" else ".",
            dtype=dtype,
            na_values=list(MISSING),
            keep_default_na=False,
            skipinitialspace=True,
            index_col=False,
            low_memory=False,
            encoding="utf-8-sig",
        )
    if not len(frame):
        raise DamagedFile(f"{path}: has no rows. Leave it out.")
    frame.columns = frame.columns.str.strip()
    if pd.to_numeric(pd.Series(frame.columns), errors="coerce").notna().all():
        raise DamagedFile(f"{path}: its first line holds numbers, must name the columns. Add one.")
    unnamed = frame.columns.str.match(r"Unnamed: \d+$")  # the index that DataFrame.to_csv writes
    return frame.loc[:, ~unnamed]


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Say in words what pandas says in its own."""
    import pandas as pd

    try:
        yield
    except UnicodeError:
        raise damaged(path, "text in UTF-8", "other bytes", _REMEDY) from None
    except pd.errors.ParserWarning:
        found = "rows with more cells than its first line has"
        raise damaged(path, "a table", found, _REMEDY) from None


def _first_line(path: Path) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        return str(file.readline())
