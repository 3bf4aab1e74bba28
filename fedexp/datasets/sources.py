"""Every dataset by name: one table for the command line, the documentation and the tests."""

from collections.abc import Callable
from functools import lru_cache

import torch

from fedexp.datasets import synthetic
from fedexp.datasets.dataset import Dataset


def load(name: str, *, data_dir: str | None = None, seed: int = 0) -> Dataset:
    """Train and test sets by name; one copy per process, shared by all clients.

    Args:
        name: a key of `SOURCES`.
        data_dir: folder that holds one folder per dataset, for the sources that read files.
        seed: of the synthetic sources; all others are the same for every seed.

    Raises:
        ValueError: unknown name, missing or damaged files.
    """
    if name not in SOURCES:
        raise ValueError(f"load(name={name!r}): unknown dataset. Known: {', '.join(SOURCES)}.")
    return _loaded(name, data_dir, seed)


@lru_cache(maxsize=4)
def _loaded(name: str, data_dir: str | None, seed: int) -> Dataset:
    return SOURCES[name](data_dir, seed)


def digits() -> Dataset:
    """The 1,797 handwritten digits (8 x 8) that come with scikit-learn; a fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    x_train, x_test, y_train, y_test = map(torch.from_numpy, split)
    return Dataset(
        ((x_train / 16).float().view(-1, 1, 8, 8), y_train.long()),
        ((x_test / 16).float().view(-1, 1, 8, 8), y_test.long()),
        num_classes=10,
    )


SOURCES: dict[str, Callable[[str | None, int], Dataset]] = {
    "digits": lambda _, __: digits(),
    "synthetic-regression": lambda _, seed: synthetic.regression(seed=seed),
    "synthetic-lr": lambda _, seed: synthetic.classification(seed=seed),
}
