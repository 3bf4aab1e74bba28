"""The running ratio and the rule made of it, against slow loops written from the formulae."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Adam,
    Extrapolation,
    FedExP,
    Identity,
    Momentum,
    NesterovExP,
    RunningRatio,
    ServerOptimizer,
)

NAMES = frozenset({"w"})


def stats_of(updates, weights):
    zero = {"w": np.zeros(updates.shape[1])}
    return total(
        PseudoGradientStats.of(zero, {"w": -d}, weight=p, trainable=NAMES)
        for d, p in zip(updates, weights, strict=True)
    )


def rounds_of(seed, num_rounds=6):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1, 5, size=4)
    return [(rng.normal(size=(4, 3)) + 0.3, weights) for _ in range(num_rounds)]


def reference(rounds, *, mu, b, kappa):
    """m <- mu m + D; N, Q running; w <- w - kappa max(1, N / 2Q) (D + mu m)."""
    w, m, n, q, etas = np.zeros(3), np.zeros(3), None, None, []
    for updates, weights in rounds:
        p = weights / weights.sum()
        d = p @ updates
        spread, length = sum(p * (updates**2).sum(1)), (d**2).sum()
        n = spread if n is None else b * n + (1 - b) * spread
        q = length if q is None else b * q + (1 - b) * length
        m = mu * m + d
        etas.append(kappa * max(1, n / (2 * q)))
        w = w - etas[-1] * (d + mu * m)
    return w, etas


def stepped(optimizer, rounds):
    w, state, etas = {"w": np.zeros(3)}, {}, []
    for updates, weights in rounds:
        w, state, eta = optimizer.step(w, stats_of(updates, weights), state)
        etas.append(eta)
    return w["w"], etas


@pytest.mark.parametrize(("mu", "b", "kappa"), [(0.9, 0.5, 0.5), (0.0, 0.9, 1.0), (0.5, 0.0, 2.0)])
def test_the_rule_is_that_of_its_formula(mu, b, kappa):
    rounds = rounds_of(3)
    ours = NesterovExP(server_momentum=mu, smoothing=b, relaxation=kappa).optimizer
    for got, wanted in zip(
        stepped(ours, rounds), reference(rounds, mu=mu, b=b, kappa=kappa), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_fedexp_with_smoothing_is_the_rule_without_momentum():
    rounds = rounds_of(4)
    got = stepped(FedExP(smoothing=0.5).optimizer, rounds)
    for x, wanted in zip(got, reference(rounds, mu=0.0, b=0.5, kappa=1.0), strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-12)


def test_without_smoothing_fedexp_is_the_papers_rule():
    assert FedExP(smoothing=0.0).optimizer.step_size == Extrapolation(1e-3)
    rounds = rounds_of(5)
    paper = ServerOptimizer(step_size=Extrapolation(0.0))
    unsmoothed = ServerOptimizer(step_size=RunningRatio(0.0))
    np.testing.assert_allclose(stepped(unsmoothed, rounds)[1], stepped(paper, rounds)[1])


@given(st.integers(0, 99), st.sampled_from([1e-6, 1e-2, 1e4]))
def test_the_step_does_not_depend_on_the_scale_of_the_parameters(seed, scale):
    rule = ServerOptimizer(Momentum(0.9, nesterov=True), RunningRatio())
    scaled = [(updates * scale, weights) for updates, weights in rounds_of(seed)]
    plain = stepped(rule, rounds_of(seed))[1]
    np.testing.assert_allclose(stepped(rule, scaled)[1], plain, rtol=1e-9)


@pytest.mark.parametrize("count", [2, 5, 20])
def test_orthogonal_clients_get_half_their_number_and_equal_ones_a_step_of_one(count):
    rule, ones = RunningRatio(), np.ones(count)
    orthogonal, equal = stats_of(np.eye(count), ones), stats_of(np.ones((count, 2)), ones)
    assert rule(orthogonal, {}, {})[0] == pytest.approx(count / 2)
    assert rule(equal, {}, {})[0] == 1.0


def test_a_round_whose_mean_update_vanishes_asks_for_no_endless_step():
    rule = RunningRatio()
    _, state = rule(stats_of(np.ones((2, 3)), np.ones(2)), {}, {})
    opposed = np.array([[1.0, 1, 1], [-1, -1, -1]])
    eta, _ = rule(stats_of(opposed, np.ones(2)), {}, state)
    assert eta == pytest.approx(3 / (2 * 1.5))  # N = 3, Q = (3 + 0) / 2
    assert rule(stats_of(np.zeros((2, 3)), np.ones(2)), {}, {})[0] == 1.0


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="cannot step along Adam"):
        ServerOptimizer(Adam(), RunningRatio())
    with pytest.raises(ValueError, match="has no epsilon"):
        FedExP(smoothing=0.5, epsilon=0.1)
    with pytest.raises(ValueError, match="smoothing=1"):
        RunningRatio(1.0)
    ServerOptimizer(Identity(), RunningRatio())
