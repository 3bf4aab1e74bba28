from copy import deepcopy

import numpy as np
import pytest
from builders import stats_of
from hypothesis import given
from hypothesis import strategies as st

from fedexp.stats import PseudoGradientStats, total, tree_sum

# Every kind of array at once; `large` spans several blocks of a sum.
BEFORE = {
    "matrix": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "scalar": np.asarray(0.5),
    "half": np.linspace(-2, 2, 5, dtype=np.float16),
    "large": np.linspace(0, 1, 40_000, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "steps": np.asarray(7),
    "flags": np.array([True, False]),
    "bn.running_var": np.ones(3, np.float32),
}
TRAINABLE = frozenset({"matrix", "scalar", "half", "large", "empty"})
weights = st.floats(0.01, 1e4)
clients = st.lists(st.tuples(st.integers(0, 99), weights), min_size=1, max_size=8)


def after(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.normal(size=x.shape) * 3).astype(x.dtype) for name, x in BEFORE.items()
    }


def client(seed: int, weight: float) -> PseudoGradientStats:
    return PseudoGradientStats.of(BEFORE, after(seed), weight=weight, trainable=TRAINABLE)


def assert_close(a: PseudoGradientStats, b: PseudoGradientStats) -> None:
    assert a.count == b.count
    numbers = [(x.weight, x.sq_norm, x.norm) for x in (a, b)]
    np.testing.assert_allclose(*numbers, rtol=1e-12)
    for x, y in ((a.update, b.update), (a.buffers, b.buffers)):
        assert list(x) == list(y)
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-12, atol=1e-8)


def assert_same_bits(a: PseudoGradientStats, b: PseudoGradientStats) -> None:
    assert (a.count, a.weight, a.sq_norm, a.norm) == (b.count, b.weight, b.sq_norm, b.norm)
    for x, y in ((a.update, b.update), (a.buffers, b.buffers)):
        assert list(x) == list(y)
        assert all(np.array_equal(x[name], y[name]) for name in x)


@given(clients)
def test_the_sums_are_those_of_the_formula(parts):
    stats = total(client(*part) for part in parts)
    updates = [
        {k: np.float64(BEFORE[k]) - np.float64(after(seed)[k]) for k in TRAINABLE}
        for seed, _ in parts
    ]
    p = [weight for _, weight in parts]
    squares = [sum((x**2).sum() for x in u.values()) for u in updates]
    assert stats.count == len(parts)
    assert stats.weight == pytest.approx(sum(p))
    assert stats.sq_norm == pytest.approx(np.dot(p, squares), rel=1e-6)
    assert stats.norm == pytest.approx(np.dot(p, np.sqrt(squares)), rel=1e-6)
    assert stats.mean_sq_norm == pytest.approx(np.average(squares, weights=p), rel=1e-6)
    assert stats.mean_norm == pytest.approx(np.average(np.sqrt(squares), weights=p), rel=1e-6)
    for name in TRAINABLE:
        mean = sum(w * u[name] for w, u in zip(p, updates, strict=True)) / sum(p)
        np.testing.assert_allclose(stats.mean_update[name], mean, rtol=1e-6, atol=1e-6)
    for name in BEFORE.keys() - TRAINABLE:
        mean = sum(w * np.float64(after(seed)[name]) for seed, w in parts) / sum(p)
        np.testing.assert_allclose(stats.mean_buffers[name], mean, rtol=1e-12)


@given(clients, st.integers(0, 8), st.randoms())
def test_any_grouping_and_order_gives_the_same_sums(parts, cut, random):
    whole = total(client(*part) for part in parts)
    random.shuffle(parts)
    left, right = (total(client(*part) for part in half) for half in (parts[:cut], parts[cut:]))
    assert_close(whole, left + right)


@given(*[st.tuples(st.integers(0, 99), weights)] * 3)
def test_addition_is_associative_and_commutative(a, b, c):
    a, b, c = client(*a), client(*b), client(*c)
    assert_close((a + b) + c, a + (b + c))
    assert_same_bits(a + b, b + a)
    assert_same_bits(a.merge(b), a.add(b))


def test_the_empty_statistics_are_the_zero():
    a = client(1, 2.5)
    assert_same_bits(a + PseudoGradientStats(), a)
    assert_same_bits(PseudoGradientStats() + a, a)
    assert_same_bits(total([]), PseudoGradientStats())


