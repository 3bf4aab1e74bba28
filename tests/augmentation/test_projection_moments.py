"""The recursions for random projections: an enumeration, simulations and the fixed point."""

import math

import numpy as np
import oracle
import pytest

from fedexp.augmentation import (
    Moments,
    ProjectionMoments,
    min_norm,
    projected,
    projection_fixed_point,
    projection_step,
    random_projection,
    ridge,
    unseen_component,
)


def problem(n=6, num=3, p=1, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n, num)), rng.normal(size=(p, n))
    return x, w @ x, rng.normal(size=(p, n))


@pytest.mark.parametrize(("n", "rank"), [(2, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_moments_of_a_projection_are_those_of_an_integral_over_the_sphere(n, rank, number):
    matrices = np.random.default_rng(n + number).normal(size=(number, n, n))
    expected = 0
    for p, weight in oracle.projections(n, rank):
        whole = p
        for m in matrices:
            whole = whole @ m @ p
        expected = expected + weight * whole
    np.testing.assert_allclose(projected(rank, *matrices), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_one_matrix_gives_the_known_combination_with_its_trace(n):
    m = np.random.default_rng(n).normal(size=(n, n))
    m = m + m.T
    for k in range(n + 1):
        below = n * (n - 1) * (n + 2)
        expected = k * (k * n + n - 2) / below * m
        expected = expected + k * (n - k) / below * np.trace(m) * np.eye(n)
        np.testing.assert_allclose(projected(k, m), expected, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 2, 4, 6])
def test_a_projection_is_idempotent_so_identities_between_may_go(rank):
    m, eye = np.random.default_rng(1).normal(size=(6, 6)), np.eye(6)
    np.testing.assert_allclose(projected(rank, eye, eye, eye), rank / 6 * eye, atol=1e-12)
    np.testing.assert_allclose(projected(rank, eye, m, eye), projected(rank, m), atol=1e-12)
    np.testing.assert_allclose(projected(rank, m, eye, m), projected(rank, m, m), atol=1e-12)
    if rank == 6:
        np.testing.assert_allclose(projected(rank, m, m, m), m @ m @ m, atol=1e-10)


@pytest.mark.parametrize(("n", "num", "p", "rank"), [(2, 1, 2, 1), (3, 2, 1, 1), (3, 2, 2, 2)])
def test_moments_are_those_of_an_enumeration_of_the_projections(n, num, p, rank):
    x, y, start = problem(n, num, p, seed=n)
    y = y + 0.5
    moments, found = ProjectionMoments.of(x, rank), Moments.certain(start)
    rates = (0.3, 0.2, 0.25)
    for eta in rates:
        found = projection_step(found, moments, x, y, eta)
    inputs = [(q @ x, weight) for q, weight in oracle.projections(n, rank)]
    mean, second = oracle.moments([(inputs, eta) for eta in rates], start, y)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.second, second, rtol=1e-10, atol=1e-12)


def test_a_random_rank_mixes_its_two_ranks():
    x, y, start = problem(3, 2)
    moments = ProjectionMoments.dropping(x, 0.4)  # rank 2 with 0.8, rank 1 with 0.2
    found = projection_step(Moments.certain(start), moments, x, y, 0.3)
    inputs = [
        (q @ x, weight * chance)
        for rank, chance in ((2, 0.8), (1, 0.2))
        for q, weight in oracle.projections(3, rank)
    ]
    mean, second = oracle.moments([(inputs, 0.3)], start, y)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.second, second, rtol=1e-10)


def test_moments_are_those_of_a_simulation_with_the_augmentation_itself():
    torch = pytest.importorskip("torch")
    x, y, start = problem()
    runs, eta = 2000, 0.3
    moments, found = ProjectionMoments.dropping(x, 0.25), Moments.certain(start)
    rows = torch.from_numpy(x.T).expand(runs, -1, -1)
    w = torch.from_numpy(start).expand(runs, -1, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    for _ in range(6):
        flat = random_projection(rows, 0.25, generators)
        w = w + 2 * eta / 3 * (torch.from_numpy(y) - w @ flat.mT) @ flat
        found = projection_step(found, moments, x, y, eta)
    w = w.numpy()[:, 0]
    error = w.std(axis=0) / math.sqrt(runs)
    assert (np.abs(w.mean(axis=0) - found.mean[0]) < 5 * error).all()
    products = w[:, :, None] * w[:, None, :]
    error = products.std(axis=0) / math.sqrt(runs)
    assert (np.abs(products.mean(axis=0) - found.second[0]) < 5 * error).all()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_mean_at_constant_rank_goes_to_the_fixed_point_which_is_a_ridge(rank):
    x, y, start = problem(p=2)
    moments, found = ProjectionMoments.of(x, rank), Moments.certain(start)
    expected = projection_fixed_point(x, y, rank)
    still = projection_step(Moments.certain(expected), moments, x, y, 0.2)
    np.testing.assert_allclose(still.mean, expected, atol=1e-12)
    for _ in range(6000):
        found = projection_step(found, moments, x, y, 0.2)
    np.testing.assert_allclose(found.mean, expected, atol=1e-10)
    n, k = 6, rank
    below = n * (n - 1) * (n + 2)
    a, b = k * (k * n + n - 2) / below, k * (n - k) / below
    scaled = k / (n * a) * ridge(x, y, b * np.trace(x @ x.T) / a)
    np.testing.assert_allclose(expected, scaled, atol=1e-12)


def test_full_rank_changes_nothing_and_goes_to_the_pseudo_inverse():
    x, y, start = problem()
    moments, found = ProjectionMoments.dropping(x, 0.0), Moments.certain(start)
    for _ in range(4000):
        found = projection_step(found, moments, x, y, 0.25)
    np.testing.assert_allclose(found.mean, min_norm(x, y) + unseen_component(start, x), atol=1e-10)


def test_the_unseen_component_of_the_mean_falls_by_the_stated_factor():
    x, y, start = problem()
    n, k, eta = 6, 4, 0.3
    found = projection_step(Moments.certain(start), ProjectionMoments.of(x, k), x, y, eta)
    beta = k * (n - k) / (n * (n - 1) * (n + 2))
    factor = 1 - 2 * eta / 3 * beta * np.trace(x @ x.T)
    # The seen part of the mean stays in the span of the examples, because E[P A P] maps it there.
    expected = factor * unseen_component(start, x)
    np.testing.assert_allclose(unseen_component(found.mean, x), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda x, y: projected(7, x @ x.T), "projected(rank=7): must be an integer from 0 to n ="),
        (lambda x, y: projected(1.5, x @ x.T), "projected(rank=1.5): must be an integer"),
        (lambda x, y: ProjectionMoments.of(x, 7), "ProjectionMoments(rank=7): must be an integer"),
        (lambda x, y: ProjectionMoments.dropping(x, 1.5), "ProjectionMoments(dropped=1.5): must"),
        (lambda x, y: projection_fixed_point(x, y, 7), "projection_fixed_point(rank=7): must be"),
        (lambda x, y: projection_fixed_point(x, y, 6), "projection_fixed_point(rank=6): must lie"),
        (lambda x, y: projection_fixed_point(x, y, 0), "projection_fixed_point(rank=0): must lie"),
        (
            lambda x, y: projection_step(
                Moments.certain(np.zeros((1, 6))), ProjectionMoments.of(x, 6), x, y, -1.0
            ),
            "projection_step(eta=-1.0): must be >= 0.",
        ),
    ],
)
def test_bad_ranks_are_refused_in_one_line(call, line):
    with pytest.raises(ValueError, match="must") as error:
        call(*problem()[:2])
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
