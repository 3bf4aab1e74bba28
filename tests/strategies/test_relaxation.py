"""Each claim of docs/relaxation.md, in numbers."""

from itertools import combinations

import numpy as np
import pytest

from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Constant,
    Extrapolation,
    Momentum,
    MovingAverage,
    PolynomialAverage,
    RunningRatio,
    ServerOptimizer,
)

NAMES = frozenset({"w"})
SOLUTION = np.array([1.0, -2.0, 0.5, 3.0, 0.0])


def normals(seed, count):
    rows = np.random.default_rng(seed).normal(size=(count, 5))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def round_of(w, updates):
    return total(
        PseudoGradientStats.of({"w": w}, {"w": w - d}, weight=1.0, trainable=NAMES) for d in updates
    )


def local_steps(w, lr, num_steps):
    """Clients with ``f_i = (a_i (w - w*))^2 / 2``, which share the solution."""
    updates = []
    for a in normals(0, 4):
        end = w
        for _ in range(num_steps):
            end = end - lr * a * (a @ (end - SOLUTION))
        updates.append(w - end)
    return np.array(updates)


@pytest.mark.parametrize(("lr", "num_steps"), [(0.1, 1), (0.5, 5), (1.0, 1), (1.9, 3)])
def test_claim_1_up_to_twice_fedexps_step_leads_no_further_from_the_solution(lr, num_steps):
    for w in np.random.default_rng(1).normal(size=(20, 5)) * 3:
        updates = local_steps(w, lr, num_steps)
        ends = np.linalg.norm(w - updates - SOLUTION, axis=1)
        start = np.linalg.norm(w - SOLUTION)
        assert (ends <= start + 1e-12).all()  # what is assumed of the clients
        stats = round_of(w, updates)
        ratio = stats.mean_sq_norm / np.sum(updates.mean(0) ** 2)
        fedexp, _ = Extrapolation(0.0)(stats, stats.mean_update, {})
        assert fedexp == pytest.approx(max(1.0, ratio / 2))
        for eta in np.linspace(0, ratio, 9):
            assert np.linalg.norm(w - eta * updates.mean(0) - SOLUTION) <= start + 1e-12


@pytest.mark.parametrize(("lr", "num_steps"), [(0.1, 1), (0.1, 20), (1.0, 1), (0.9, 3)])
def test_claim_2_clients_that_do_not_overshoot_have_a_mean_update_of_curvature_at_most_one(
    lr, num_steps
):
    at = np.array([local_steps(SOLUTION + e, lr, num_steps).mean(0) for e in np.eye(5)])
    curvature = np.linalg.eigvalsh(at)
    assert curvature.min() > -1e-12
    assert curvature.max() <= 1 + 1e-12
    factor = max(abs(1 - 1.99 * curvature))
    assert factor <= 1 + 1e-12  # a step of 2 is never unstable


def linear(curvature, optimizer, num_rounds, noise=None, start=1.0):
    """The iterates of ``mean update = curvature · w + noise`` in each coordinate."""
    w, state, iterates = np.full(np.shape(curvature), start), {}, []
    for t in range(num_rounds):
        d = curvature * w + (0.0 if noise is None else noise[t])
        stats = PseudoGradientStats(1, 1.0, {"w": d}, sq_norm=float(d @ d))
        new, state, _ = optimizer.step({"w": w}, stats, state)
        w = new["w"]
        iterates.append(w)
    return np.array(iterates)


def test_claim_3_a_coordinate_shrinks_by_one_minus_eta_times_its_curvature_each_round():
    curvature = np.array([0.01, 0.3, 1.0])
    got = linear(curvature, ServerOptimizer(step_size=Constant(1.9)), 6)
    np.testing.assert_allclose(got[-1], (1 - 1.9 * curvature) ** 6)
    fixed = 2 / (curvature.min() + curvature.max())  # the best of all fixed steps
    rates = {eta: max(abs(1 - eta * curvature)) for eta in np.linspace(0.1, 2.5, 241)}
    assert min(rates, key=rates.get) == pytest.approx(fixed, abs=0.01)


@pytest.mark.parametrize("decay", [0.5, 0.7, 0.9])
def test_claim_4_averages_remove_what_changes_its_sign_from_round_to_round(decay):
    swinging = linear(np.array([1.0]), ServerOptimizer(step_size=Constant(2.0)), 400)
    np.testing.assert_allclose(swinging[:, 0], [(-1.0) ** (t + 1) for t in range(400)])
    assert np.abs((swinging[1:] + swinging[:-1]) / 2).max() < 1e-12
    average, memory = MovingAverage(decay), {}
    for w in swinging:
        memory = average.update(memory, {"w": w})
    left = abs(average.mean(memory, NAMES)["w"].item())
    assert left == pytest.approx((1 - decay) / (1 + decay), rel=1e-6)


def test_claim_5_the_noise_of_an_average_does_not_depend_on_the_step_that_of_an_iterate_does():
    """Means of squares over 400 coordinates, each with noise of variance 1 in every round."""
    num_rounds, curvature = 2000, 0.5
    noise = np.random.default_rng(2).normal(size=(num_rounds, 400))
    for eta in (0.5, 1.0, 2.0, 3.6):
        optimizer = ServerOptimizer(step_size=Constant(eta))
        iterates = linear(np.full(400, curvature), optimizer, num_rounds, noise, start=0.0)
        expected = eta / (curvature * (2 - eta * curvature))
        assert np.mean(iterates[-1] ** 2) == pytest.approx(expected, rel=0.3)
        average, memory = PolynomialAverage(0.0), {}
        for w in iterates:
            memory = average.update(memory, {"w": w})
        got = np.mean(average.mean(memory, NAMES)["w"] ** 2)
        assert got == pytest.approx(1 / (curvature**2 * num_rounds), rel=0.3)


