"""The recursions for noise: an enumeration, simulations, pseudo-inverse and ridge."""

import math
from itertools import combinations

import numpy as np
import oracle
import pytest

from fedexp.augmentation import (
    Moments,
    PowerLaw,
    batch_noise_step,
    gaussian_noise,
    min_norm,
    noise_step,
    ridge,
    unseen_component,
    unseen_factor,
)


def problem(n=6, num=3, p=1, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n, num)), rng.normal(size=(p, n))
    return x, w @ x, rng.normal(size=(p, n))


def run(start, x, y, eta, sigma, num_steps):
    found = Moments.certain(start)
    for t in range(num_steps):
        found = noise_step(found, x, y, eta(t), sigma(t))
    return found


@pytest.mark.parametrize(("n", "num", "p"), [(1, 1, 1), (2, 1, 3), (1, 3, 1), (2, 2, 2), (3, 2, 1)])
def test_moments_are_those_of_an_enumeration_of_the_noise(n, num, p):
    x, y, start = problem(n, num, p, seed=n + num)
    y = y + 0.5  # not only data that fit
    eta, sigma = PowerLaw(0.2, 0.6), PowerLaw(0.8, 0.2)
    found = run(start, x, y, eta, sigma, 3)
    steps = [(oracle.noisy_inputs(x, sigma(t)), eta(t)) for t in range(3)]
    mean, second = oracle.moments(steps, start, y)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.second, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_adds_its_own_variance_and_leaves_the_mean(batch_size):
    x, y, start = problem(2, 3, p=2, seed=5)
    y, found = y + 0.5, Moments.certain(start)
    for eta in (0.2, 0.1):
        found = batch_noise_step(found, x, y, eta, 0.6, batch_size)
    whole = run(start, x, y, lambda t: (0.2, 0.1)[t], lambda t: 0.6, 2)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    assert (found.second.trace(axis1=1, axis2=2) > whole.second.trace(axis1=1, axis2=2)).all()
    # By enumeration: a batch keeps its columns; the others are 0, and the rate is that of B of N.
    sets = [list(c) for c in combinations(range(3), batch_size)]
    steps = []
    for eta in (0.2, 0.1):
        inputs = []
        for chosen in sets:
            for noisy, weight in oracle.noisy_inputs(x[:, chosen], 0.6):
                padded = np.zeros((2, 3))
                padded[:, chosen] = noisy
                inputs.append((padded, weight / len(sets)))
        steps.append((inputs, eta * 3 / batch_size))
    mean, second = oracle.moments(steps, start, y)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.second, second, rtol=1e-10, atol=1e-12)


def test_a_batch_of_all_examples_is_the_whole_step():
    x, y, start = problem()
    whole = noise_step(Moments.certain(start), x, y, 0.2, 0.6)
    found = batch_noise_step(Moments.certain(start), x, y, 0.2, 0.6, batch_size=3)
    np.testing.assert_allclose(found.second, whole.second, rtol=1e-12)


def test_moments_are_those_of_a_simulation_with_the_augmentation_itself():
    torch = pytest.importorskip("torch")
    x, y, start = problem()
    eta, sigma, runs = PowerLaw(0.25, 0.5), PowerLaw(0.7, 0.2), 20_000
    rows = torch.from_numpy(x.T).expand(runs, -1, -1)  # a client for each run
    w = torch.from_numpy(start).expand(runs, -1, -1)
    generator = torch.Generator().manual_seed(0)
    for t in range(12):
        noisy = gaussian_noise(rows.reshape(-1, 6), sigma(t), generator).reshape(runs, 3, 6)
        w = w + 2 * eta(t) / 3 * (torch.from_numpy(y) - w @ noisy.mT) @ noisy
    found, w = run(start, x, y, eta, sigma, 12), w.numpy()[:, 0]
    error = w.std(axis=0) / math.sqrt(runs)
    assert (np.abs(w.mean(axis=0) - found.mean[0]) < 5 * error).all()
    products = w[:, :, None] * w[:, None, :]
    error = products.std(axis=0) / math.sqrt(runs)
    assert (np.abs(products.mean(axis=0) - found.second[0]) < 5 * error).all()


PUBLISHED = {  # x, y: rms distance after 1,000 and 10,000 steps
    (2 / 3, 1 / 3): (0.512229, 0.342421),
    (0.6, 0.3): (0.516890, 0.367012),
    (0.7, 0.25): (0.590448, 0.468961),
    (0.55, 0.4): (0.404920, 0.211243),
    (0.5, 0.45): (0.339207, 0.145490),
    (0.6, 0.6): (0.465481, 0.292303),
    (0.8, 0.5): (0.715918, 0.568007),
    (0.2, 0.5): (0.247594, 0.098599),
}


