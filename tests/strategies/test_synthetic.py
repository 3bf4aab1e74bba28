"""The synthetic regression of the FedExP paper, which one model can fit for all clients."""

import numpy as np
import torch

from fedexp.datasets.synthetic import regression
from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Anderson,
    Constant,
    Extrapolation,
    Momentum,
    NesterovExP,
    RunningRatio,
    ScheduleFree,
    ServerOptimizer,
)

CLIENTS, ROWS, SIZE, STEPS, LR = 20, 30, 1000, 20, 0.1


def problem():
    x, y = regression(
        num_clients=CLIENTS, num_rows=ROWS, num_features=SIZE, dtype=torch.float64
    ).train
    return x.numpy().reshape(CLIENTS, ROWS, SIZE), y.numpy().reshape(CLIENTS, ROWS)


def local_map(a):
    """P so that 20 steps of 0.1 on |Aw - b|^2 / 2 end at w - A'P(Aw - b)."""
    curvature, basis = np.linalg.eigh(a @ a.T)
    return basis @ np.diag((1 - (1 - LR * curvature) ** STEPS) / curvature) @ basis.T


def trained(optimizer, num_rounds=200):
    """Mean over the clients of |Aw - b|^2 / 2 after the rounds, all of them in every one."""
    a, b = problem()
    maps = [local_map(rows) for rows in a]
    w, state, names = {"w": np.zeros(SIZE)}, {}, frozenset({"w"})
    for _ in range(num_rounds):
        ends = (w["w"] - x.T @ (p @ (x @ w["w"] - y)) for x, p, y in zip(a, maps, b, strict=True))
        stats = total(
            PseudoGradientStats.of(w, {"w": end}, weight=1.0, trainable=names) for end in ends
        )
        w, state, _ = optimizer.step(w, stats, state)
    return np.sum((a @ w["w"] - b) ** 2) / 2 / CLIENTS


def test_the_local_map_is_that_of_the_local_steps():
    a, b = problem()
    w = end = np.ones(SIZE)
    for _ in range(STEPS):
        end = end - LR * a[0].T @ (a[0] @ end - b[0])
    np.testing.assert_allclose(w - a[0].T @ (local_map(a[0]) @ (a[0] @ w - b[0])), end, rtol=1e-9)


def test_fedexp_fits_the_data_where_a_long_constant_step_does_not():
    assert trained(ServerOptimizer(step_size=Extrapolation(epsilon=0.0))) < 1e-12
    assert trained(ServerOptimizer(step_size=Constant(10.0))) > 1e-6


def test_fedexps_step_along_nesterovs_direction_keeps_its_speed_where_fixed_steps_crawl():
    """Published for another draw of the problem, at round 50: 3.2e-5 and 3.3e-3."""
    fixed = ServerOptimizer(Momentum(0.9, nesterov=True), Constant(1.0))
    assert trained(NesterovExP().optimizer, 50) < 1e-3 < trained(fixed, 50)


def test_anderson_and_schedule_free_descent_are_as_fast_as_published():
    """Published for another draw, at round 50: 2.2e-10, and 1.1e-2 with a step of 10."""
    assert 1e-12 < trained(ServerOptimizer(Anderson(), RunningRatio(0.0)), 50) < 1e-8
    assert 1e-3 < trained(ServerOptimizer(ScheduleFree(), Constant(10.0)), 50) < 1e-1


def test_a_bound_on_the_relative_step_of_one_half_does_not_slow_the_regression_from_zero():
    free, bounded = (trained(NesterovExP(max_relative_step=r).optimizer, 50) for r in (0.0, 0.5))
    assert bounded < 1.2 * free
