from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedexp.simulation.division import Costs, chunks, split_work
from fedexp.simulation.merge_tree import subtrees, subtrees_up_to

costs = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)
workers = st.integers(1, 8)


@given(costs, workers, st.integers(1, 9))
def test_runs_are_neighbours_that_cover_the_cohort_once_and_split_no_subtree(costs, workers, size):
    whole = subtrees_up_to(size, (0, len(costs)))
    spans = split_work(costs, workers, whole)
    assert 1 <= len(spans) <= workers
    assert spans[0][0] == 0
    assert spans[-1][1] == len(costs)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(lo < hi for lo, hi in spans)
    assert {lo for lo, _ in spans} <= {lo for lo, _ in whole}


@given(costs, workers)
def test_no_run_costs_more_than_an_even_one_and_the_dearest_client(costs, workers):
    heaviest = max(sum(costs[lo:hi]) for lo, hi in split_work(costs, workers))
    assert heaviest <= sum(costs) / workers + max(costs) + 1e-9


@given(st.integers(1, 50), workers)
def test_even_clients_make_runs_that_differ_by_one_at_most(size, workers):
    sizes = [hi - lo for lo, hi in split_work([1.0] * size, workers)]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(2, 200), st.sampled_from([2, 4]))
def test_a_cohort_to_merge_is_cut_into_subtrees_where_that_costs_little(size, workers):
    noise = np.random.default_rng(size).uniform(0.99, 1.01, size)
    whole = 0, size
    spans = split_work(noise, workers, subtrees_up_to(1, whole))
    even = size / workers
    assert all(hi - lo <= 1.2 * even + 1 for lo, hi in spans)
    if size % workers == 0 and size >= 20 * workers:
        assert [len(subtrees(span, whole)) for span in spans] == [1] * workers


def test_dear_clients_count_for_more_than_whole_subtrees():
    assert split_work([3.0] * 4 + [1.0] * 4, 2, subtrees_up_to(1, (0, 8))) == [(0, 3), (3, 8)]


def test_two_workers_balance_a_dear_head_with_a_long_tail():
    assert split_work([8, 1, 1, 1, 1, 1, 1, 1, 1], 2) == [(0, 1), (1, 9)]


def test_the_noise_of_a_measurement_moves_no_border():
    costs = Costs()
    costs.learn({node: 0.1 * (1 + 0.25 * (-1) ** node) for node in range(20)})
    assert set(costs.of(range(20))) == {1.0}


def test_a_client_eight_times_as_slow_costs_eight_and_a_new_one_the_median():
    costs = Costs()
    costs.learn({0: 0.1, 1: 0.1, 2: 0.8})
    assert costs.of([0, 1, 2, 3]) == [1.0, 1.0, 8.0, 1.0]


def test_the_latest_time_counts():
    costs = Costs()
    costs.learn({0: 8.0, 1: 1.0, 2: 1.0})
    costs.learn({0: 1.0})
    assert costs.of([0, 1, 2]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("span", "size"), [((3, 10), 3), ((0, 1), 5), ((2, 8), 6)])
def test_chunks_cover_a_span_in_order(span, size):
    parts = chunks(span, size)
    assert [p for part in parts for p in range(*part)] == list(range(*span))
    assert max(hi - lo for lo, hi in parts) <= size