@pytest.mark.parametrize(
    ("x", "y", "num_steps"),
    [(x, y, 1000) for x, y in PUBLISHED] + [(2 / 3, 1 / 3, 10_000), (0.2, 0.5, 10_000)],
)
def test_distances_are_those_that_other_code_computed(x, y, num_steps):
    inputs, targets, start = problem()
    found = run(start, inputs, targets, PowerLaw(0.25, x), PowerLaw(1.0, y / 2), num_steps)
    distance = math.sqrt(found.sq_distance(min_norm(inputs, targets)))
    assert distance == pytest.approx(PUBLISHED[x, y][num_steps > 1000], abs=1e-6)


def test_the_unseen_component_of_the_mean_is_the_product():
    x, y, start = problem(p=2)
    eta, sigma = PowerLaw(0.25, 0.6), PowerLaw(1.0, 0.3)
    found = run(start, x, y, eta, sigma, 500)
    expected = unseen_component(start, x) * unseen_factor(eta, sigma, num_steps=500)
    np.testing.assert_allclose(unseen_component(found.mean, x), expected, rtol=1e-10, atol=1e-14)


def test_without_noise_the_unseen_component_stays_and_the_rest_is_the_pseudo_inverse():
    x, y, start = problem(p=2)
    found = run(start, x, y, PowerLaw(0.25), PowerLaw(0.0), 4000)
    expected = min_norm(x, y) + unseen_component(start, x)
    np.testing.assert_allclose(found.mean, expected, atol=1e-10)
    assert found.sq_distance(expected) < 1e-12


def test_the_mean_under_constant_noise_goes_to_ridge():
    x, y, start = problem(p=2)
    found = run(start, x, y, PowerLaw(0.25), PowerLaw(0.5), 3000)
    expected = ridge(x, y, 0.25 * 3)
    np.testing.assert_allclose(found.mean, expected, atol=1e-10)
    assert found.sq_distance(expected) > 1e-3  # the weights themselves keep fluctuating


def test_ridge_minimises_its_loss_and_ends_at_the_minimum_norm():
    x, y, _ = problem(p=2)
    w = ridge(x, y, 0.7)
    np.testing.assert_allclose((w @ x - y) @ x.T + 0.7 * w, 0, atol=1e-12)
    np.testing.assert_allclose(ridge(x, y, 1e-9), min_norm(x, y), atol=1e-8)
    distance = np.linalg.norm(ridge(*problem()[:2], 0.75) - min_norm(*problem()[:2]))
    assert distance == pytest.approx(0.616428, abs=1e-6)  # computed elsewhere


def test_a_distance_is_exact_for_a_certain_matrix_and_a_mean_for_two():
    a, b, w = (np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]]), np.array([[0.5, 0.5]]))
    both = [Moments.certain(m) for m in (a, b)]
    half = Moments((a + b) / 2, (both[0].second + both[1].second) / 2)
    expected = (np.sum((a - w) ** 2) + np.sum((b - w) ** 2)) / 2
    assert half.sq_distance(w) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda x, y, m: noise_step(m, x, y, -0.1, 0.0), "noise_step(eta=-0.1): must be >= 0."),
        (lambda x, y, m: noise_step(m, x, y, 0.1, -1.0), "noise_step(sigma=-1.0): must be >= 0."),
        (lambda x, y, m: batch_noise_step(m, x, y, 0.1, 1.0, 4), "batch_noise_step(batch_size=4):"),
        (lambda x, y, m: batch_noise_step(m, x, y, 0.1, 1.0, 0), "batch_noise_step(batch_size=0):"),
        (
            lambda x, y, m: batch_noise_step(m, np.ones((6, 40)), np.ones((1, 40)), 0.1, 1.0, 20),
            "batch_noise_step(batch_size=20): 137846528820 sets are too many.",
        ),
        (lambda x, y, m: ridge(x, y, 0.0), "ridge(coefficient=0.0): must be > 0."),
    ],
)
def test_negative_rates_are_refused_in_one_line(call, line):
    x, y, start = problem()
    with pytest.raises(ValueError, match=r"must|too many") as error:
        call(x, y, Moments.certain(start))
    assert str(error.value).startswith(line)
