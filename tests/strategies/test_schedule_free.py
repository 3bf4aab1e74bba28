"""Schedule-free steps, against the three sequences of the paper and their authors' package."""

import numpy as np
import pytest

from fedexp.stats import PseudoGradientStats
from fedexp.strategies import (
    Constant,
    Extrapolation,
    FedScheduleFree,
    HypergradientStep,
    PolynomialAverage,
    Relaxed,
    RunningRatio,
    ScheduleFree,
    ServerOptimizer,
)

NAMES = frozenset({"w"})
MATRIX = np.array([[2.0, 0.5], [0.5, 1.0]])
FIRST = np.array([3.0, -1.0])


def mean_update(y):
    """Not symmetric, not linear."""
    return MATRIX @ y / 10 + 0.01 * y**3


def ours(beta, eta, num_rounds):
    """The iterates ``y`` and their averages ``x``."""
    rule = ServerOptimizer(ScheduleFree(beta), Constant(eta))
    average, memory, params, state = PolynomialAverage(beta / (1 - beta)), {}, {"w": FIRST}, {}
    ys, xs = [], []
    for _ in range(num_rounds):
        end = {"w": params["w"] - mean_update(params["w"])}
        stats = PseudoGradientStats.of(params, end, weight=1.0, trainable=NAMES)
        params, state, _ = rule.step(params, stats, state)
        memory = average.update(memory, params)
        ys.append(params["w"])
        xs.append(average.mean(memory, NAMES)["w"])
    return np.array(ys), np.array(xs)


@pytest.mark.parametrize(("beta", "eta"), [(0.9, 2.0), (0.5, 1.0), (0.0, 0.7)])
def test_it_is_the_three_sequences_of_the_paper(beta, eta):
    x = y = z = FIRST
    ys, xs = [], []
    for t in range(1, 13):
        z = z - eta * mean_update(y)
        x = (1 - 1 / t) * x + z / t
        y = beta * x + (1 - beta) * z
        ys.append(y)
        xs.append(x)
    got = ours(beta, eta, 12)
    np.testing.assert_allclose(got[0], ys, rtol=1e-10)
    np.testing.assert_allclose(got[1], xs, rtol=1e-10)


def test_it_is_the_authors_package_on_the_same_pseudo_gradients():
    torch, schedulefree = pytest.importorskip("torch"), pytest.importorskip("schedulefree")
    w = torch.nn.Parameter(torch.tensor(FIRST))
    optimizer = schedulefree.SGDScheduleFree([w], lr=2.0, momentum=0.9, foreach=False)
    ys, xs = [], []
    for _ in range(12):
        optimizer.train()
        w.grad = torch.tensor(mean_update(w.detach().numpy()))
        optimizer.step()
        ys.append(w.detach().numpy().copy())
        optimizer.eval()
        xs.append(w.detach().numpy().copy())
    got = ours(0.9, 2.0, 12)
    np.testing.assert_allclose(got[0], ys, rtol=1e-9)
    np.testing.assert_allclose(got[1], xs, rtol=1e-9)


@pytest.mark.parametrize("step", [Extrapolation(), RunningRatio(), HypergradientStep()])
def test_a_step_that_changes_is_refused_and_a_constant_multiple_is_not(step):
    with pytest.raises(ValueError, match=f"Use Constant, not {type(step).__name__}"):
        ServerOptimizer(ScheduleFree(), step)
    strategy = FedScheduleFree(server_learning_rate=2.0, relaxation=0.5)
    assert strategy.optimizer == ServerOptimizer(ScheduleFree(), Relaxed(Constant(2.0), 0.5))


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_beta_is_a_fraction(beta):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        ScheduleFree(beta)