@pytest.mark.parametrize("sampled", [1, 2, 3, 5, 6])
def test_claim_6_what_the_running_ratio_estimates_from_samples(sampled):
    n, w = 6, np.zeros(5)
    updates = np.random.default_rng(3).normal(size=(n, 5)) + 0.5
    a, q = np.mean(np.sum(updates**2, axis=1)), np.sum(updates.mean(0) ** 2)
    expected = q + (n - sampled) / (sampled * (n - 1)) * (a - q)
    sets = [updates[list(s)] for s in combinations(range(n), sampled)]
    assert np.mean([np.sum(s.mean(0) ** 2) for s in sets]) == pytest.approx(expected)
    assert np.mean([np.mean(np.sum(s**2, axis=1)) for s in sets]) == pytest.approx(a)
    single = [np.mean(np.sum(s**2, axis=1)) / np.sum(s.mean(0) ** 2) for s in sets]
    assert np.mean(single) >= a / expected - 1e-12
    rule, state, rng = RunningRatio(0.998, factor=1.0), {}, np.random.default_rng(4)
    rounds = [round_of(w, s) for s in sets]
    for i in rng.integers(len(sets), size=4000):
        stats = rounds[i]
        eta, state = rule(stats, stats.mean_update, state)
    assert eta == pytest.approx(max(1.0, a / expected), rel=0.05)


@pytest.mark.parametrize("sampled", [1, 2, 4])
def test_claim_7_half_the_ratio_of_means_is_the_best_step_on_samples_of_clients_at_the_limit(
    sampled,
):
    """Clients that end as far from the solution as they start: mirrored at their hyperplanes."""
    w = np.array([3.0, 1.0, 2.0, -1.0, 4.0])
    sets = [2 * x for x in map(np.array, combinations(local_steps(w, 1.0, 1), sampled))]
    num = np.mean([np.mean(np.sum(s**2, axis=1)) for s in sets])
    den = np.mean([np.sum(s.mean(0) ** 2) for s in sets])
    steps = np.linspace(0.01, 4, 400)
    errors = [np.mean([np.sum((w - e * s.mean(0) - SOLUTION) ** 2) for s in sets]) for e in steps]
    assert steps[int(np.argmin(errors))] == pytest.approx(num / den / 2, abs=0.01)


@pytest.mark.parametrize("num_steps", [1, 3, 2, 20])
def test_claim_8_clients_that_overshoot_make_the_curvature_exceed_one(num_steps):
    """With ``γ h = 1.5``: ``1 - (1 - γ h)^K`` is 1.5 and 1.125 for odd ``K``, below 1 for even."""
    curvature = 1 - (1 - 1.5) ** num_steps
    w = SOLUTION + normals(0, 4)[0]  # along the first client's own direction
    own = local_steps(w, 1.5, num_steps)[0]
    np.testing.assert_allclose(own, curvature * normals(0, 4)[0], atol=1e-12)
    overshoots = num_steps % 2 == 1
    assert (curvature > 1) == overshoots
    assert abs(1 - curvature) < 1  # FedAvg is stable
    assert (abs(1 - 2 * curvature) > 1) == overshoots


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("curvature", [0.2, 1.0])
def test_claim_9_nesterovs_direction_allows_a_shorter_step(mu, curvature):
    limit = (2 + 2 * mu) / (1 + 2 * mu) / curvature
    direction = Momentum(mu, nesterov=True)
    for share, grows in ((0.98, False), (1.02, True)):
        optimizer = ServerOptimizer(direction, Constant(share * limit))
        size = np.abs(linear(np.array([curvature]), optimizer, 900)[:, 0])
        assert (size[-2:].max() > 1) == grows


@pytest.mark.parametrize("mu", [0.5, 0.8, 0.9])
def test_claim_10_how_long_momentum_remembers_and_how_fast_its_swings_shrink(mu):
    border = ((1 - mu) / (1 + mu)) ** 2
    optimizer = ServerOptimizer(Momentum(mu, nesterov=True), Constant(1.0))
    for curvature in (1.01 * border, 2 * border, 0.5):
        w = linear(np.array([curvature]), optimizer, 30)[:, 0]
        # w[t+1] = p w[t] - q w[t-1], whose roots are those of z² - p z + q.
        p, q = np.linalg.lstsq(np.stack([w[1:-1], -w[:-2]], axis=1), w[2:], rcond=None)[0]
        roots = np.roots([1, -p, q])
        assert abs(roots.imag).max() > 0  # it swings
        np.testing.assert_allclose(abs(roots), (mu * (1 - curvature)) ** 0.5, rtol=1e-6)
    w = linear(np.array([0.99 * border]), optimizer, 30)[:, 0]
    p, q = np.linalg.lstsq(np.stack([w[1:-1], -w[:-2]], axis=1), w[2:], rcond=None)[0]
    assert np.isreal(np.roots([1, -p, q])).all()
    slow = linear(np.array([border / 100]), optimizer, 400)[:, 0]
    assert slow[-1] / slow[-2] == pytest.approx(1 - border / 100 / (1 - mu), rel=1e-3)
    assert round(((1 - 0.9) / (1 + 0.9)) ** 2, 3) == 0.003
    assert [round(m**20, 2) for m in (0.9, 0.8)] == [0.12, 0.01]
