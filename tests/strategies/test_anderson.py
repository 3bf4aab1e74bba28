"""Anderson acceleration, against a slow loop from its formula and what linear theory says."""

import numpy as np
import pytest

from fedexp.config import Config
from fedexp.runs.run import Run
from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Anderson,
    Capped,
    Constant,
    Extrapolation,
    FedAnderson,
    Identity,
    RunningRatio,
    ServerOptimizer,
)

NAMES = frozenset({"a", "b"})
rng = np.random.default_rng(0)
MATRICES = [x @ x.T / 4 for x in rng.normal(size=(3, 4, 4))]
WEIGHTS = [1.0, 2.0, 3.0]
FIRST, SOLUTION = rng.normal(size=(2, 4))
BENDS = [0.0, 0.3]


def update_of(matrix, w, bend):
    v = w - SOLUTION
    return matrix @ v / 10 + bend * np.sin(v) / 10


def named(w):
    return {"a": w[:1].reshape(1, 1), "b": w[1:]}


def stats_at(w, bend=0.0):
    return total(
        PseudoGradientStats.of(
            named(w), named(w - update_of(matrix, w, bend)), weight=p, trainable=NAMES
        )
        for matrix, p in zip(MATRICES, WEIGHTS, strict=True)
    )


def stepped(optimizer, num_rounds, bend=0.0):
    params, state, iterates = named(FIRST), {}, [FIRST]
    for _ in range(num_rounds):
        params, state, _ = optimizer.step(params, stats_at(iterates[-1], bend), state)
        iterates.append(np.concatenate([np.ravel(x) for x in params.values()]))
    return np.array(iterates)


def reference(num_rounds, bend, window):
    """gamma = argmin |f - dF gamma|, w <- w - dX gamma + eta (f - dF gamma), f = -D."""
    ws, fs = [FIRST], []
    for _ in range(num_rounds):
        updates = np.array([update_of(matrix, ws[-1], bend) for matrix in MATRICES])
        mean = np.average(updates, axis=0, weights=WEIGHTS)
        spread = np.average((updates**2).sum(1), weights=WEIGHTS)
        eta = max(1, spread / 2 / (mean @ mean))
        fs.append(-mean)
        d_x = np.diff(ws[-window - 1 :], axis=0).T
        d_f = np.diff(fs[-window - 1 :], axis=0).T
        gamma = np.linalg.pinv(d_f) @ fs[-1] if len(fs) > 1 else np.zeros(0)
        plain = fs[-1] - d_f @ gamma if len(fs) > 1 else fs[-1]
        ws.append(ws[-1] - (d_x @ gamma if len(fs) > 1 else 0) + eta * plain)
    return np.array(ws)


@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("window", [1, 2, 3])
def test_it_is_the_least_squares_of_its_formula_with_fedexps_step(bend, window):
    optimizer = ServerOptimizer(Anderson(window), RunningRatio(0.0))
    np.testing.assert_allclose(
        stepped(optimizer, 8, bend), reference(8, bend, window), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("step_size", [RunningRatio(0.0), Constant(3.0), Capped(Constant(4.0), 2)])
def test_linear_updates_of_four_dimensions_are_solved_in_five_steps_and_not_in_four(step_size):
    errors = np.abs(stepped(ServerOptimizer(Anderson(4), step_size), 8) - SOLUTION).max(1)
    assert errors[4] > 1e-6
    assert errors[5:].max() < 1e-9  # and it stays there, where all differences are rounding
    plain = np.abs(stepped(ServerOptimizer(Identity(), step_size), 5) - SOLUTION).max(1)
    assert plain[5] > 1e-2


def test_columns_that_say_nothing_are_dropped_and_without_any_the_step_is_plain():
    rule, w = ServerOptimizer(Anderson(3), Constant(1.0)), named(FIRST)
    stats, state = stats_at(FIRST), {}
    for _ in range(3):  # the same place three times: no difference at all
        new, state, _ = rule.step(w, stats, state)
        np.testing.assert_allclose(new["b"], FIRST[1:] - stats.mean_update["b"])
    far = named(FIRST + 1)
    large = {name: x * np.inf if name == "a" else x for name, x in stats.update.items()}
    state["anderson-update-0"] = large  # what no client may send
    new, state, _ = rule.step(far, stats_at(FIRST + 1), state)
    assert all(np.isfinite(x).all() for x in new.values())


def test_parallel_differences_are_dropped_the_oldest_first():
    """In one of two dimensions: the second difference is parallel to the first one."""
    rule, state, w = ServerOptimizer(Anderson(5), Constant(1.0)), {}, np.array([4.0, 4.0])
    for _ in range(4):
        end = {"w": w - w / 2}
        stats = PseudoGradientStats.of({"w": w}, end, weight=1.0, trainable=frozenset({"w"}))
        new, state, _ = rule.step({"w": w}, stats, state)
        w = new["w"] + 1e-3 * (w > 1)  # a push, so that it does not rest at once
    assert np.abs(w).max() < 2e-3


def test_all_clients_must_train_and_rules_that_measure_the_mean_update_are_refused():
    assert FedAnderson().optimizer.needs_all_clients
    assert not FedAnderson(sampled=True).optimizer.needs_all_clients
    with pytest.raises(ValueError, match="FedAnderson: 2 of 4 clients train"):
        Run(Config(strategy="fedanderson", fraction_train=0.5), "fedanderson", 4)
    with pytest.raises(ValueError, match="cannot step along Anderson"):
        ServerOptimizer(Anderson(), Extrapolation())
    with pytest.raises(ValueError, match=r"Anderson\(window=0\): must be a whole"):
        FedAnderson(window=0)
