"""CSV files of a user's own: several files as one table, with each cell as the file has it."""

import gzip
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from fedexp.datasets.columns import MISSING
from fedexp.datasets.dealing import Array
from fedexp.datasets.formats import DamagedFile, damaged, parsing
from fedexp.datasets.frames import differing
from fedexp.datasets.own_files import short_names
from fedexp.extras import need

_SEPARATORS = ",;\t|"
_REMEDY = "Save it as CSV in UTF-8, the first line with the names of the columns."


def read_csvs(paths: Sequence[Path], client: str = "") -> tuple[Any, Array | None]:
    """Read all files into one DataFrame, and the client of each row from the name of its file.

    The separator is whichever of comma, semicolon, tab and bar is most frequent in the first line.
    In a file with semicolons, a comma in a number is a decimal point.

    Args:
        paths: files with a first line of column names; the same columns in any order.
        client: ``file`` or ``folder``, whose name is then the client's; empty for no clients.

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
    # A column may hold numbers in one file and text in another. Then it is read again as text
    # everywhere, or 01 would be the number 1 in one file and the text '01' in another: two levels.
    if len(mixed):
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
        separator = _separator(path)
        how = {"sep": separator, "index_col": False, "skipinitialspace": True}
        how |= {"encoding": "utf-8-sig", "na_values": list(MISSING), "keep_default_na": False}
        names = pd.read_csv(path, header=None, nrows=1, dtype=str, **how).fillna("").iloc[0]
        decimal = "," if separator == ";" else "."
        frame = pd.read_csv(path, decimal=decimal, dtype=dtype, low_memory=False, **how)
    if not len(frame):
        raise DamagedFile(f"{path}: has no rows. Leave it out.")
    frame = _named(path, frame, [normalize("NFC", name.strip()) for name in names])
    if decimal == ",":
        _check_points(path, frame)
    return frame


def _named(path: Path, frame: Any, names: list[str]) -> Any:
    """The columns under their names in the file, without those that have none.

    Only an index (the first column) and empty columns may have no name.
    """
    import pandas as pd

    if pd.to_numeric(pd.Series(names), errors="coerce").notna().all():
        raise DamagedFile(f"{path}: its first line holds numbers, must name the columns. Add one.")
    for i, name in enumerate(names):
        if name and names.count(name) > 1:
            raise DamagedFile(f"{path}: two columns are called {name!r}. Rename one.")
        if i and not name and frame.iloc[:, i].notna().any():
            raise DamagedFile(f"{path}: column {i + 1} has no name. Name it, or remove it.")
    is_left = [bool(name) and not re.fullmatch(r"Unnamed: \d+", name) for name in names]
    return frame.set_axis(names, axis=1).loc[:, is_left]


def _check_points(path: Path, frame: Any) -> None:
    """Raise ``ValueError`` if 1.200 could be 1200 in a file that may have decimal commas."""
    import pandas as pd

    odd = {}
    for name, column in frame.select_dtypes(exclude=["number", "bool"]).items():
        texts = column.dropna().astype(str).str.strip()
        has_point = texts.str.contains(".", regex=False)
        if not has_point.any() or pd.to_numeric(texts, errors="coerce").isna().any():
            continue
        if not texts[has_point].str.fullmatch(r"-?[1-9]\d{0,2}\.\d{3}").all():
            return  # a number that is no thousands, such as 1.25: points are decimal here
        odd[name] = texts[has_point].iloc[0]
    for name, text in odd.items():
        raise DamagedFile(
            f"{path}: column {name!r} holds {text}, which may be {text.replace('.', '')}, or a "
            "number with a decimal point. Write thousands without a point, decimals with a comma."
        )


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Replace pandas' errors by our own, which name the file and the remedy."""
    import pandas as pd

    try:
        yield
    except UnicodeError:
        raise damaged(path, "text in UTF-8", "other bytes", _REMEDY) from None
    except pd.errors.EmptyDataError:
        raise DamagedFile(f"{path}: is empty. Leave it out.") from None
    except pd.errors.ParserWarning:
        found = "rows with more cells than its first line has"
        raise damaged(path, "a table", found, _REMEDY) from None
    except pd.errors.ParserError as error:  # Expected 3 fields in line 9, saw 4
        found = str(error).rpartition("C error: ")[2]
        raise damaged(path, "as many cells in every row", found, "Correct the file.") from None


def _separator(path: Path) -> str:
    """The separator that is most frequent in the first line that is not blank."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        # Names in quotes may contain separators.
        header = re.sub(r'"[^"]*"', "", next((line for line in file if line.strip()), ""))
    return max(_SEPARATORS, key=header.count)
