"""Moments of gradient descent on augmented data by enumeration: slow, and of no formula of ours."""

from itertools import product

import numpy as np


def normal_nodes(n, num, sigma):
    """Every ``sigma G`` of 3-point Gauss-Hermite rules, and its weight.

    A step's second moment has degree 4 in each entry of ``G``; the rule is exact to degree 5.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    for chosen in product(range(3), repeat=n * num):
        yield sigma * points[list(chosen)].reshape(n, num), weights[list(chosen)].prod()


def noisy_inputs(x, sigma):
    return [(x + noise, weight) for noise, weight in normal_nodes(*x.shape, sigma)]


def lines(n):
    """Unit vectors of ``R^2`` or ``R^3`` and weights, exact for polynomials up to degree 19."""
    if n == 2:
        angles = np.arange(40) * np.pi / 20
        return [(np.array([np.cos(a), np.sin(a)]), 1 / 40) for a in angles]
    heights, weights = np.polynomial.legendre.leggauss(12)
    angles = np.arange(24) * np.pi / 12
    return [
        (np.array([np.sqrt(1 - z * z) * np.cos(a), np.sqrt(1 - z * z) * np.sin(a), z]), w / 48)
        for z, w in zip(heights, weights, strict=True)
        for a in angles
    ]


def projections(n, rank):
    """Random projections of rank 1 or ``n - 1``, and weights."""
    eye = np.eye(n)
    sign = 1 if rank == 1 else -1
    start = 0 * eye if rank == 1 else eye
    return [(start + sign * np.outer(u, u), weight) for u, weight in lines(n)]


def lifted_step(inputs, y, eta):
    """The operator of a step on ``E vec(z) vec(z)ᵀ`` with ``z = (w, 1)``, for one row of targets.

    A step is affine, ``z ← z M``, so ``E (z ⊗ z)`` becomes ``E (z ⊗ z) E (M ⊗ M)``.
    """
    n, num = inputs[0][0].shape
    total = np.zeros(((n + 1) ** 2, (n + 1) ** 2))
    for x, weight in inputs:
        m = np.eye(n + 1)
        m[:n, :n] -= 2 * eta / num * x @ x.T
        m[n, :n] = 2 * eta / num * y @ x.T
        total += weight * np.kron(m, m)
    return total


def moments(steps, w, y):
    """Mean and second moment after steps ``[(inputs, eta), ...]`` from ``w``, row by row."""
    means, seconds = [], []
    for row, target in zip(w, y, strict=True):
        z = np.append(row, 1.0)
        state = np.kron(z, z)
        for inputs, eta in steps:
            state = state @ lifted_step(inputs, target, eta)
        both = state.reshape(len(z), len(z))
        means.append(both[-1, :-1])
        seconds.append(both[:-1, :-1])
    return np.array(means), np.array(seconds)
