import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedexp.datasets import Dataset, partition, skew, split
from fedexp.datasets.partition import PARTITIONERS, partition_named

LABELS = np.random.default_rng(0).integers(0, 10, 3_000)
SEEDS = st.integers(0, 2**32 - 1)
BY_LABEL = sorted(PARTITIONERS.keys() - {"natural"})


def dataset(labels, keys=None, num_classes=10):
    targets = torch.as_tensor(labels)
    inputs = torch.zeros(len(targets), 1)
    return Dataset((inputs, targets), (inputs, targets), num_classes, keys)


@pytest.mark.parametrize("name", BY_LABEL)
@given(num_clients=st.integers(6, 40), seed=SEEDS)
def test_clients_are_disjoint_not_empty_and_hold_everything(name, num_clients, seed):
    parts = partition_named(name, dataset(LABELS), num_clients=num_clients, seed=seed, alpha=5.0)
    assert len(parts) == num_clients
    assert min(map(len, parts)) > 0
    assert np.array_equal(np.sort(np.concatenate(list(parts))), np.arange(len(LABELS)))


@pytest.mark.parametrize("name", BY_LABEL)
def test_the_seed_and_nothing_else_decides(name):
    def parts(seed):
        np.random.seed(seed + 1)  # noqa: NPY002 - the global generator must not matter
        return partition_named(name, dataset(LABELS), num_clients=20, seed=seed, alpha=5.0)

    assert np.array_equal(parts(1).indices, parts(1).indices)
    assert np.array_equal(parts(1).offsets, parts(1).offsets)
    assert not np.array_equal(parts(1).indices, parts(2).indices)


@pytest.mark.parametrize("name", BY_LABEL)
def test_dtype_of_the_labels_does_not_matter(name):
    wide, narrow = (
        PARTITIONERS[name](
            LABELS.astype(dtype),
            num_clients=20,
            seed=1,
            **({"alpha": 5.0} if "dirichlet" in name else {}),
        )
        for dtype in (np.int64, np.uint8)
    )
    assert np.array_equal(wide.indices, narrow.indices)


@given(st.integers(1, 300), st.integers(1, 300), SEEDS, st.floats(1e-3, 1e3))
def test_equal_sizes_differ_by_at_most_one(num_examples, num_clients, seed, alpha):
    labels = np.random.default_rng(seed).integers(0, 7, num_examples)
    num_clients = min(num_clients, num_examples)
    for parts in (
        partition.iid(labels, num_clients=num_clients, seed=seed),
        partition.dirichlet_equal(labels, num_clients=num_clients, alpha=alpha, seed=seed),
    ):
        assert np.ptp(parts.sizes) <= 1
        assert parts.sizes.sum() == num_examples
        assert np.array_equal(np.unique(parts.indices), np.arange(num_examples))


def test_dirichlet_shares_have_the_known_mean_and_variance():
    num_clients, alpha = 4, 5.0
    labels = np.arange(400_000) % 200  # 200 classes are 200 independent draws
    parts = partition.dirichlet(labels, num_clients=num_clients, alpha=alpha, seed=3)
    shares = skew.label_counts(labels, parts) / 2_000
    mean = 1 / num_clients
    variance = mean * (1 - mean) / (num_clients * alpha + 1)
    assert shares.mean() == pytest.approx(mean)
    assert shares.var() == pytest.approx(variance, rel=0.15)  # standard error about 6 %


def draw_one_by_one(labels, num_clients, alpha, rng):
    """FedExP's scheme one by one: a random client draws a class among those not yet empty."""
    num_classes = labels.max() + 1
    left = np.bincount(labels)
    shares = rng.dirichlet(np.full(num_classes, alpha), size=num_clients)
    counts = np.zeros((num_clients, num_classes), int)
    for i in rng.permutation(np.repeat(np.arange(num_clients), len(labels) // num_clients)):
        weights = shares[i] * (left > 0)
        k = rng.choice(num_classes, p=weights / weights.sum())
        left[k] -= 1
        counts[i, k] += 1
    return counts


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_equal_dirichlet_is_as_skewed_as_drawing_one_by_one(alpha):
    labels = np.arange(400) % 4
    rng = np.random.default_rng(5)
    slow = [draw_one_by_one(labels, 8, alpha, rng) for _ in range(40)]
    fast = [
        skew.label_counts(
            labels, partition.dirichlet_equal(labels, num_clients=8, alpha=alpha, seed=s)
        )
        for s in range(400)
    ]
    spread = [np.var(counts, axis=(1, 2)) for counts in (slow, fast)]
    error = np.std(spread[0]) / np.sqrt(40) + np.std(spread[1]) / np.sqrt(400)
    assert abs(spread[0].mean() - spread[1].mean()) < 3 * error


def test_a_large_alpha_is_even_and_a_small_one_gives_one_class():
    labels = np.arange(10_000) % 10
    for name in ("dirichlet", "dirichlet-unequal"):
        parts = PARTITIONERS[name](labels, num_clients=10, alpha=1e6, seed=0)
        assert skew.heterogeneity(labels, parts) < 0.05
    parts = partition.dirichlet_equal(labels, num_clients=10, alpha=1e-3, seed=0)
    largest = skew.label_counts(labels, parts).max(1) / parts.sizes
    assert np.median(largest) > 0.99


def test_shards_hold_at_most_one_class_more_than_their_number():
    labels = np.arange(6_000) % 10  # 600 of each class, shards of 300
    parts = partition.shards(labels, num_clients=10, shards_per_client=2, seed=0)
    assert (parts.sizes == 600).all()
    assert (np.count_nonzero(skew.label_counts(labels, parts), axis=1) <= 2).all()


@given(st.integers(1, 30), st.integers(1, 10), SEEDS)
def test_every_client_holds_k_classes_and_every_class_has_a_holder(num_clients, k, seed):
    labels = np.arange(3_000) % 10
    if num_clients * k < 10:
        with pytest.raises(ValueError, match="all 10 classes"):
            partition.classes_per_client(
                labels, num_clients=num_clients, classes_per_client=k, seed=seed
            )
        return
    parts = partition.classes_per_client(
        labels, num_clients=num_clients, classes_per_client=k, seed=seed
    )
    counts = skew.label_counts(labels, parts)
    assert (np.count_nonzero(counts, axis=1) == k).all()
    for column in counts.T:
        assert np.ptp(column[column > 0]) <= 1


def test_lognormal_sizes_have_the_asked_spread():
    sizes = partition.quantity_lognormal(
        np.zeros(10**6, int), num_clients=1_000, sigma=0.7, seed=0
    ).sizes
    assert np.log(sizes).std() == pytest.approx(0.7, rel=0.1)


def test_dirichlet_sizes_have_the_known_variance():
    alpha, n = 2.0, 1_000
    sizes = partition.quantity_dirichlet(
        np.zeros(10**6, int), num_clients=n, alpha=alpha, seed=0
    ).sizes
    assert (sizes / 10**6).var() == pytest.approx((1 / n) * (1 - 1 / n) / (n * alpha + 1), rel=0.2)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), SEEDS, st.data())
