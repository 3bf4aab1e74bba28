"""The result of a partition, and what all partitioners share: checks, dealing, regrouping."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Parts(Sequence[Indices]):
    """Index arrays of all clients, as views of one array; behaves as a list.

    Attributes:
        indices: rows of the dataset, client after client, ascending within a client.
        offsets: ``[num_clients + 1]``; client ``i`` holds ``indices[offsets[i]:offsets[i + 1]]``.
    """

    indices: Indices
    offsets: Indices

    @property
    def sizes(self) -> Indices:
        """Examples of each client, ``[num_clients]``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, client: int) -> Indices: ...
    @overload
    def __getitem__(self, client: slice) -> list[Indices]: ...
    def __getitem__(self, client: int | slice) -> Indices | list[Indices]:
        if isinstance(client, slice):
            return [self[i] for i in range(*client.indices(len(self)))]
        i = range(len(self))[client]
        return self.indices[self.offsets[i] : self.offsets[i + 1]]


def grouped(owner: Array, num_clients: int) -> Parts:
    """The examples of every client, from the owner of every example (-1: nobody's).

    Raises:
        ValueError: a client owns nothing.
    """
    num_unused = np.count_nonzero(owner < 0)
    sizes = np.bincount(owner[owner >= 0] if num_unused else owner, minlength=num_clients)
    if not sizes.all():
        raise ValueError(
            f"partition(num_clients={num_clients}): client {sizes.argmin()} gets no example. "
            "Use fewer clients, a larger alpha, or the equal-size `dirichlet`."
        )
    indices = np.argsort(owner, kind="stable")[num_unused:]
    return Parts(indices, np.concatenate([[0], np.cumsum(sizes)]))


def dealt(labels: Array, counts: Indices, rng: np.random.Generator) -> Parts:
    """Deal each class at random so that client ``i`` gets ``counts[i, k]`` of class ``k``."""
    num_clients, num_classes = counts.shape
    clients = np.tile(np.arange(num_clients, dtype=np.int32), num_classes)
    hands = np.repeat(clients, counts.T.ravel())
    for cards in np.split(hands, np.cumsum(counts.sum(0))[:-1]):
        rng.shuffle(cards)
    return grouped(in_order_of_class(labels, hands), num_clients)


def in_order_of_class(labels: Array, owner_sorted: Array) -> Array:
    """The owner of every example, from the owners of the examples sorted by class."""
    owner = np.empty_like(owner_sorted)
    owner[np.argsort(classes(labels), kind="stable")] = owner_sorted
    return owner


def classes(labels: Array) -> Array:
    """Classes as small non-negative integers: numpy sorts 8 and 16 bits in linear time.

    Raises:
        ValueError: labels that are not classes.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub" or labels.min(initial=0) < 0:
        raise ValueError(
            f"partition(labels={labels.dtype}): classes must be integers from 0. "
            "Use `iid`, `natural` or a quantity partitioner for other targets."
        )
    return labels.astype(np.min_scalar_type(labels.max(initial=0)), copy=False)


def apportioned(total: Array | int, shares: Array) -> Indices:
    """Integers in proportion to the shares, which sum to ``total`` along the first axis."""
    cuts = np.rint(np.cumsum(shares, axis=0) * total).astype(np.int64)
    return np.diff(cuts, axis=0, prepend=0)


def held_out(groups: Array, fraction: float) -> Array:
    """The same random share of every group, as a mask; the same rows in every run."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.searchsorted(groups[order], groups[order])
    sizes = np.bincount(groups)[groups[order]]
    mask = np.zeros(len(groups), bool)
    mask[order] = np.arange(len(groups)) - starts < np.floor(sizes * fraction)
    return mask


def stratified(groups: Array, labels: Array, fraction: float, seed: int) -> Array:
    """A share of the rows as a mask: of each group and of each label in it, up to one row.

    Every group keeps a row, and gives one if it has two or more.

    Args:
        groups: of every row, integers ``0 … K-1``.
        labels: of every row, integers from 0.
        fraction: of the rows that the mask takes, in (0, 1).
        seed: of the draw, which is the same on every machine.
    """
    rng, size = np.random.default_rng(seed), len(groups)
    blocks = np.unique(groups * (labels.max() + 1) + labels, return_inverse=True)[1]
    rank = rng.permutation(blocks.max() + 1)  # else all small groups would give the same label
    order = np.lexsort((rng.random(size), rank[blocks], groups))
    mask = np.zeros(size, bool)
    mask[order] = np.diff(np.floor(np.arange(size + 1) * fraction + 0.5)) > 0
    sizes, taken = np.bincount(groups), np.bincount(groups, weights=mask)
    first = order[np.cumsum(sizes) - sizes]
    mask[first[taken == sizes]] = False
    mask[first[(taken == 0) & (sizes > 1)]] = True
    return mask


def even_sizes(num_examples: int, num_clients: int) -> Indices:
    """Sizes that differ by at most one, the larger ones first."""
    return num_examples // num_clients + (np.arange(num_clients) < num_examples % num_clients)


def check(owner: str, labels: Array, num_clients: int, **positive: float) -> None:
    """Raise unless there is an example for every client and each argument is positive."""
    if not 1 <= num_clients <= len(labels):
        raise ValueError(
            f"{owner}(num_clients={num_clients}): must be 1 to {len(labels)}, the number of "
            "examples. Use fewer clients or more data."
        )
    for name, value in positive.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{owner}({name}={value}): must be positive and finite.")


def generator(seed: int) -> np.random.Generator:
    """The partition's own stream of random numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed))
