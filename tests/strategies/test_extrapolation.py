import numpy as np
import pytest

from fedexp.config import Config
from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Adam,
    Capped,
    Constant,
    Extrapolation,
    FedExP,
    GradientDiversity,
    HypergradientStep,
    Identity,
    Momentum,
    Relaxed,
    RunningExtrapolation,
    RunningRatio,
    ServerOptimizer,
    StochasticPolyak,
    proximal_step,
)
from fedexp.strategy_factory import strategy_of


def round_of(*updates, weights=None, w=None):
    w = np.zeros(np.size(updates[0])) if w is None else w
    weights = weights or [1.0] * len(updates)
    return total(
        PseudoGradientStats.of(
            {"w": w}, {"w": w - np.asarray(u, float)}, weight=p, trainable=frozenset({"w"})
        )
        for u, p in zip(updates, weights, strict=True)
    )


def eta(rule, stats, state=None):
    return rule(stats, stats.mean_update, state or {})[0]


@pytest.mark.parametrize("m", [2, 4, 20])
def test_orthogonal_clients_get_half_their_number_and_as_diversity_all_of_it(m):
    assert eta(Extrapolation(epsilon=0.0), round_of(*np.eye(m))) == pytest.approx(m / 2)
    assert eta(GradientDiversity(), round_of(*np.eye(m))) == pytest.approx(m)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0])
def test_the_factor_is_that_of_the_formula_at_every_step_and_with_means_of_rounds_too(factor):
    updates, weights = updates_of(7) + 0.4, np.array([1.0, 2.0, 3.0, 4.0])
    p, n, q, expected = weights / weights.sum(), 0.0, 0.0, []
    for t, round_ in enumerate(updates):
        spread, length = p @ (round_**2).sum(1), ((p @ round_) ** 2).sum()
        n, q = (spread, length) if t == 0 else (0.3 * n + 0.7 * spread, 0.3 * q + 0.7 * length)
        expected.append((max(1, factor * spread / (length + 0.01)), max(1, factor * n / q)))
    rules, states = (Extrapolation(0.01, factor=factor), RunningRatio(0.3, factor)), [{}, {}]
    for round_, wanted in zip(updates, expected, strict=True):
        stats = round_of(*round_, weights=weights.tolist())
        for i, rule in enumerate(rules):
            got, states[i] = rule(stats, stats.mean_update, states[i])
            assert got == pytest.approx(wanted[i])


def test_the_factor_of_a_strategy_is_that_of_its_rule_and_one_is_the_diversity():
    assert FedExP(factor=0.75).optimizer.step_size == Extrapolation(1e-3, factor=0.75)
    assert FedExP(smoothing=0.5, factor=0.75).optimizer.step_size == RunningRatio(0.5, 0.75)
    stats = round_of(*np.eye(4))
    assert eta(Extrapolation(0.0, factor=1.0), stats) == eta(GradientDiversity(), stats) == 4
    made = strategy_of(Config(strategy="fedexp", extrapolation_factor=0.75), "fedexp", 4)
    assert made.optimizer == strategy_of(Config(), "fedexp(factor=0.75)", 4).optimizer
    assert made.optimizer == FedExP(factor=0.75).optimizer
    for rule in (Extrapolation, RunningRatio):
        for wrong in (0.0, 1.01, float("nan")):
            with pytest.raises(ValueError, match=r"must be in \(0, 1\]\. Use 0.5"):
                rule(factor=wrong)


def test_the_two_readings_of_epsilon():
    # Two orthonormal clients, eps = 0.1: paper 0.5/(0.5 + 0.1), code 0.5/(0.5 + 2 * 0.1); both < 1.
    stats = round_of(*np.eye(2) * 3)
    paper, code = Extrapolation(0.1), Extrapolation(0.1, epsilon_per_client=True)
    assert eta(paper, stats) == pytest.approx(max(1, 0.5 * 9 / (4.5 + 0.1)))
    six = round_of(*np.eye(6) * 3)
    assert eta(paper, six) == pytest.approx(0.5 * 9 / (1.5 + 0.1))
    assert eta(code, six) == pytest.approx(0.5 * 9 / (1.5 + 0.6))


