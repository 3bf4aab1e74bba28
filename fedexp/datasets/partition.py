"""Who holds which example: pure functions of (labels or keys, parameters, seed).

Each takes the label of every example (`by_key` a key) and returns `Parts`, one ascending index
array per client. The clients are disjoint, none is empty, and together they hold everything
(`by_key` with fewer clients than keys aside).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedexp.datasets.parts import (
    Array,
    Indices,
    Parts,
    apportioned,
    check,
    classes,
    dealt,
    even_sizes,
    generator,
    grouped,
    in_order_of_class,
)

if TYPE_CHECKING:
    from fedexp.datasets.dataset import Dataset  # which needs PyTorch


def iid(labels: Array, *, num_clients: int, seed: int) -> Parts:
    """Equal shares of a random permutation; sizes differ by at most one."""
    check("iid", labels, num_clients)
    return grouped(generator(seed).permutation(np.arange(len(labels)) % num_clients), num_clients)


def dirichlet(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Parts:
    """Dirichlet label skew that skews the sizes too.

    Class ``k`` is shared out among the clients in proportions ``pₖ ~ Dir(α, …, α)``.

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: ``M``, length of each ``pₖ``.
        alpha: ``α > 0``; a share has mean ``1/M`` and variance ``(1/M)(1 - 1/M)/(Mα + 1)``.
        seed: of this partition's own generator.

    Raises:
        ValueError: a client gets nothing, which a small ``α`` makes likely.

    Source: Yurochkin et al. 2019, arXiv:1905.12022, section 4.
    """
    check("dirichlet", labels, num_clients, alpha=alpha)
    rng = generator(seed)
    class_sizes = np.bincount(classes(labels))
    shares = rng.dirichlet(np.full(num_clients, alpha), size=len(class_sizes)).T
    return dealt(labels, apportioned(class_sizes, shares), rng)


def dirichlet_equal(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Parts:
    """Dirichlet label skew, the same number of examples for every client (up to one).

    Client ``i`` draws its examples from ``qᵢ ~ Dir(α, …, α)`` over the classes, without
    replacement; a draw of a class that has run out is repeated. So the last clients to fill up
    take what is left, no client is ever empty and no example unused.

    Args:
        labels: class of every example, ``[num_examples]``.
        num_clients: at most ``num_examples``.
        alpha: ``α > 0``; small is one class per client, large is `iid`.
        seed: of this partition's own generator.

    The experiments of Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, split by this scheme.
    """
    check("dirichlet_equal", labels, num_clients, alpha=alpha)
    rng = generator(seed)
    capacity = np.bincount(classes(labels))
    missing = even_sizes(len(labels), num_clients)
    shares = rng.dirichlet(np.full(len(capacity), alpha), size=num_clients)
    counts = np.zeros(shares.shape, np.int64)
    while missing.any():  # each pass fills every client or exhausts a class
        open_shares = (shares + 1e-12) * (capacity > 0)  # the floor lets a client take leftovers
        wanted = rng.multinomial(missing, open_shares / open_shares.sum(1, keepdims=True))
        for k in np.flatnonzero(wanted.sum(0) > capacity):  # a random subset of these draws stays
            wanted[:, k] = rng.multivariate_hypergeometric(
                wanted[:, k], capacity[k], method="marginals"
            )
        counts += wanted
        capacity = capacity - wanted.sum(0)
        missing = missing - wanted.sum(1)
    return dealt(labels, counts, rng)


def shards(labels: Array, *, num_clients: int, shards_per_client: int = 2, seed: int) -> Parts:
    """Sort by label, cut into equal shards, deal each client some: few classes per client.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3 (two shards per client).
    """
    num_shards = num_clients * shards_per_client
    check("shards", labels, num_clients, shards_per_client=shards_per_client)
    client_of_shard = generator(seed).permutation(num_shards) // shards_per_client
    sizes = even_sizes(len(labels), num_shards)
    owner_sorted = np.repeat(client_of_shard.astype(np.int32), sizes)
    return grouped(in_order_of_class(labels, owner_sorted), num_clients)


def classes_per_client(
    labels: Array, *, num_clients: int, classes_per_client: int = 2, seed: int
) -> Parts:
    """Each client holds exactly ``classes_per_client`` classes; holders share a class equally.

    Every class has a holder. The first class of each client goes round, the others are random.

    Raises:
        ValueError: too few clients to hold every class, or more classes than there are.

    Source: Li et al. 2022, arXiv:2102.02079, "quantity-based label imbalance".
    """
    check("classes_per_client", labels, num_clients, classes_per_client=classes_per_client)
    rng = generator(seed)
    class_sizes = np.bincount(classes(labels))
    num_all = len(class_sizes)
    if classes_per_client > num_all or num_clients * classes_per_client < num_all:
        raise ValueError(
            f"classes_per_client(classes_per_client={classes_per_client}): {num_clients} clients "
            f"must hold all {num_all} classes, each at most once. Use more clients."
        )
    rank = rng.random((num_clients, num_all))
    slot = np.arange(max(num_clients, num_all))
    rank[slot % num_clients, rng.permutation(num_all)[slot % num_all]] = -1
    holds = rank.argsort(1).argsort(1) < classes_per_client
    return dealt(labels, apportioned(class_sizes, holds / holds.sum(0)), rng)


def quantity_lognormal(labels: Array, *, num_clients: int, sigma: float = 1.0, seed: int) -> Parts:
    """IID labels, sizes in proportion to ``exp(σ z)``, ``z ~ N(0, 1)``, and at least one."""
    check("quantity_lognormal", labels, num_clients, sigma=sigma)
    rng = generator(seed)
    return _of_shares(labels, rng.lognormal(0, sigma, num_clients), rng)


def quantity_dirichlet(labels: Array, *, num_clients: int, alpha: float, seed: int) -> Parts:
    """IID labels, sizes in proportion to ``Dir(α, …, α)`` over the clients, and at least one.

    Source: Li et al. 2022, arXiv:2102.02079, "quantity skew".
    """
    check("quantity_dirichlet", labels, num_clients, alpha=alpha)
    rng = generator(seed)
    return _of_shares(labels, rng.dirichlet(np.full(num_clients, alpha)), rng)


def by_key(keys: Array, *, num_clients: int = 0, seed: int) -> Parts:
    """One client per distinct key (writer, role, hospital, user), in the order of the keys.

    Args:
        keys: of every example, ``[num_examples]``.
        num_clients: 0 takes every key; fewer than there are, a random subset of them.
        seed: of that subset.

    Raises:
        ValueError: more clients than keys.
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
    return grouped(number[np.searchsorted(distinct, keys)], num_clients)


