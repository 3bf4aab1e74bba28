"""Closed forms of the server step; every number here is derived by hand."""

import dataclasses

import numpy as np
import pytest
from builders import stats_of
from hypothesis import given
from hypothesis import strategies as st

from fedexp.stats import PseudoGradientStats
from fedexp.strategies import (
    Anderson,
    Capped,
    Constant,
    DistanceOverGradients,
    Extrapolation,
    FedAvg,
    FedProx,
    Identity,
    Relaxed,
    ServerOptimizer,
)

seeds, sizes = st.integers(0, 999), st.integers(1, 8)


def eta(stats: PseudoGradientStats, rule: Extrapolation | Capped) -> float:
    return rule(stats, stats.mean_update, {})[0]


def unclamped(stats: PseudoGradientStats) -> float:
    """η before ``max(1, ·)``, with ε = 0."""
    return stats.mean_sq_norm / (2 * sum((x**2).sum() for x in stats.mean_update.values()))


def draw(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, 7))


@pytest.mark.parametrize("m", [2, 4, 5, 20])
def test_orthogonal_clients_get_half_their_number(m):
    assert eta(stats_of(*np.eye(m)), Extrapolation(0)) == pytest.approx(m / 2)


@given(seeds, sizes)
def test_clients_that_agree_get_one(seed, size):
    stats = stats_of(*[draw(seed, 1)[0]] * size)
    assert unclamped(stats) == pytest.approx(0.5)
    assert eta(stats, Extrapolation(0)) == 1.0


def test_epsilon_is_added_once_in_the_paper_and_per_client_in_the_authors_code():
    # 3·e₁ and 3·e₂: mean squared norm 9, ‖Δ̄‖² = 4.5.
    stats = stats_of([3, 0], [0, 3])
    assert eta(stats, Extrapolation(0)) == 1.0
    four = stats_of(*(3 * np.eye(4)))  # mean squared norm 9, ‖Δ̄‖² = 9/4
    assert eta(four, Extrapolation(0.5)) == pytest.approx(9 / (2 * (9 / 4 + 0.5)))
    per_client = Extrapolation(0.5, epsilon_per_client=True)
    assert eta(four, per_client) == pytest.approx(9 / (2 * (9 / 4 + 4 * 0.5)))


def test_the_two_forms_of_epsilon_on_unit_vectors_are_clamped_at_one():
    # ½·1/(½ + 0.1) = 0.8333 and ½·1/(½ + 2·0.1) = 0.7143, both below one.
    for per_client in (False, True):
        rule = Extrapolation(0.1, epsilon_per_client=per_client)
        assert eta(stats_of([1, 0], [0, 1]), rule) == 1.0


def test_weights_enter_the_numerator_and_the_mean():
    # e₁ and e₂ with weights 0.9 and 0.1: ½·1/(0.81 + 0.01).
    assert unclamped(stats_of([1, 0], [0, 1], weights=[0.9, 0.1])) == pytest.approx(0.609756, 1e-6)
    # Four unit vectors, one of them with weight 7: mean 0.7, 0.1, 0.1, 0.1, so ½/0.52.
    stats = stats_of(*np.eye(4), weights=[7, 1, 1, 1])
    assert eta(stats, Extrapolation(0)) == 1.0
    # Weight 4: 4/7 and three of 1/7, ‖Δ̄‖² = 19/49.
    stats = stats_of(*np.eye(4), weights=[4, 1, 1, 1])
    assert eta(stats, Extrapolation(0)) == pytest.approx(49 / 38)


@pytest.mark.parametrize("m", [2, 3, 10])
def test_orthogonal_hyperplanes_halve_the_distance_every_round(m):
    rule, w, state = ServerOptimizer(step_size=Extrapolation(0)), np.ones(m), {}
    for _ in range(5):
        projections = w - np.diag(w)  # client i sets coordinate i to zero
        stats = stats_of(*(w - projections))
        new, state, _ = rule.step({"w": w}, stats, state)
        assert np.linalg.norm(new["w"]) == pytest.approx(np.linalg.norm(w) / 2)
        w = new["w"]


@pytest.mark.parametrize("m", [2, 3, 10])
def test_fedavg_contracts_orthogonal_hyperplanes_by_one_minus_one_over_m(m):
    w = np.ones(m)
    new, _, _ = ServerOptimizer().step({"w": w}, stats_of(*np.diag(w)), {})
    np.testing.assert_allclose(new["w"], (1 - 1 / m) * w)


@given(seeds, sizes, st.floats(0, 10))
def test_the_step_is_at_least_one_and_epsilon_only_shrinks_it(seed, size, epsilon):
    stats = stats_of(*draw(seed, size))
    assert 1 <= eta(stats, Extrapolation(epsilon)) <= eta(stats, Extrapolation(0))


@given(seeds, sizes, st.floats(1e-3, 1e3))
def test_the_step_does_not_depend_on_the_unit_of_the_parameters(seed, size, unit):
    x = draw(seed, size)
    expected = eta(stats_of(*x), Extrapolation(0))
    assert eta(stats_of(*(unit * x)), Extrapolation(0)) == pytest.approx(expected)


