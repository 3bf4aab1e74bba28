"""Sums of clients' results, and which grids answer with them."""

import numpy as np
from builders import content, grid_of

from fedexp.merged import ClientSums, Merged, merging
from fedexp.simulation import SerialGrid
from fedexp.stats import PseudoGradientStats
from fedexp.wire import Kind

BEFORE = {"w": np.zeros((2, 3), np.float32), "n": np.asarray(3)}
KIND, OTHER = Kind(frozenset("w")), Kind(frozenset("w"), step=0.5)


def one(seed: int, kind: Kind = KIND) -> Merged:
    after = {"w": np.random.default_rng(seed).normal(size=(2, 3)), "n": np.asarray(seed)}
    stats = PseudoGradientStats.of(BEFORE, after, weight=seed + 0.5, trainable=frozenset("w"))
    return Merged({kind: ClientSums(stats, ((seed, {"num-examples": seed}),), (1.0 * seed,))})


def test_sums_of_a_kind_add_and_keep_the_order_of_the_clients():
    both = one(3) + Merged(failures=((7, "no battery"),)) + one(2)
    (sums,) = both.sums.values()
    assert sums.stats.count == 2
    assert sums.stats.weight == 6.0
    assert [node for node, _ in sums.metrics] == [3, 2]
    assert sums.norms == (3.0, 2.0)
    assert both.failures == ((7, "no battery"),)


def test_clients_of_unlike_kinds_are_not_added_up():
    both = one(3) + one(2, OTHER)
    assert {kind: sums.stats.count for kind, sums in both.sums.items()} == {KIND: 1, OTHER: 1}


def test_nothing_is_the_zero():
    a = one(4)
    for same in (Merged() + a, a + Merged()):
        assert same.sums[KIND].metrics == a.sums[KIND].metrics
        np.testing.assert_array_equal(
            same.sums[KIND].stats.update["w"], a.sums[KIND].stats.update["w"]
        )


def test_a_grid_whose_messages_somebody_looks_at_does_not_merge():
    class Looking(SerialGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return super().send_and_receive(messages, timeout=timeout)

    grid = grid_of(1, lambda message, context: content({"w": np.ones(1)}))
    assert merging(grid) is grid
    assert merging(Looking(grid.client_app, 1)) is None
    grid.send_and_receive = None
    assert merging(grid) is None