PARTITIONERS: dict[str, Callable[..., Parts]] = {
    "iid": iid,
    "dirichlet": dirichlet_equal,
    "dirichlet-unequal": dirichlet,
    "shards": shards,
    "classes": classes_per_client,
    "quantity-lognormal": quantity_lognormal,
    "quantity-dirichlet": quantity_dirichlet,
    "natural": by_key,
}


def named(name: str, dataset: Dataset, *, num_clients: int, seed: int, **settings: float) -> Parts:
    """Partition a dataset's training rows by the name of a partitioner.

    Args:
        name: a key of `PARTITIONERS`; ``dirichlet`` is the equal-size form.
        dataset: its labels, or its keys for ``natural``.
        num_clients: 0 with ``natural`` takes all natural clients.
        seed: of the partition's own generator.
        settings: ``alpha``, ``sigma``, ``shards_per_client``, ``classes_per_client``; each takes
            what it knows, so that one configuration serves all.

    Raises:
        ValueError: unknown name, no natural clients, more clients than examples, a client left
            empty, a setting out of range.
    """
    if name not in PARTITIONERS:
        known = ", ".join(PARTITIONERS)
        raise ValueError(f"named(name={name!r}): unknown partitioner. Known: {known}.")
    if name == "natural" and dataset.keys is None:
        raise ValueError(
            "named(name='natural'): this dataset has no natural clients. "
            "Use another partitioner, or a dataset with keys (MNIST needs qmnist/ beside it)."
        )
    function = PARTITIONERS[name]
    known_settings = settings.keys() & inspect.signature(function).parameters.keys()
    rows = dataset.keys if name == "natural" else dataset.train[1].numpy()
    return function(
        rows, num_clients=num_clients, seed=seed, **{k: settings[k] for k in known_settings}
    )


def names_of(dataset: Dataset, parts: Parts) -> tuple[str, ...]:
    """The names of the clients of a natural partition; empty if they have none."""
    if dataset.keys is None or not dataset.names:
        return ()
    return tuple(dataset.names[key] for key in dataset.keys[parts.indices[parts.offsets[:-1]]])


def own_test_rows(dataset: Dataset, part: Indices) -> Indices:
    """The rows of the test set that belong to the natural client whose rows are ``part``."""
    if dataset.keys is None or dataset.test_keys is None:
        return part[:0]
    return np.flatnonzero(dataset.test_keys == dataset.keys[part[0]])


def split(part: Indices, *, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """A client's own train and test rows, at random; at least one row stays for training.

    Args:
        part: rows of the client.
        fraction: of the rows that become the test, in [0, 1).
        seed: of the draw; give each client its own.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"split(fraction={fraction}): must be in [0, 1).")
    num_test = min(round(fraction * len(part)), len(part) - 1)
    order = generator(seed).permutation(len(part))
    return part[np.sort(order[num_test:])], part[np.sort(order[:num_test])]


def _of_shares(labels: Array, shares: Array, rng: np.random.Generator) -> Parts:
    sizes = 1 + apportioned(len(labels) - len(shares), shares / shares.sum())
    return grouped(rng.permutation(np.repeat(np.arange(len(shares)), sizes)), len(shares))