def test_diversity_is_never_below_one_and_relaxed_by_half_is_fedexp_unbounded():
    rng = np.random.default_rng(1)
    stats = round_of(*rng.normal(size=(5, 3)), weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert eta(GradientDiversity(), stats) >= 1
    half = eta(Relaxed(GradientDiversity(), 0.5), stats)
    assert max(1.0, half) == pytest.approx(eta(Extrapolation(epsilon=0.0), stats))


def updates_of(seed, rounds=5, clients=4, size=6):
    return np.random.default_rng(seed).normal(size=(rounds, clients, size))


def trajectory(optimizer, updates):
    w, state, seen, steps = {"w": np.zeros(updates.shape[2])}, {}, [], []
    for round_ in updates:
        w, state, step = optimizer.step(w, round_of(*round_), state)
        seen.append(w["w"])
        steps.append(step)
    return np.array(seen), np.array(steps)


@pytest.mark.parametrize("reading", ["intent", "released code"])
def test_fedexp_with_momentum_in_both_readings(reading):
    # m = Dbar + 0.9 m; r = mean |D|^2 + 0.9 * 0.5 * r; eta = 0.5 r / (|m|^2 + eps), no maximum.
    # The released code applies no momentum to the direction.
    updates, eps, m, r, w, expected = updates_of(2), 0.01, 0.0, 0.0, 0.0, []
    for round_ in updates:
        m = round_.mean(0) + (0.9 * m if reading == "intent" else 0)
        r = (round_**2).sum(1).mean() + 0.9 * 0.5 * r
        w = w - 0.5 * r / (m @ m + eps) * m
        expected.append(w)
    direction = Momentum(0.9) if reading == "intent" else Identity()
    ours, steps = trajectory(ServerOptimizer(direction, RunningExtrapolation(eps)), updates)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert np.isfinite(steps).all()


def test_fedexp_with_momentum_may_step_shorter_than_one():
    same = np.ones((3, 2, 4))
    _, steps = trajectory(ServerOptimizer(Momentum(0.9), RunningExtrapolation(0.0)), same)
    assert steps[0] == pytest.approx(0.5)
    assert (steps[1:] < 0.5).all()


A = np.array([0.5, 1.0, 2.0, 8.0])
GAMMA = 0.7


def proximal_round(x):
    """Clients f_i = a_i x^2 / 2, prox = x / (1 + gamma a_i), and their losses there."""
    prox = x / (1 + GAMMA * A)
    losses = A * prox**2 / 2
    stats = round_of(*[[x - p] for p in prox], w=np.array([x]))
    return PseudoGradientStats(**{**vars(stats), "loss": float(losses.sum())})


def test_the_constant_proximal_step_solves_one_dimensional_quadratics_in_one_step():
    smooth = np.mean(A / (1 + GAMMA * A))
    step = proximal_step(
        GAMMA, max_smoothness=8.0, envelope_smoothness=smooth, num_clients=4, sampled=4
    )
    new, _, _ = ServerOptimizer(step_size=Constant(step)).step(
        {"w": np.array([3.0])}, proximal_round(3.0), {}
    )
    np.testing.assert_allclose(new["w"], 0.0, atol=1e-12)


def test_the_proximal_step_for_one_client_a_round_is_set_by_the_least_smooth_one():
    step = proximal_step(
        GAMMA, max_smoothness=8.0, envelope_smoothness=1.0, num_clients=4, sampled=1
    )
    assert step == pytest.approx(1 / (GAMMA * 8.0 / (1 + GAMMA * 8.0)))


def test_diversity_on_quadratics_is_its_closed_form():
    s = A / (1 + GAMMA * A)
    assert eta(GradientDiversity(), proximal_round(3.0)) == pytest.approx(
        (s**2).mean() / s.mean() ** 2
    )


def test_polyak_on_quadratics_is_its_closed_form():
    # M_i(x) = a_i x^2 / (2 (1 + gamma a_i)), so eta = mean(s) / (2 gamma mean(s)^2).
    s = A / (1 + GAMMA * A)
    assert eta(StochasticPolyak(GAMMA), proximal_round(3.0)) == pytest.approx(
        1 / (2 * GAMMA * s.mean())
    )


def test_polyak_without_losses_says_what_is_missing():
    with pytest.raises(ValueError, match="final-loss"):
        eta(StochasticPolyak(1.0), round_of(*np.eye(2)))


def test_the_hypergradient_step_is_the_authors_recursion():
    # a_t = clip(a_{t-1} + <D_{t-1}, D_t>, -0.8, 4), a_0 = 0, w = w - (1 + a_t) D_t
    updates, a, previous, w, expected = updates_of(3) / 3, 0.0, None, 0.0, []
    for round_ in updates:
        d = round_.mean(0)
        a = a if previous is None else float(np.clip(a + previous @ d, -0.8, 4))
        w, previous = w - (1 + a) * d, d
        expected.append(w)
    ours, _ = trajectory(ServerOptimizer(step_size=HypergradientStep()), updates)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_normalised_the_hypergradient_step_does_not_depend_on_the_unit_of_the_parameters():
    updates = updates_of(4)
    rule = ServerOptimizer(step_size=HypergradientStep(rate=0.3, normalised=True))
    plain = ServerOptimizer(step_size=HypergradientStep(rate=0.3))
    np.testing.assert_allclose(trajectory(rule, updates)[1], trajectory(rule, 100 * updates)[1])
    assert not np.allclose(trajectory(plain, updates)[1], trajectory(plain, 100 * updates)[1])


def test_the_hypergradient_is_minus_the_derivative_of_the_loss_by_the_last_step():
    # f(w) = |w|^2 / 2, so that the pseudo-gradient of a client with a unit step is w itself.
    w0, slope = np.array([1.0, -2.0]), HypergradientStep(high=100.0)
    first = round_of(w0)
    eta1, state = slope(first, first.mean_update, {})
    after = round_of(w0 - eta1 * w0 * 0.5)  # the server went half the way, along d = w0 / 2
    state["previous-direction"] = {"w": w0 * 0.5}
    eta2, _ = slope(after, after.mean_update, state)

    def loss(step):
        return 0.5 * np.sum((w0 - step * 0.5 * w0) ** 2)

    h = 1e-6
    derivative = (loss(eta1 + h) - loss(eta1 - h)) / (2 * h)
    assert eta2 - eta1 == pytest.approx(-derivative, rel=1e-6)


@pytest.mark.parametrize("limit", [lambda s: Capped(s, 3.0), lambda s: Relaxed(s, 0.5)])
@pytest.mark.parametrize("step", [Extrapolation(), GradientDiversity(), StochasticPolyak(1.0)])
@pytest.mark.parametrize("direction", [Momentum(0.9), Adam()])
def test_a_step_without_meaning_along_a_direction_is_refused(step, direction, limit):
    with pytest.raises(ValueError, match="cannot step along"):
        ServerOptimizer(direction, limit(step))


@pytest.mark.parametrize("direction", [Momentum(0.8), Momentum(0.9, nesterov=True), Adam()])
def test_the_running_step_goes_with_its_own_momentum_only(direction):
    with pytest.raises(ValueError, match=r"RunningExtrapolation\(beta=0.9\)"):
        ServerOptimizer(direction, RunningExtrapolation(beta=0.9))


def test_limits_are_applied_to_the_inner_step():
    stats = round_of(*np.eye(8))
    assert eta(Capped(Extrapolation(0.0), 3.0), stats) == 3.0
    assert eta(Relaxed(Extrapolation(0.0), 0.25), stats) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Extrapolation(-1.0), r"FedExP\(epsilon=-1.0\)"),
        (lambda: Extrapolation(1.0, decay=0.0), r"FedExP\(epsilon_decay=0.0\)"),
        (lambda: RunningExtrapolation(beta=1.0), r"RunningExtrapolation\(beta=1.0\)"),
        (lambda: StochasticPolyak(0.0), r"StochasticPolyak\(gamma=0.0\)"),
        (lambda: HypergradientStep(rate=0.0), r"HypergradientStep\(rate=0.0\)"),
        (lambda: HypergradientStep(low=-1.0), r"HypergradientStep\(low=-1.0, high=4.0\)"),
        (lambda: Capped(Constant(), 0.0), r"Capped\(max_step_size=0.0\)"),
        (lambda: Relaxed(Constant(), 0.0), r"Relaxed\(factor=0.0\)"),
        (lambda: Constant(0.0), r"Constant\(value=0.0\)"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