@given(seeds, sizes)
def test_the_step_does_not_depend_on_the_coordinates(seed, size):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))
    x = draw(seed, size)
    expected = eta(stats_of(*x), Extrapolation(0))
    assert eta(stats_of(*(x @ rotation)), Extrapolation(0)) == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [0, 1e-3])
def test_updates_that_cancel_or_vanish_give_a_finite_step(epsilon):
    assert eta(stats_of([0.0, 0.0]), Extrapolation(epsilon)) == 1.0
    assert np.isfinite(eta(stats_of([1.0, 2.0], [-1.0, -2.0]), Extrapolation(epsilon)))


def test_updates_that_cancel_with_epsilon_step_by_their_ratio():
    # mean squared norm 4, Δ̄ = 0: η = 4/(2·0.25).
    assert eta(stats_of([2.0], [-2.0]), Extrapolation(0.25)) == pytest.approx(8)


def test_epsilon_decays_with_the_square_of_the_rate_from_round_one():
    rule, stats, state = Extrapolation(1.0, decay=0.5), stats_of(*(3 * np.eye(4))), {}
    for t in (1, 2, 3):
        got, state = rule(stats, stats.mean_update, state)
        assert got == pytest.approx(9 / (2 * (9 / 4 + 0.5 ** (2 * t))))


def test_a_rule_does_not_change_the_state_it_is_given():
    stats, state = stats_of([1.0]), {}
    Extrapolation()(stats, stats.mean_update, state)
    assert state == {}


def test_the_step_size_is_a_python_float():
    stats = stats_of(*np.float32(np.eye(3)))
    for rule in (Extrapolation(), Constant(), Capped(Extrapolation(0), 1.2)):
        assert type(eta(stats, rule)) is float


@pytest.mark.parametrize(("cap", "expected"), [(1.2, 1.2), (9.0, 2.0), (0.5, 0.5)])
def test_a_cap_cuts_the_step(cap, expected):
    assert eta(stats_of(*np.eye(4)), Capped(Extrapolation(0), cap)) == pytest.approx(expected)


def test_a_step_moves_trainable_arrays_and_averages_the_others():
    before = {"w": np.float32([1, 2]), "bn.running_var": np.float32([4]), "n": np.asarray(10)}
    afters = [
        {"w": np.float32([0, 2]), "bn.running_var": np.float32([0.5]), "n": np.asarray(13)},
        {"w": np.float32([1, 0]), "bn.running_var": np.float32([0.1]), "n": np.asarray(14)},
    ]
    stats = PseudoGradientStats.aggregate(before, afters, weights=[1, 1], trainable=frozenset("w"))
    new, _, eta = ServerOptimizer(step_size=Constant(3.0)).step(before, stats, {})
    assert list(new) == list(before)
    assert eta == 3.0
    np.testing.assert_allclose(new["w"], [1 - 3 * 0.5, 2 - 3 * 1.0])
    np.testing.assert_allclose(new["bn.running_var"], [0.3])
    assert new["n"] == 14  # 13.5 to the even neighbour
    assert [new[k].dtype for k in new] == [before[k].dtype for k in before]
    np.testing.assert_array_equal(before["w"], [1, 2])


def test_any_direction_fits_any_step_size():
    class Sign:
        def __call__(self, gradient, state):
            return {name: np.sign(x) for name, x in gradient.items()}, state | {"seen": {}}

    optimizer = ServerOptimizer(Sign(), Extrapolation(0))
    new, state, eta = optimizer.step({"w": np.zeros(2)}, stats_of([4.0, -4.0]), {})
    assert eta == pytest.approx(32 / (2 * 2))  # mean‖Δ‖² = 32, ‖d‖² = 2
    np.testing.assert_allclose(new["w"], [-8, 8])
    assert "seen" in state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Extrapolation(-1), r"FedExP\(epsilon=-1\): .*>= 0\. Use"),
        (lambda: Extrapolation(float("nan")), r"epsilon=nan"),
        (lambda: Extrapolation(decay=0), r"FedExP\(epsilon_decay=0\): .*\(0, 1\]\. Use"),
        (lambda: Extrapolation(decay=1.5), "epsilon_decay=1.5"),
        (lambda: Constant(0), r"Constant\(value=0\): must be > 0 and finite\. Use"),
        (lambda: Constant(float("nan")), "value=nan"),
        (lambda: Constant(float("inf")), "value=inf"),
        (lambda: Relaxed(Constant(), float("inf")), r"Relaxed\(factor=inf\): .*Use"),
        (lambda: DistanceOverGradients(float("inf")), "radius=inf"),
        (lambda: Anderson(1.5), r"Anderson\(window=1.5\): must be a whole number"),
        (lambda: FedProx(proximal_mu=float("inf")), "proximal_mu=inf"),
        (lambda: FedAvg(private_layers=["head.*"]), "must be text"),
        (lambda: Capped(Constant(), 0), r"Capped\(max_step_size=0\): must be > 0\."),
    ],
)
def test_a_value_out_of_range_is_named_with_its_rule_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rule", [Identity(), Constant(), Extrapolation(), ServerOptimizer()])
def test_rules_are_frozen_values(rule):
    assert rule == dataclasses.replace(rule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.step_size = None
