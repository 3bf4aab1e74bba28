import numpy as np
import pytest
import torch

from fedexp.stats import PseudoGradientStats
from fedexp.strategies import Adagrad, Adam, Constant, Momentum, ServerOptimizer, Yogi

GRADIENTS = np.random.default_rng(0).normal(size=(6, 5))


def path(direction, eta, gradients=GRADIENTS):
    """w after each of ``w ← w - η d``, from zero."""
    w, state, seen = np.zeros(gradients.shape[1]), {}, []
    for g in gradients:
        d, state = direction({"w": g}, state)
        w = w - eta * d["w"]
        seen.append(w)
    return np.array(seen)


def torch_path(make, gradients=GRADIENTS):
    w = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer, seen = make([w]), []
    for g in gradients:
        w.grad = torch.from_numpy(g.copy())
        optimizer.step()
        seen.append(w.detach().numpy().copy())
    return np.array(seen)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_torch_sgd(nesterov):
    ours = path(Momentum(0.8, nesterov), 0.3)
    theirs = torch_path(lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.8, nesterov=nesterov))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_heavy_ball_sums_up_to_its_limit_under_a_steady_gradient():
    direction, state = Momentum(0.5), {}
    for _ in range(60):
        d, state = direction({"w": np.ones(2)}, state)
    np.testing.assert_allclose(d["w"], 1 / (1 - 0.5))


def test_adam_with_bias_correction_from_zero_is_that_of_torch():
    ours = path(Adam(0.7, 0.95, 1e-3, initial=0.0, bias_correction="adam"), 0.1)
    theirs = torch_path(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.7, 0.95), eps=1e-3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_adagrad_from_zero_is_that_of_torch():
    ours = path(Adagrad(tau=1e-3, initial=0.0), 0.1)
    theirs = torch_path(lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_without_bias_correction_adam_is_the_formula_of_the_paper_from_tau_squared():
    # Reddi et al. 2021, alg. 2: m = b1 m + (1-b1) D, v = b2 v + (1-b2) D^2, v_0 = tau^2.
    b1, b2, tau, m, v, w = 0.9, 0.99, 0.01, 0.0, 0.01**2, np.zeros(5)
    for ours, g in zip(path(Adam(b1, b2, tau), 0.1), GRADIENTS, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - 0.1 * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(ours, w, rtol=1e-12)


def test_adagrad_is_the_formula_of_the_paper_from_tau_squared():
    # v = v + D^2, w = w - eta D / (sqrt(v) + tau)
    tau, v, w = 0.1, 0.1**2, np.zeros(5)
    for ours, g in zip(path(Adagrad(tau=tau), 0.1), GRADIENTS, strict=True):
        v = v + g**2
        w = w - 0.1 * g / (np.sqrt(v) + tau)
        np.testing.assert_allclose(ours, w, rtol=1e-12)


def test_yogi_is_the_formula_of_the_paper():
    # v = v - (1-b2) D^2 sign(v - D^2)
    b1, b2, tau, m, v, w = 0.9, 0.9, 0.5, 0.0, 0.5**2, np.zeros(5)
    for ours, g in zip(path(Yogi(b1, b2, tau), 0.1), GRADIENTS, strict=True):
        m, v = b1 * m + (1 - b1) * g, v - (1 - b2) * g**2 * np.sign(v - g**2)
        w = w - 0.1 * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(ours, w, rtol=1e-12)


def test_after_one_large_round_yogi_forgets_by_less_than_adam():
    large_then_small = np.array([[10.0]] + [[0.1]] * 5)
    speeds = {}
    for rule in (Adam, Yogi):
        state = {}
        for g in large_then_small:
            _, state = rule(beta_2=0.9)({"w": g}, state)
        speeds[rule] = state["second-moment"]["w"][0]
    assert speeds[Yogi] > speeds[Adam]


@pytest.mark.parametrize("rule", [Adagrad, Adam, Yogi])
def test_with_a_huge_tau_an_adaptive_direction_is_the_mean_over_tau(rule):
    d, _ = rule(beta_1=0.0, tau=1e9, initial=0.0)({"w": GRADIENTS[0]}, {})
    np.testing.assert_allclose(d["w"] * 1e9, GRADIENTS[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(1.0), r"Momentum\(beta=1.0\): must be in \[0, 1\)"),
        (lambda: Adam(beta_2=-0.1), r"Adam\(beta_2=-0.1\)"),
        (lambda: Yogi(tau=0.0), r"Yogi\(tau=0.0\): must be > 0"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_outer_step_of_diloco_is_that_of_the_formula():
    """``m <- .9 m + D, w <- w - .7 (D + .9 m)`` with ``D = w/2`` from 1, worked out by hand."""
    rule, state, w = ServerOptimizer(Momentum(0.9, nesterov=True), Constant(0.7)), {}, np.ones(1)
    for expected in (0.335, -0.171275):  # 1 - .7 · .95, then .335 - .7 · (.1675 + .9 · .6175)
        stats = PseudoGradientStats(1, 1.0, {"w": w / 2}, sq_norm=1.0)
        new, state, _ = rule.step({"w": w}, stats, state)
        w = new["w"]
        assert w.item() == pytest.approx(expected, rel=1e-12)
