"""Who holds which example: pure functions of (labels or keys, parameters, seed).

Every partitioner first decides an *owner* for each example, an array ``[num_examples]`` of
client numbers, and returns it regrouped as `Parts`: one index array per client.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Parts(Sequence[Indices]):
    """Index arrays of all clients, as views of one array; behaves as a list.

    Attributes:
        indices: rows of the dataset, client after client, ascending within a client; read-only.
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


def iid(labels: Array, *, num_clients: int, seed: int) -> Parts:
    """Equal shares of a random permutation; sizes differ by at most one."""
    return _grouped(_rng(seed).permutation(np.arange(len(labels)) % num_clients), num_clients)


def dirichlet_equal(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Parts:
    """Dirichlet label skew, the same number of examples for every client (up to one).

    Client ``i`` draws its examples one by one from ``qᵢ ~ Dir(α, …, α)`` over the classes,
    without replacement; a draw of a class that has run out is repeated. The last clients to
    fill up therefore take what is left. No client is ever empty and no example unused.

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: at most ``num_examples``.
        alpha: ``α > 0``; small is one class per client, large is `iid`.
        seed: of this partition's own generator.

    The experiments of Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, split by this scheme.
    """
    _positive("dirichlet_equal", alpha=alpha)
    rng = _rng(seed)
    capacity = np.bincount(_classes(labels))
    missing = _even_sizes(len(labels), num_clients)
    shares = rng.dirichlet(np.full(len(capacity), alpha), size=num_clients)
    counts = np.zeros(shares.shape, np.int64)
    while missing.any():  # each pass fills every client or exhausts a class
        open_shares = (shares + 1e-12) * (capacity > 0)  # the floor lets a client take leftovers
        wanted = rng.multinomial(missing, open_shares / open_shares.sum(1, keepdims=True))
        for k in np.flatnonzero(wanted.sum(0) > capacity):
            wanted[:, k] = _subset_counts(rng, wanted[:, k], capacity[k])
        counts += wanted
        capacity = capacity - wanted.sum(0)
        missing = missing - wanted.sum(1)
    return _dealt(labels, counts, rng)


def _subset_counts(rng: np.random.Generator, counts: Indices, size: int) -> Indices:
    """How many of each kind a random subset of the given size keeps."""
    return rng.multivariate_hypergeometric(counts, size, method="marginals")


def _dealt(labels: Array, counts: Indices, rng: np.random.Generator) -> Parts:
    """Deal each class at random so that client ``i`` gets ``counts[i, k]`` of class ``k``."""
    num_clients, num_classes = counts.shape
    order = rng.permutation(len(labels))
    order = order[np.argsort(_classes(labels)[order], kind="stable")]
    owner = np.empty(len(labels), np.int32)
    clients = np.tile(np.arange(num_clients, dtype=np.int32), num_classes)
    owner[order] = np.repeat(clients, counts.T.ravel())
    return _grouped(owner, num_clients)


def _grouped(owner: Array, num_clients: int) -> Parts:
    """Examples by owner."""
    sizes = np.bincount(owner, minlength=num_clients)
    indices = np.argsort(owner, kind="stable")
    indices.flags.writeable = False
    return Parts(indices, np.concatenate([[0], np.cumsum(sizes)]))


def _even_sizes(num_examples: int, num_clients: int) -> Indices:
    return num_examples // num_clients + (np.arange(num_clients) < num_examples % num_clients)


def _classes(labels: Array) -> Array:
    """Classes as small non-negative integers: sorting 8 or 16 bits is linear in numpy."""
    labels = np.asarray(labels)
    return labels.astype(np.min_scalar_type(labels.max(initial=0)), copy=False)


def _positive(owner: str, **arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{owner}({name}={value}): must be positive and finite. Try 0.5.")


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed))
