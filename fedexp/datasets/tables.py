"""Tables from their published files: hospitals, census, phone users, convex benchmarks.

Numeric columns are standardised by the training rows. A missing value becomes 0, the mean.
"""

from pathlib import Path

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset
from fedexp.datasets.dealing import Array
from fedexp.datasets.formats import damaged, parsing, read_libsvm, read_table
from fedexp.datasets.holdout import held_out

HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
ADULT_ROWS = {"adult.data": 32_561, "adult.test": 16_281}
LIBSVM_SHAPES = {
    "a9a": (32_561, 123),
    "w8a": (49_749, 300),
    "phishing": (11_055, 68),
    "mushrooms": (8_124, 112),
}
_WISDM_CLASSES = ["Downstairs", "Jogging", "Sitting", "Standing", "Upstairs", "Walking"]


def heart_disease(data_dir: Path) -> Dataset:
    """Heart disease at four hospitals; a third of each hospital's patients are the test set.

    Most hospitals lack the columns slope, ca and thal. These are dropped, and then the rows with a
    missing value, as in Fed-Heart-Disease (Ogier du Terrail et al. 2022, arXiv:2210.04620).
    """
    folder = data_dir / "heart-disease"
    tables = [
        read_table(folder / f"processed.{name}.data", num_columns=14, num_rows=num_rows)
        for name, num_rows in HOSPITALS.items()
    ]
    table = np.concatenate(tables)
    hospital = np.repeat(np.arange(len(tables)), [len(rows) for rows in tables])
    complete = ~(table[:, :10] == "?").any(1)
    table, hospital = table[complete], hospital[complete]
    values = _numbers(folder, table[:, [*range(10), 13]])
    x = np.hstack([values[:, [0, 1, 3, 4, 5, 7, 8, 9]], _one_hot(values[:, [2, 6]])])  # cp, restecg
    if not np.isfinite(values[:, 10]).all():
        raise damaged(folder, "a diagnosis in the last column", "a row without one")
    # The diagnosis is 0 without the disease, and 1 to 4 with it.
    y = (values[:, 10] > 0).astype(np.int64)
    return _dataset(x, y, held_out(hospital, 1 / 3), 2, hospital, tuple(HOSPITALS))


def adult(data_dir: Path) -> Dataset:
    """Income above 50,000 dollars in the census of 1994; the natural clients are 16 educations.

    Agnostic federated learning (Mohri et al. 2019, arXiv:1902.00146) has two clients: people with a
    doctorate, and all others.
    """
    folder = data_dir / "adult"
    tables = [
        read_table(folder / name, num_columns=15, num_rows=num_rows)
        for name, num_rows in ADULT_ROWS.items()
    ]
    table = np.concatenate(tables)
    numbers = [0, 2, 4, 10, 11, 12]
    categories = [1, 3, 5, 6, 7, 8, 9, 13]
    x = np.hstack([_numbers(folder, table[:, numbers]), _one_hot(table[:, categories])])
    incomes = np.char.rstrip(table[:, 14], ".")  # the test file ends them so
    if odd := sorted(set(incomes) - {"<=50K", ">50K"}):
        raise damaged(folder, "incomes <=50K and >50K", odd[0])
    y = (incomes == ">50K").astype(np.int64)
    names, keys = np.unique(table[:, 3], return_inverse=True)
    is_test = np.arange(len(table)) >= ADULT_ROWS["adult.data"]
    return _dataset(x, y, is_test, 2, keys, tuple(map(str, names)))


def wisdm(data_dir: Path) -> Dataset:
    """Six activities, from ten seconds of a phone's accelerometer.

    The natural clients are the 36 users, and a fifth of each user's rows is the test set. Kwapisz,
    Weiss & Moore 2010, SensorKDD.
    """
    path = data_dir / "wisdm" / "WISDM_ar_v1.1_transformed.arff"
    table = read_table(path, num_columns=46, num_rows=5_418)
    y = np.searchsorted(_WISDM_CLASSES, table[:, 45])
    if not np.array_equal(np.take(_WISDM_CLASSES, y, mode="clip"), table[:, 45]):
        raise damaged(path, f"classes {', '.join(_WISDM_CLASSES)}", sorted(set(table[:, 45])))
    users, keys = np.unique(_numbers(path, table[:, 1]), return_inverse=True)
    if not np.array_equal(users, np.rint(users)):
        raise damaged(path, "whole numbers as users", users[-1])
    x = _numbers(path, table[:, 2:45])
    return _dataset(x, y, held_out(keys, 0.2), 6, keys, tuple(f"{user:.0f}" for user in users))


def libsvm(data_dir: Path, name: str) -> Dataset:
    """A set of two classes of LIBSVM Data. A fifth is the test set unless one is published."""
    num_rows, num_features = LIBSVM_SHAPES[name]
    folder = data_dir / "libsvm"
    x, labels = read_libsvm(folder / name, num_features=num_features, num_rows=num_rows)
    values, y = np.unique(labels, return_inverse=True)
    if len(values) != 2:
        raise damaged(folder / name, "two classes", values.tolist())
    is_test = held_out(y, 0.2)
    if name == "a9a":
        x_test, test_labels = read_libsvm(folder / "a9a.t", num_features=123, num_rows=16_281)
        x, y = np.concatenate([x, x_test]), np.concatenate([y, (test_labels > 0).astype(int)])
        is_test = np.arange(len(y)) >= num_rows
    return _split(x, y, is_test, 2)


def _dataset(
    x: Array, y: Array, is_test: Array, num_classes: int, keys: Array, names: tuple[str, ...]
) -> Dataset:
    # Standardised by the training rows alone. The mean skips missing values, which become it: 0.
    mean, std = np.nanmean(x[~is_test], axis=0), np.nanstd(x[~is_test], axis=0)
    x = np.nan_to_num((x - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    return _split(x, y, is_test, num_classes, keys[~is_test], names)


def _split(
    x: Array,
    y: Array,
    is_test: Array,
    num_classes: int,
    keys: Array | None = None,
    names: tuple[str, ...] = (),
) -> Dataset:
    train, test = (
        (torch.from_numpy(x[mask]), torch.from_numpy(y[mask].astype(np.int64)))
        for mask in (~is_test, is_test)
    )
    return Dataset(train, test, num_classes, keys, names)


def _numbers(path: Path, cells: Array) -> Array:
    """Floats, NaN where a value is missing (``?``)."""
    missing = cells == "?"
    with parsing(path, "numbers"):
        values = np.where(missing, "0", cells).astype(np.float64)
    if not np.isfinite(values).all():
        raise damaged(path, "numbers", cells[~np.isfinite(values)][0])
    return np.where(missing, np.nan, values)


def _one_hot(cells: Array) -> Array:
    columns = [cells[:, [i]] == np.unique(cells[:, i]) for i in range(cells.shape[1])]
    return np.hstack(columns).astype(np.float64)
