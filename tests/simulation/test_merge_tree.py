import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from builders import content
from hypothesis import given
from hypothesis import strategies as st

from fedexp.merged import ClientSums, Merged
from fedexp.simulation.merge_tree import combine, halves, subtrees, subtrees_up_to
from fedexp.simulation.worker_share import WorkerShare
from fedexp.stats import PseudoGradientStats, tree_sum
from fedexp.wire import ClientResult, ReplyFormat

BEFORE = {"w": np.linspace(-1, 1, 5, dtype=np.float32), "n": np.asarray(3)}
READING = ReplyFormat("num-examples", False, frozenset("w"), "arrays")


def after(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    return {"w": rng.normal(size=5).astype(np.float32), "n": np.asarray(i)}


def answers(size, failing=(), nan=(), bad=()):
    """Results of a cohort, some of them of no use."""
    results = []
    for i in range(size):
        body = content(after(i), num_examples=i + 1)
        if i in nan:
            body = content(after(i) | {"w": np.full(5, np.nan, np.float32)})
        if i in bad:
            body = content({"w": np.zeros(4), "n": np.asarray(0)})
        failed = ClientResult(i + 2, refused="no battery") if i in failing else None
        results.append(failed or read(i, body))
    return results


def read(i, body, reading=READING):
    return reading.result(i + 2, body, BEFORE, look_at_updates=False)


def share(results, before=BEFORE, reading=READING):
    return WorkerShare(lambda span: results[slice(*span)], reading, before)


def only(merged: Merged) -> ClientSums:
    """The sum of clients that are all of one kind, or nothing."""
    assert len(merged.sums) <= 1
    return next(iter(merged.sums.values()), ClientSums())


def assert_same_bits(a: ClientSums, b: ClientSums):
    x, y = a.stats, b.stats
    assert (x.count, x.weight, x.sq_norm, x.norm) == (y.count, y.weight, y.sq_norm, y.norm)
    np.testing.assert_array_equal(x.update["w"], y.update["w"])
    np.testing.assert_array_equal(x.buffers["n"], y.buffers["n"])
    assert a.metrics == b.metrics


@given(st.integers(2, 200))
def test_halves_are_the_tree_of_tree_sum(size):
    class Leaves(tuple):
        def __add__(self, other):
            return Leaves((self, other))

    def tree(span):
        return Leaves(map(tree, halves(span))) if span[1] - span[0] > 1 else Leaves((span[0],))

    assert tree((0, size)) == tree_sum([Leaves((i,)) for i in range(size)])


@given(st.integers(1, 100), st.data())
def test_subtrees_make_up_a_span_and_are_few(size, data):
    lo = data.draw(st.integers(0, size - 1))
    hi = data.draw(st.integers(lo + 1, size))
    parts = subtrees((lo, hi), (0, size))
    assert [p for part in parts for p in range(*part)] == list(range(lo, hi))
    assert len(parts) <= 2 * math.ceil(math.log2(size + 1))


@given(st.integers(1, 100), st.integers(1, 40))
def test_groups_are_subtrees_of_at_most_their_size(size, most):
    parts = subtrees_up_to(most, (0, size))
    assert [p for part in parts for p in range(*part)] == list(range(size))
    assert all(hi - lo <= most for lo, hi in parts)
    assert all(subtrees(part, (0, size)) == [part] for part in parts)


@given(st.integers(1, 24), st.data())
def test_any_division_of_labour_gives_the_same_bits(size, data):
    rows = answers(size)
    expected = only(share(rows).merged((0, size), size))
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=6))})
    parts = {}
    for span in pairwise(cuts):
        at_once = data.draw(st.integers(1, 8))
        worker = share(rows)
        parts |= {s: worker.merged(s, at_once) for s in subtrees(span, (0, size))}
    assert_same_bits(only(combine((0, size), parts)), expected)


@given(st.lists(st.sampled_from([2.0, 7.0]), min_size=1, max_size=12), st.data())
def test_clients_of_unlike_steps_are_summed_apart_whoever_runs_them(steps, data):
    reading = replace(READING, step_key="control-step")
    results = [
        read(i, content(after(i), num_examples=i + 1, control_step=step), reading)
        for i, step in enumerate(steps)
    ]

    def worker():
        return share(results, reading=reading)

    whole, at_once = (0, len(steps)), data.draw(st.integers(1, 8))
    cut = data.draw(st.integers(0, len(steps)))
    spans = [s for part in ((0, cut), (cut, len(steps))) for s in subtrees(part, whole)]
    sums = combine(whole, {span: worker().merged(span, at_once) for span in spans})
    expected = worker().merged(whole, len(steps))
    assert {kind.step for kind in sums.sums} == set(steps)
    for kind, merged in sums.sums.items():
        assert_same_bits(merged, expected.sums[kind])
        assert [node for node, _ in merged.metrics] == [
            i + 2 for i, step in enumerate(steps) if step == kind.step
        ]


@given(st.integers(1, 24))
def test_the_sum_is_that_of_the_single_clients_statistics(size):
    single = [
        PseudoGradientStats.of(BEFORE, after(i), weight=i + 1.0, trainable=frozenset("w"))
        for i in range(size)
    ]
    got = only(share(answers(size)).merged((0, size), 3))
    metrics = tuple((i + 2, {"num-examples": i + 1}) for i in range(size))
    assert_same_bits(got, ClientSums(tree_sum(single), metrics))


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_clients_without_a_usable_reply_are_left_out(failing, nan, bad):
    merged = share(answers(10, failing, nan, bad)).merged((0, 10), 4)
    got = only(merged)
    useful = [i for i in range(10) if i not in failing | nan | bad]
    assert [node - 2 for node, _ in got.metrics] == useful
    assert got.stats.count == len(useful)
    assert got.stats.weight == sum(i + 1 for i in useful)
    expected = np.zeros(5) + sum((i + 1) * (BEFORE["w"] - after(i)["w"]) for i in useful)
    np.testing.assert_allclose(got.stats.update.get("w", 0.0), expected, rtol=1e-5, atol=1e-5)
    assert [node - 2 for node, _ in merged.failures] == sorted(failing | nan | bad)


@np.errstate(invalid="ignore")
def test_a_model_that_is_not_finite_any_more_makes_every_client_fail_and_nothing_else():
    before = BEFORE | {"w": np.full(5, np.inf, np.float32)}
    # The clients were read when it was finite.
    merged = share(answers(4, failing=[1, 2], nan=[0, 3]), before).merged((0, 4), 4)
    assert merged.sums == {}
    assert [node for node, _ in merged.failures] == [2, 3, 4, 5]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_subtree_is_its_own_division(size):
    assert subtrees((0, size), (0, size)) == [(0, size)]
    assert subtrees((size, size), (0, size)) == []