@given(
    st.lists(st.tuples(st.integers(0, 99), st.just(0.0) | weights), min_size=1, max_size=9),
    st.none() | st.tuples(st.integers(0, 99), weights),
)
def test_the_aggregate_is_the_tree_sum_of_single_clients_to_the_last_bit(parts, first):
    onto = client(*first) if first else PseudoGradientStats()
    expected = onto + tree_sum([client(*part) for part in parts])
    added = PseudoGradientStats.aggregate(
        BEFORE,
        [after(seed) for seed, _ in parts],
        weights=[weight for _, weight in parts],
        trainable=TRAINABLE,
        onto=deepcopy(onto),
    )
    assert_same_bits(added, expected)


@given(clients, clients)
def test_subtrees_summed_apart_give_the_same_bits(left, right):
    halves = [client(*part) for part in left], [client(*part) for part in left[::-1]]
    assert_same_bits(tree_sum(halves[0] + halves[1]), tree_sum(halves[0]) + tree_sum(halves[1]))


def test_weight_zero_leaves_a_client_out_in_its_place():
    assert client(1, 0.0).count == 0
    assert_same_bits(client(1, 0.0) + client(2, 3.0), client(2, 3.0))


def test_operands_are_never_changed():
    before, one, a, b = deepcopy(BEFORE), after(1), client(1, 2.0), client(2, 3.0)
    copies = deepcopy((one, a, b))
    total([a, b, a + b])
    PseudoGradientStats.aggregate(
        BEFORE, [one, one], weights=[1.0, 2.0], trainable=TRAINABLE, onto=a + b
    )
    assert_same_bits(a, copies[1])
    assert_same_bits(b, copies[2])
    for x, y in ((BEFORE, before), (one, copies[0])):
        assert all(np.array_equal(x[name], y[name]) for name in x)


def test_aggregating_adds_to_read_only_sums_without_touching_them():
    onto = client(1, 1.0)
    for x in onto.update.values():
        x.flags.writeable = False
    added = PseudoGradientStats.aggregate(
        BEFORE, [after(2)], weights=[1.0], trainable=TRAINABLE, onto=onto
    )
    assert_same_bits(added, client(1, 1.0) + client(2, 1.0))


def test_a_running_total_grows_in_place():
    onto = client(1, 1.0)
    added = PseudoGradientStats.aggregate(
        BEFORE, [after(2)], weights=[1.0], trainable=TRAINABLE, onto=onto
    )
    assert np.shares_memory(added.update["large"], onto.update["large"])


def test_sums_are_float64_arrays_of_the_parameters_shapes():
    stats = client(1, 2.0) + client(2, 1.0)
    for sums in (stats.update, stats.buffers, stats.mean_update, stats.mean_buffers):
        for name, x in sums.items():
            assert isinstance(x, np.ndarray)
            assert (x.dtype, x.shape) == (np.float64, BEFORE[name].shape)
    assert all(type(x) is float for x in (stats.weight, stats.sq_norm, stats.norm))


def test_float16_updates_keep_more_digits_than_float16_has():
    before, changed = {"w": np.float16([1.0])}, {"w": np.float16([1e-4])}
    stats = PseudoGradientStats.of(before, changed, weight=1, trainable=frozenset("w"))
    assert stats.update["w"][0] == pytest.approx(1 - float(np.float16(1e-4)), rel=1e-7)


def test_unsigned_integers_named_as_trainable_do_not_wrap_around():
    before, changed = {"w": np.uint8([1])}, {"w": np.uint8([3])}
    stats = PseudoGradientStats.of(before, changed, weight=1, trainable=frozenset("w"))
    assert stats.update["w"].tolist() == [-2]


def test_norms_of_many_small_float32_updates_do_not_lose_their_tail():
    x = np.full(1 << 20, 1e-3, np.float32)
    before = {"w": np.zeros_like(x)}
    stats = PseudoGradientStats.of(before, {"w": x}, weight=1, trainable=frozenset("w"))
    assert stats.sq_norm == pytest.approx((1 << 20) * float(x[0]) ** 2, rel=1e-13)


def test_uniform_and_weighted_means_agree_for_equal_weights():
    x = np.random.default_rng(0).normal(size=(4, 6))
    uniform, weighted = stats_of(*x), stats_of(*x, weights=[30.0] * 4)
    assert uniform.mean_sq_norm == pytest.approx(weighted.mean_sq_norm)
    np.testing.assert_allclose(uniform.mean_update["w"], weighted.mean_update["w"])


def test_the_mean_knows_its_names_without_dividing():
    mean = client(1, 2.0).mean_update
    mean.arrays = dict.fromkeys(mean.arrays)  # dividing None would raise
    assert "matrix" in mean
    assert "steps" not in mean


def test_nothing_cannot_be_summed_by_halves():
    with pytest.raises(IndexError):
        tree_sum([])
