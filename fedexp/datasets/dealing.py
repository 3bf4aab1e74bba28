"""The result of a partition, and the parts of which all partitioners are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Partition(Sequence[Indices]):
    """The rows of all clients, as a sequence of index arrays that are views of one array.

    Attributes:
        indices: rows of the dataset, client after client, ascending within a client.
        offsets: ``[num_clients + 1]``; client ``i`` holds ``indices[offsets[i]:offsets[i + 1]]``.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import Partition
        >>> parts = Partition(np.array([0, 3, 1, 2, 4]), np.array([0, 2, 5]))
        >>> len(parts), parts[1].tolist(), parts.sizes.tolist()
        (2, [1, 2, 4], [2, 3])
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


def by_owner(owner: Array, num_clients: int) -> Partition:
    """The examples of every client, from the owner of every example; -1 is nobody's.

    Raises:
        ValueError: a client owns nothing.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets.dealing import by_owner
        >>> [part.tolist() for part in by_owner(np.array([1, 0, -1, 1]), num_clients=2)]
        [[1], [0, 3]]
    """
    num_unused = np.count_nonzero(owner < 0)
    sizes = np.bincount(owner[owner >= 0] if num_unused else owner, minlength=num_clients)
    if not sizes.all():
        raise ValueError(
            f"partition(num_clients={num_clients}): client {sizes.argmin()} gets no example. "
            "Use fewer clients, a larger alpha, or the equal-size `dirichlet`."
        )
    # -1 sorts first, and the stable sort leaves the rows of a client in ascending order.
    indices = np.argsort(owner, kind="stable")[num_unused:]
    return Partition(indices, np.concatenate([[0], np.cumsum(sizes)]))


def dealt(labels: Array, counts: Indices, rng: np.random.Generator) -> Partition:
    """Deal each class at random so that client ``i`` gets ``counts[i, k]`` of class ``k``."""
    # The owners of the examples as if these were sorted by class: each class is a deck of clients,
    # every one as often as it gets an example, which is shuffled.
    num_clients, num_classes = counts.shape
    clients = np.tile(np.arange(num_clients, dtype=np.int32), num_classes)
    hands = np.repeat(clients, counts.T.ravel())
    for cards in np.split(hands, np.cumsum(counts.sum(0))[:-1]):
        rng.shuffle(cards)
    return by_owner(in_order_of_class(labels, hands), num_clients)


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


def apportioned(total: Array | int, proportions: Array) -> Indices:
    """Integers in proportion to ``proportions``, with the sum ``total`` along the first axis.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets.dealing import apportioned
        >>> apportioned(10, np.array([0.25, 0.25, 0.5])).tolist()
        [2, 3, 5]
    """
    # Rounding the running sum, not each number, makes the integers sum to the total.
    cuts = np.rint(np.cumsum(proportions, axis=0) * total).astype(np.int64)
    return np.diff(cuts, axis=0, prepend=0)


def even_sizes(num_examples: int, num_clients: int) -> Indices:
    """Sizes of clients that differ by at most one, the larger ones first."""
    return num_examples // num_clients + (np.arange(num_clients) < num_examples % num_clients)


def check_arguments(owner: str, labels: Array, num_clients: int, **positive: float) -> None:
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
