"""The handwritten digits that come with scikit-learn, read without importing scikit-learn.

Its import takes as long as PyTorch's, and every process in which clients train would pay for it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset
from fedexp.extras import need


def digits(_seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits (8 x 8) that come with scikit-learn; a fifth is the test set.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    need("sklearn", "simulation")
    spec = find_spec("sklearn")
    assert spec
    assert spec.origin
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, np.float32, delimiter=",")  # 64 pixels from 0 to 16, and the digit
    images, labels = table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1].astype(np.int64)
    train, test = (
        (torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]))
        for rows in split_as_scikit_learn(labels, num_test=360)
    )
    return Dataset(train, test, num_classes=10)


def split_as_scikit_learn(labels: np.ndarray, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into training and test rows with the same proportions of the classes.

    They are those of scikit-learn's ``train_test_split(..., stratify=labels, random_state=0)``.

    Args:
        labels: classes from 0, ``[num_examples]``.
        num_test: number of test rows.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets.digits import split_as_scikit_learn
        >>> labels = np.repeat([0, 1], [6, 4])
        >>> train, test = split_as_scikit_learn(labels, num_test=5)
        >>> np.bincount(labels[train]).tolist(), np.bincount(labels[test]).tolist()
        ([3, 2], [3, 2])
    """
    random = np.random.RandomState(0)  # scikit-learn's generator
    sizes = np.bincount(labels)
    num_train = _divided(len(labels) - num_test, sizes, random)
    ends = num_train + _divided(num_test, sizes - num_train, random)
    drawn = [random.permutation(np.flatnonzero(labels == c)) for c in range(len(sizes))]
    train = [rows[:n] for rows, n in zip(drawn, num_train, strict=True)]
    test = [rows[n:end] for rows, n, end in zip(drawn, num_train, ends, strict=True)]
    # Until here the rows are in the order of their classes.
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))


def _divided(number: int, sizes: np.ndarray, random: Any) -> np.ndarray:
    """Divide ``number`` in proportion to ``sizes``, rounding the largest remainders up."""
    exact = sizes / sizes.sum() * number
    whole: np.ndarray = np.floor(exact)
    for remainder in np.unique(exact - whole)[::-1]:
        if missing := int(number - whole.sum()):
            tied = np.flatnonzero(exact - np.floor(exact) == remainder)
            whole[random.choice(tied, min(missing, len(tied)), replace=False)] += 1
    return whole.astype(int)
