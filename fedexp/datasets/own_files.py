"""Files of a user's own: the files that a path names, their kind, and the options of that kind."""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from fedexp.datasets.formats import parsing

CSV, SPLIT_CSV = "CSV files", "CSV files train and test"
IMAGES, SPLIT_IMAGES = "images", "images in train/ and test/"
SAVED, SPLIT_SAVED, NPZ = "saved datasets", "saved datasets with a test split", ".npz"

_TABLE = {"target", "client_from", "drop", "impute", "standardize", "targets"}
_PICTURE = {"client_from", "image_size", "standardize"}
READS: dict[str, frozenset[str]] = {
    CSV: frozenset(_TABLE | {"test_fraction"}),
    SPLIT_CSV: frozenset(_TABLE),
    IMAGES: frozenset(_PICTURE | {"test_fraction"}),
    SPLIT_IMAGES: frozenset(_PICTURE),
    SAVED: frozenset(_TABLE | {"image_size", "test_fraction"}),
    SPLIT_SAVED: frozenset(_TABLE | {"image_size"}),
    NPZ: frozenset({"impute", "standardize", "targets"}),
}
"""Fields of ``Config`` that are used, by kind of files."""

SAVED_BY = "a dataset that save_to_disk wrote"

WITH_TEST = frozenset({SPLIT_CSV, SPLIT_IMAGES, SPLIT_SAVED})

_CSVS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_OTHERS = (".xlsx", ".xls", ".ods", ".parquet", ".json", ".pkl", ".pt", ".zip")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def found(path: str) -> tuple[str, list[Path]]:
    """The kind of files, a key of `READS`, that a path or a pattern names, and the files.

    A folder stands for all files in it, at any depth. A saved dataset is returned as its folder.

    Raises:
        ValueError: there are no files, or they are of an unknown kind or of two kinds.
    """
    whole = os.path.expanduser(path)
    if not os.path.exists(whole) and glob.has_magic(whole):
        files = sorted(
            x for name in glob.glob(whole, recursive=True) if (x := Path(name)).is_file()
        )
    else:
        files = [Path(whole)]
    if not files or not files[0].exists():
        raise ValueError(
            f"data({path!r}): there is no such file. Name files, a pattern or a folder."
        )
    folder = files[0] if files[0].is_dir() else None
    if folder and (splits := _splits(folder)) is not None:
        return (SPLIT_SAVED if "test" in splits else SAVED), [folder]
    if folder:
        files = sorted(x for x in folder.rglob("*") if _kind(x) and not _is_hidden(x, folder))
    kinds = {_kind(file) or CSV for file in files}
    if len(kinds) != 1:
        known = f"{', '.join(_CSVS)}, {', '.join(_IMAGES)}, or a dataset saved by save_to_disk"
        what = "holds CSV files and images" if kinds else f"holds none of {known}"
        raise ValueError(f"data({path!r}): {what}. Name the files of one kind, as 'FOLDER/*.csv'.")
    if files[0].name.lower().endswith(_OTHERS):
        raise ValueError(
            f"{files[0]}: is no CSV file. Save it as one, or read it with pandas and give "
            "fedexp.data the DataFrame."
        )
    kind = kinds.pop()
    parts = set(by_subfolder(folder, files)) if folder and kind in _SPLIT else set()
    if "train" in parts and parts & _HELD_OUT:
        raise ValueError(
            f"data({path!r}): holds {', '.join(sorted(parts))}. Leave train and test alone there."
        )
    return (_SPLIT[kind] if parts == {"train", "test"} else kind), files


_SPLIT = {CSV: SPLIT_CSV, IMAGES: SPLIT_IMAGES}
_HELD_OUT = {"val", "valid", "validation", "dev"}


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def by_subfolder(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by the name of the subfolder of ``folder`` that holds them, or by their own."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        name = file.relative_to(folder).parts[0].partition(".")[0]
        parts.setdefault(name, []).append(file)
    return parts


def short_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own without suffixes, after its folders if two are the same."""
    names = [path.name.partition(".")[0] or path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    folders = [path.absolute().parent for path in paths]
    above = os.path.commonpath(folders)
    return [
        (x.relative_to(above) / name).as_posix() for x, name in zip(folders, names, strict=True)
    ]


def _kind(path: Path) -> str:
    name = path.name.lower()
    endings = ((_CSVS, CSV), (_IMAGES, IMAGES), ((".npz",), NPZ))
    return next((kind for some, kind in endings if name.endswith(some)), "")


def _splits(folder: Path) -> list[str] | None:
    """The splits of a dataset that ``save_to_disk`` wrote, or None for any other folder."""
    if (folder / "dataset_dict.json").exists():
        with parsing(folder, SAVED_BY, "Save it again."):
            return list(json.loads((folder / "dataset_dict.json").read_text())["splits"])
    return [] if (folder / "state.json").exists() else None
