"""The expected errors of noisy least squares against draws, limits and published numbers."""

import math

import numpy as np
import pytest
import torch

from fedexp.learned_steps import LeastSquares, closed_form, expected_errors, marchenko_pastur

GRID = np.logspace(-6, 0, 25)
# (n, σ): the train-by-train step size and its test error, and those by train-by-validation.
KNOWN = {
    (500, 1): (0.3162, 1.5742, 0.00562, 1.3406),
    (500, 2): (0.3162, 2.9005, 0.001, 2.2226),
    (500, 5): (0.3162, 7.0678, 0.00018, 5.0979),
    (1000, 1): (0.3162, 1.7332, 0.01, 1.2858),
    (2000, 1): (0.5623, 1.4031, 0.0178, 1.2083),
    (10000, 1): (1.0, 1.0541, 0.0562, 1.0504),
}


@pytest.mark.parametrize("setting", KNOWN, ids=str)
def test_the_learned_step_sizes_and_their_errors_are_the_known_ones(setting):
    n, noise = setting
    by_train, rmse_train, by_validation, rmse_validation = KNOWN[setting]
    all_rows, half = marchenko_pastur(1000, n), marchenko_pastur(1000, n // 2)
    best = min(GRID, key=lambda eta: expected_errors(all_rows, noise, eta, 40).train_loss)
    assert best == pytest.approx(by_train, rel=0.02)
    assert expected_errors(all_rows, noise, best, 40).test_rmse == pytest.approx(
        rmse_train, rel=0.003
    )
    best = min(GRID, key=lambda eta: expected_errors(half, noise, eta, 40).sq_distance)
    assert best == pytest.approx(by_validation, rel=0.02)
    assert expected_errors(all_rows, noise, best, 40).test_rmse == pytest.approx(
        rmse_validation, rel=0.003
    )


@pytest.mark.parametrize(("n", "eta"), [(60, 0.2), (120, 0.1), (300, 0.5)])
def test_draws_agree_in_the_mean(n, eta):
    d, noise, steps, runs = 120, 1.0, 40, 40
    r = np.random.default_rng(n)
    losses, distances = [], []
    for _ in range(runs):
        x, truth = r.normal(size=(n, d)), r.normal(size=d)
        truth /= np.linalg.norm(truth)
        y, w = x @ truth + noise * r.normal(size=n), np.zeros(d)
        for _ in range(steps):
            w -= eta * x.T @ (x @ w - y) / n
        losses.append(((x @ w - y) ** 2).mean() / 2)
        distances.append(((w - truth) ** 2).sum())
        problem = LeastSquares(torch.tensor(x), torch.tensor(y))
        assert closed_form(problem, eta, steps).value("naive") == pytest.approx(losses[-1])
    expected = expected_errors(marchenko_pastur(d, n), noise, eta, steps)
    for found, exact in ((losses, expected.train_loss), (distances, expected.sq_distance)):
        # Five standard errors, and 3 % for a spectrum of finite size.
        bound = 5 * np.std(found) / math.sqrt(runs) + 0.03 * exact
        assert abs(np.mean(found) - exact) < bound


def test_the_spectrum_has_the_known_moments():
    for n in (50, 100, 400):
        found, ratio = marchenko_pastur(100, n), 100 / n
        assert found.counts.sum() == pytest.approx(min(n, 100), rel=1e-3)
        assert found.counts @ found.values == pytest.approx(100)
        assert found.counts @ found.values**2 == pytest.approx(100 * (1 + ratio))


def test_after_many_steps_it_is_the_minimum_norm_solution():
    d, noise = 1000, 2.0
    for n in (400, 3000):
        found = expected_errors(marchenko_pastur(d, n), noise, 0.3, 100_000).sq_distance
        limit = 1 - n / d + noise**2 * n / (d - n) if n < d else noise**2 * d / (n - d)
        assert found == pytest.approx(limit, rel=1e-3)


def test_no_step_and_too_large_steps():
    spectrum = marchenko_pastur(100, 50)
    still = expected_errors(spectrum, 1.0, 0.0, 5)
    assert (still.train_loss, still.sq_distance) == pytest.approx((1.0, 1.0))
    assert expected_errors(spectrum, 1.0, 1e9, 500).test_rmse == math.inf


def test_bad_arguments_are_named():
    spectrum = marchenko_pastur(10, 10)
    with pytest.raises(ValueError, match="num_steps=0"):
        expected_errors(spectrum, 1.0, 0.1, 0)
    with pytest.raises(ValueError, match=r"noise=-1\.0"):
        expected_errors(spectrum, -1.0, 0.1, 1)
    with pytest.raises(ValueError, match="step_size=nan"):
        expected_errors(spectrum, 1.0, math.nan, 1)
    with pytest.raises(ValueError, match=r"marchenko_pastur\(num_examples=0\)"):
        marchenko_pastur(10, 0)
    with pytest.raises(ValueError, match=r"marchenko_pastur\(dim=nan\)"):
        marchenko_pastur(math.nan, 10)