def test_a_key_is_a_client(keys, seed, data):
    keys = np.array(keys)
    parts = partition.by_key(keys, seed=seed)
    assert [set(keys[part]) for part in parts] == [{key} for key in sorted(set(keys))]
    assert parts.sizes.sum() == len(keys)
    some = data.draw(st.integers(1, len(parts)))
    subset = partition.by_key(keys, num_clients=some, seed=seed)
    assert len(subset) == some
    whole = [part.tolist() for part in parts]
    places = [whole.index(part.tolist()) for part in subset]
    assert places == sorted(set(places))


def test_parts_are_a_sequence_of_views():
    parts = partition.iid(LABELS, num_clients=7, seed=0)
    assert np.shares_memory(parts[3], parts.indices)
    assert np.array_equal(parts[-1], parts[6])
    assert [len(part) for part in parts[2:4]] == parts.sizes[2:4].tolist()
    with pytest.raises(IndexError):
        parts[7]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dirichlet", {"num_clients": 3_001, "alpha": 1.0}, r"num_clients=3001\): must be 1 to 3"),
        ("iid", {"num_clients": 0}, r"iid\(num_clients=0\)"),
        ("dirichlet", {"num_clients": 3, "alpha": 0.0}, r"alpha=0.0\): must be positive"),
        ("dirichlet-unequal", {"num_clients": 99, "alpha": 1e-3}, r"client \d+ gets no example"),
        ("quantity-lognormal", {"num_clients": 9, "sigma": -1.0}, r"sigma=-1.0"),
        ("classes", {"num_clients": 9, "classes_per_client": 11}, r"classes_per_client=11"),
        ("natural", {"num_clients": 3}, "no natural clients"),
        ("dirichelt", {"num_clients": 3}, r"Known: iid, dirichlet, dirichlet-unequal, shards"),
    ],
)
def test_bad_settings_are_named_with_the_rule(name, settings, message):
    with pytest.raises(ValueError, match=message):
        partition_named(name, dataset(LABELS), seed=0, **settings)


def test_more_natural_clients_than_keys_is_an_error():
    with pytest.raises(ValueError, match="at most 4"):
        partition.by_key(np.arange(8) % 4, num_clients=5, seed=0)


def test_label_skew_of_a_regression_is_an_error():
    data = dataset(np.linspace(0, 1, 50), num_classes=0)
    with pytest.raises(ValueError, match="classes must be integers"):
        partition_named("dirichlet", data, num_clients=5, seed=0, alpha=1.0)
    assert len(partition_named("iid", data, num_clients=5, seed=0)) == 5


def test_settings_of_other_partitioners_are_passed_over():
    data = dataset(LABELS, keys=np.arange(len(LABELS)) % 4)
    parts = partition_named("natural", data, num_clients=0, seed=0, alpha=-1.0, sigma=-1.0)
    assert len(parts) == 4


@given(st.integers(1, 50), st.floats(0, 0.99), SEEDS)
def test_a_split_keeps_every_row_once_and_one_for_training(size, fraction, seed):
    part = np.arange(100, 100 + size)
    train, test = split(part, fraction=fraction, seed=seed)
    assert len(train) >= 1
    assert abs(len(test) - fraction * size) <= 1
    assert np.array_equal(np.sort(np.concatenate([train, test])), part)


def test_a_split_of_everything_is_an_error():
    with pytest.raises(ValueError, match=r"fraction=1\.0"):
        split(np.arange(9), fraction=1.0, seed=0)
