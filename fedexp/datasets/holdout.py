"""Rows that are held out for a test: of a dataset, and of a client's own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedexp.datasets.dealing import Array, Indices, generator

if TYPE_CHECKING:  # which needs PyTorch
    from fedexp.datasets.dataset import Dataset


def held_out(groups: Array, fraction: float) -> Array:
    """A random fraction of every group, as a mask; it is the same in every run.

    Args:
        groups: group of every row, integers from 0, ``[num_rows]``.
        fraction: of the rows of each group, rounded down.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets.holdout import held_out
        >>> groups = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
        >>> np.bincount(groups[held_out(groups, 0.5)]).tolist()
        [2, 3]
    """
    rng = np.random.default_rng(0)
    # The stable sort keeps the random order within each group: its first rows are a random choice.
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.searchsorted(groups[order], groups[order])
    sizes = np.bincount(groups)[groups[order]]
    mask = np.zeros(len(groups), bool)
    mask[order] = np.arange(len(groups)) - starts < np.floor(sizes * fraction)
    return mask


def stratified(groups: Array, labels: Array, fraction: float, seed: int) -> Array:
    """A fraction of the rows of each group, and of each label in it, as a mask.

    The number of rows differs by at most one from the exact fraction. Every group keeps a row, and
    gives one if it has two or more.

    Args:
        groups: of every row, integers ``0 … K-1``.
        labels: of every row, integers from 0.
        fraction: of the rows that the mask selects, in (0, 1).
        seed: of the draw, which is the same on every machine.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets.holdout import stratified
        >>> groups, labels = np.repeat([0, 1], 4), np.array([0, 0, 1, 1] * 2)
        >>> mask = stratified(groups, labels, fraction=0.5, seed=0)
        >>> list(zip(groups[mask].tolist(), labels[mask].tolist()))
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    rng, size = np.random.default_rng(seed), len(groups)
    # A block is a group and a label in it. Blocks are ranked at random within their group: in the
    # order of the labels, all small groups would give the same label.
    blocks = np.unique(groups * (labels.max() + 1) + labels, return_inverse=True)[1]
    rank = rng.permutation(blocks.max() + 1)
    order = np.lexsort((rng.random(size), rank[blocks], groups))
    # One running count over all rows in this order, rounded: any run of n rows, and so any group
    # and any block, has the exact fraction up to one row.
    mask = np.zeros(size, bool)
    mask[order] = np.diff(np.floor(np.arange(size + 1) * fraction + 0.5)) > 0
    sizes, taken = np.bincount(groups), np.bincount(groups, weights=mask)
    first = order[np.cumsum(sizes) - sizes]
    mask[first[taken == sizes]] = False
    mask[first[(taken == 0) & (sizes > 1)]] = True
    return mask


def split(part: Indices, *, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split a client's rows at random into its own train and test rows, both ascending.

    At least one row remains for training.

    Args:
        part: rows of the client.
        fraction: of the rows that become the test, in [0, 1).
        seed: of the draw; give each client its own.

    Raises:
        ValueError: ``fraction`` is out of its range.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import split
        >>> train, test = split(np.arange(10), fraction=0.2, seed=0)
        >>> len(train), len(test), sorted([*train.tolist(), *test.tolist()]) == list(range(10))
        (8, 2, True)
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"split(fraction={fraction}): must be in [0, 1).")
    num_test = min(round(fraction * len(part)), len(part) - 1)
    order = generator(seed).permutation(len(part))
    return part[np.sort(order[num_test:])], part[np.sort(order[:num_test])]


def own_test_rows(dataset: Dataset, part: Indices) -> Indices:
    """The rows of the test set that belong to the natural client whose rows are ``part``."""
    if dataset.keys is None or dataset.test_keys is None:
        return part[:0]
    return np.flatnonzero(dataset.test_keys == dataset.keys[part[0]])
