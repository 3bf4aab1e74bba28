"""Partitioners: pure functions of (labels or keys, parameters, seed) to the rows of each client.

Each takes the label of every example (`by_key` takes a key) and returns a `Partition`, one
ascending array of rows per client. The clients are disjoint and none is empty. Together they hold
all examples, except with `by_key` and fewer clients than keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedexp.datasets.dealing import (
    Array,
    Partition,
    apportioned,
    by_owner,
    check_arguments,
    classes,
    dealt,
    even_sizes,
    generator,
    in_order_of_class,
)

if TYPE_CHECKING:
    from fedexp.datasets.dataset import Dataset  # which needs PyTorch


def iid(labels: Array, *, num_clients: int, seed: int) -> Partition:
    """Deal the examples at random; the sizes of the clients differ by at most one.

    Args:
        labels: label of every example, of which only the number ``[num_examples]`` matters.
        num_clients: at most ``num_examples``.
        seed: of this partition's own generator.

    Raises:
        ValueError: more clients than examples.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import iid
        >>> iid(np.zeros(7, int), num_clients=3, seed=0).sizes.tolist()
        [3, 2, 2]
    """
    check_arguments("iid", labels, num_clients)
    return by_owner(generator(seed).permutation(np.arange(len(labels)) % num_clients), num_clients)


def dirichlet(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Partition:
    """Dirichlet label skew that skews the sizes too.

    Class ``k`` is divided among the clients in proportions ``pₖ ~ Dir(α, …, α)``. Source: Yurochkin
    et al. 2019, arXiv:1905.12022, section 4.

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: ``M``, length of each ``pₖ``.
        alpha: ``α > 0``; an entry of ``pₖ`` has the mean ``1/M`` and the variance
            ``(1/M)(1 - 1/M)/(Mα + 1)``.
        seed: of this partition's own generator.

    Raises:
        ValueError: a client gets no example, which a small ``α`` makes likely.

    Example:
        A large ``α`` gives every client the same number of each class.

        >>> import numpy as np
        >>> from fedexp.datasets import dirichlet, label_counts
        >>> labels = np.repeat([0, 1], 30)
        >>> parts = dirichlet(labels, num_clients=3, alpha=1e9, seed=0)
        >>> label_counts(labels, parts).tolist()
        [[10, 10], [10, 10], [10, 10]]
    """
    check_arguments("dirichlet", labels, num_clients, alpha=alpha)
    rng = generator(seed)
    class_sizes = np.bincount(classes(labels))
    proportions = rng.dirichlet(np.full(num_clients, alpha), size=len(class_sizes)).T
    return dealt(labels, apportioned(class_sizes, proportions), rng)


def dirichlet_equal(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Partition:
    """Dirichlet label skew with the same number of examples for every client (up to one).

    Client ``i`` draws its examples from ``qᵢ ~ Dir(α, …, α)`` over the classes, without
    replacement; it draws again when a class has run out. So no client is ever empty, no example is
    unused, and the clients that fill up last take the remaining examples. The experiments of
    Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, split by this scheme.

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: at most ``num_examples``.
        alpha: ``α > 0``; a small one gives one class per client, a large one is `iid`.
        seed: of this partition's own generator.

    Raises:
        ValueError: more clients than examples, or ``alpha`` is not positive.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import dirichlet_equal, heterogeneity
        >>> labels = np.repeat([0, 1], 30)
        >>> parts = dirichlet_equal(labels, num_clients=2, alpha=0.3, seed=0)
        >>> parts.sizes.tolist(), heterogeneity(labels, parts) > 0
        ([30, 30], True)
    """
    check_arguments("dirichlet_equal", labels, num_clients, alpha=alpha)
    rng = generator(seed)
    capacity = np.bincount(classes(labels))
    missing = even_sizes(len(labels), num_clients)
    proportions = rng.dirichlet(np.full(len(capacity), alpha), size=num_clients)
    counts = np.zeros(proportions.shape, np.int64)
    while missing.any():  # each pass fills every client or exhausts a class
        # q, restricted to the classes that are left. A tiny floor keeps it positive where a small
        # α has made q exactly 0: the client then takes what the others have left over.
        open_proportions = (proportions + 1e-12) * (capacity > 0)
        wanted = rng.multinomial(missing, open_proportions / open_proportions.sum(1, keepdims=True))
        # Of a class that is wanted more often than it is there, a random subset of the draws stays,
        # so that no client is served first.
        for k in np.flatnonzero(wanted.sum(0) > capacity):
            wanted[:, k] = rng.multivariate_hypergeometric(
                wanted[:, k], capacity[k], method="marginals"
            )
        counts += wanted
        capacity = capacity - wanted.sum(0)
        missing = missing - wanted.sum(1)
    return dealt(labels, counts, rng)


def shards(labels: Array, *, num_clients: int, shards_per_client: int = 2, seed: int) -> Partition:
    """Sort by label, cut into equal shards, and deal each client some: few classes per client.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3 (two shards per client).

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: number of clients.
        shards_per_client: shards that each client gets, > 0.
        seed: of this partition's own generator.

    Raises:
        ValueError: more clients than examples, or an empty client.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import label_counts, shards
        >>> labels = np.repeat([0, 1], 4)
        >>> parts = shards(labels, num_clients=2, shards_per_client=1, seed=0)
        >>> sorted(label_counts(labels, parts).tolist())
        [[0, 4], [4, 0]]
    """
    num_shards = num_clients * shards_per_client
    check_arguments("shards", labels, num_clients, shards_per_client=shards_per_client)
    client_of_shard = generator(seed).permutation(num_shards) // shards_per_client
    sizes = even_sizes(len(labels), num_shards)
    owner_sorted = np.repeat(client_of_shard.astype(np.int32), sizes)
    return by_owner(in_order_of_class(labels, owner_sorted), num_clients)


def classes_per_client(
    labels: Array, *, num_clients: int, classes_per_client: int = 2, seed: int
) -> Partition:
    """Give each client exactly ``classes_per_client`` classes, and divide each class equally.

    Every class belongs to at least one client. The first class of each client goes round, the
    others are random. Source: Li et al. 2022, arXiv:2102.02079, "quantity-based label imbalance".

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: number of clients.
        classes_per_client: classes that each client holds.
        seed: of this partition's own generator.

    Raises:
        ValueError: too few clients to hold every class, or more classes than there are.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import classes_per_client, label_counts
        >>> labels = np.repeat([0, 1, 2, 3], 6)
        >>> parts = classes_per_client(labels, num_clients=4, classes_per_client=2, seed=0)
        >>> (label_counts(labels, parts) > 0).sum(axis=1).tolist()
        [2, 2, 2, 2]
    """
    check_arguments(
        "classes_per_client", labels, num_clients, classes_per_client=classes_per_client
    )
    rng = generator(seed)
    class_sizes = np.bincount(classes(labels))
    num_all = len(class_sizes)
    if classes_per_client > num_all or num_clients * classes_per_client < num_all:
        raise ValueError(
            f"classes_per_client(classes_per_client={classes_per_client}): {num_clients} clients "
            f"must hold all {num_all} classes, each at most once. Use more clients."
        )
    # Each client holds the classes of its lowest ranks. The rank -1 is given to the class that goes
    # round: client and class in step, as often as the larger of both numbers, so that every client
    # and every class has one.
    rank = rng.random((num_clients, num_all))
    slot = np.arange(max(num_clients, num_all))
    rank[slot % num_clients, rng.permutation(num_all)[slot % num_all]] = -1
    holds = rank.argsort(1).argsort(1) < classes_per_client
    return dealt(labels, apportioned(class_sizes, holds / holds.sum(0)), rng)


def quantity_lognormal(
    labels: Array, *, num_clients: int, sigma: float = 1.0, seed: int
) -> Partition:
    """IID labels, and sizes in proportion to ``exp(σ z)`` with ``z ~ N(0, 1)``, at least one.

    Args:
        labels: label of every example, of which only the number ``[num_examples]`` matters.
        num_clients: at most ``num_examples``.
        sigma: ``σ > 0``; a small one gives equal sizes.
        seed: of this partition's own generator.

    Raises:
        ValueError: more clients than examples, or ``sigma`` is not positive.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import quantity_lognormal
        >>> parts = quantity_lognormal(np.zeros(30, int), num_clients=3, sigma=1e-9, seed=0)
        >>> parts.sizes.tolist()
        [10, 10, 10]
    """
    check_arguments("quantity_lognormal", labels, num_clients, sigma=sigma)
    rng = generator(seed)
    return _of_sizes(labels, rng.lognormal(0, sigma, num_clients), rng)


def quantity_dirichlet(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Partition:
    """IID labels, and sizes in proportion to ``Dir(α, …, α)`` over the clients, at least one.

    Source: Li et al. 2022, arXiv:2102.02079, "quantity skew".

    Args:
        labels: label of every example, of which only the number ``[num_examples]`` matters.
        num_clients: at most ``num_examples``.
        alpha: ``α > 0``; a large one gives equal sizes.
        seed: of this partition's own generator.

    Raises:
        ValueError: more clients than examples, or ``alpha`` is not positive.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import quantity_dirichlet
        >>> parts = quantity_dirichlet(np.zeros(30, int), num_clients=3, alpha=1e9, seed=0)
        >>> parts.sizes.tolist()
        [10, 10, 10]
    """
    check_arguments("quantity_dirichlet", labels, num_clients, alpha=alpha)
    rng = generator(seed)
    return _of_sizes(labels, rng.dirichlet(np.full(num_clients, alpha)), rng)


def by_key(keys: Array, *, num_clients: int = 0, seed: int) -> Partition:
    """One client per distinct key (writer, role, hospital, user), in the order of the keys.

    Args:
        keys: of every example, ``[num_examples]``.
        num_clients: 0 takes every key; a smaller number than there are takes a random subset.
        seed: of that subset.

    Raises:
        ValueError: more clients than keys.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import by_key
        >>> parts = by_key(np.array(["ann", "bob", "ann"]), seed=0)
        >>> [part.tolist() for part in parts]
        [[0, 2], [1]]
    """
    distinct = np.unique(keys)
    if not 0 <= num_clients <= len(distinct):
        raise ValueError(
            f"by_key(num_clients={num_clients}): must be at most {len(distinct)}, the number of "
            "natural clients. Use 0 for all of them."
        )
    num_clients = num_clients or len(distinct)
    chosen = generator(seed).permutation(len(distinct))[:num_clients]
    number = np.full(len(distinct), -1, np.int32)
    number[np.sort(chosen)] = np.arange(num_clients)
    return by_owner(number[np.searchsorted(distinct, keys)], num_clients)


PARTITIONERS: dict[str, Callable[..., Partition]] = {
    "iid": iid,
    "dirichlet": dirichlet_equal,
    "dirichlet-unequal": dirichlet,
    "shards": shards,
    "classes": classes_per_client,
    "quantity-lognormal": quantity_lognormal,
    "quantity-dirichlet": quantity_dirichlet,
    "natural": by_key,
}


def partition_named(
    name: str, dataset: Dataset, *, num_clients: int, seed: int, **settings: float
) -> Partition:
    """Partition the training rows of a dataset with the partitioner of that name.

    Args:
        name: a key of `PARTITIONERS`; ``dirichlet`` is the equal-size form.
        dataset: gives the labels, or the keys for ``natural``.
        num_clients: 0 with ``natural`` takes all natural clients.
        seed: of the partition's own generator.
        settings: ``alpha``, ``sigma``, ``shards_per_client``, ``classes_per_client``; a partitioner
            gets those that are arguments of it, so that one configuration serves all.

    Raises:
        ValueError: unknown name, no natural clients, more clients than examples, an empty client,
            or a setting out of range.

    Example:
        >>> from fedexp.datasets import load
        >>> from fedexp.datasets.partition import partition_named
        >>> data = load("synthetic-regression")
        >>> parts = partition_named("natural", data, num_clients=0, seed=0, alpha=0.3)
        >>> len(parts), parts[0].tolist() == list(range(30))
        (20, True)
    """
    if name not in PARTITIONERS:
        known = ", ".join(PARTITIONERS)
        raise ValueError(f"partition_named(name={name!r}): unknown partitioner. Known: {known}.")
    if name == "natural" and dataset.keys is None:
        raise ValueError(
            "partition_named(name='natural'): this dataset has no natural clients. "
            "Use another partitioner, or a dataset with keys (MNIST needs qmnist/ beside it)."
        )
    function = PARTITIONERS[name]
    known_settings = settings.keys() & inspect.signature(function).parameters.keys()
    rows = dataset.keys if name == "natural" else dataset.train[1].numpy()
    return function(
        rows, num_clients=num_clients, seed=seed, **{k: settings[k] for k in known_settings}
    )


def names_of(dataset: Dataset, parts: Partition) -> tuple[str, ...]:
    """The names of the clients of a natural partition; empty if they have none."""
    if dataset.keys is None or not dataset.names:
        return ()
    return tuple(dataset.names[key] for key in dataset.keys[parts.indices[parts.offsets[:-1]]])


def _of_sizes(labels: Array, proportions: Array, rng: np.random.Generator) -> Partition:
    # One example each before the rest is divided, so that no client is empty.
    sizes = 1 + apportioned(len(labels) - len(proportions), proportions / proportions.sum())
    return by_owner(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)), len(sizes))
