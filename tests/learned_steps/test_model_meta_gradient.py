"""Through a model's steps: finite differences, back-propagation, and memory that does not grow."""

import itertools
import math

import pytest
import torch
from problems_and_models import MODELS, as_model, federated_client
from torch.func import grad
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedexp.learned_steps import (
    LeastSquares,
    mean_loss,
    meta_gradient,
    model_meta_gradient,
)

EACH = pytest.mark.parametrize("name", MODELS)


def log_end(loss, end, weights, batches, rates):
    """``log f(w_t)``, differentiable by the rates."""
    for rate, batch in zip(rates, batches, strict=True):
        g = grad(loss)(weights, batch)
        weights = {k: v - rate * g[k] for k, v in weights.items()}
    return end(weights).log()


@EACH
@pytest.mark.parametrize("by", ["train", "validation"])
def test_it_is_the_finite_difference(name, by):
    loss, weights, batches, others = federated_client(name)
    end = mean_loss(loss, batches if by == "train" else others)

    def value(*rates):
        return float(log_end(loss, end, weights, batches, rates))

    for eta, step in itertools.product([0.05, 0.5, 2.0], [1e-5]):
        found = model_meta_gradient(loss, end, weights, batches, eta)
        rates = [eta] * 7
        difference = value(*[eta + step] * 7) - value(*[eta - step] * 7)
        assert found.log_loss == pytest.approx(value(*rates))
        assert float(found.log_slope) == pytest.approx(difference / (2 * step), rel=1e-6)
        each = model_meta_gradient(loss, end, weights, batches, rates).log_slope
        for k in (0, 3, 6):
            up, down = ([*rates[:k], eta + d, *rates[k + 1 :]] for d in (step, -step))
            difference = (value(*up) - value(*down)) / (2 * step)
            assert float(each[k]) == pytest.approx(difference, rel=1e-5, abs=1e-8)


@EACH
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 17])
def test_it_is_back_propagation_where_that_works(name, num_steps):
    loss, weights, batches, others = federated_client(name, num_steps)
    end = mean_loss(loss, others)
    eta = torch.linspace(0.1, 0.9, num_steps, dtype=torch.float64).requires_grad_()
    exact = torch.autograd.grad(log_end(loss, end, weights, batches, eta), eta)[0]
    found = model_meta_gradient(loss, end, weights, batches, eta.detach())
    assert torch.allclose(found.log_slope, exact, rtol=1e-9, atol=1e-12)
    one = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rates = one.expand(num_steps)
    exact = torch.autograd.grad(log_end(loss, end, weights, batches, rates), one)[0]
    found = model_meta_gradient(loss, end, weights, batches, one.detach())
    assert torch.allclose(found.log_slope, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("each", [False, True])
def test_on_least_squares_it_is_the_exact_one(each):
    """Also where the tangent alone would overflow float32: the loss does not, the tangent does."""
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    y = x.sum(1) + 0.5 * torch.randn(12, generator=torch.Generator().manual_seed(1))
    loss, weights = as_model(x, y)
    exact = LeastSquares(x.double(), y.double())
    for eta, t in [(0.01, 40), (0.3, 40), (1.0, 20)]:
        step_size = [eta] * t if each else eta
        found = model_meta_gradient(loss, lambda w: loss(w, None), weights, [None] * t, step_size)
        expected = meta_gradient(exact, step_size, t)
        assert found.log_loss == pytest.approx(expected.log_loss, rel=1e-3)
        off = (found.gradient("log").double() - expected.gradient("log")).abs()
        assert off.max() < 1e-3 * expected.gradient("log").abs().max().clamp(min=1)


@pytest.mark.parametrize("each", [False, True])
def test_the_tangent_may_be_larger_than_any_float(each):
    """After one step the weight rests on a summit, and its tangent grows by 11 in every step."""

    def loss(weights, batch):
        a = weights["a"]
        return 1e-20 * a if batch == "slope" else -5 * (a + 1e-20) ** 2

    def end(weights):
        return 1 + 1e-30 * weights["a"]

    start, batches = {"a": torch.tensor(0.0)}, ["slope"] + ["summit"] * 75
    found = model_meta_gradient(loss, end, start, batches, [1.0] * 76 if each else 1.0)
    assert torch.finfo(torch.float32).max < 1e-30 * 11.0**75
    assert found.log_slope.dtype == torch.float32
    assert float(found.log_slope.sum()) == pytest.approx(-1e-30 * 1e-20 * 11.0**75, rel=1e-4)


@EACH
@pytest.mark.parametrize("each", [False, True])
def test_by_reverse_mode_twice_it_is_the_same_where_the_gradient_is_one(name, each):
    loss, weights, batches, others = federated_client(name)
    end, eta = mean_loss(loss, others), [0.3] * 7 if each else 0.3
    found, expected = (
        model_meta_gradient(loss, end, weights, batches, eta, symmetric=symmetric)
        for symmetric in (True, False)
    )
    assert found.log_loss == pytest.approx(expected.log_loss, rel=1e-12)
    assert torch.allclose(found.log_slope, expected.log_slope, rtol=1e-9, atol=1e-12)


def test_by_reverse_mode_a_line_has_no_curvature_and_an_unused_weight_no_slope():
    start = {"a": torch.tensor(2.0), "unused": torch.tensor(1.0)}
    found = model_meta_gradient(
        lambda w, b: 3 * w["a"], lambda w: w["a"].exp(), start, [0, 0], 0.1, symmetric=True
    )
    assert float(found.log_slope) == pytest.approx(-6)  # log f(w_t) = 2 - 2 · 3 η


class Alive(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, whoever held them."""

    def __init__(self):
        super().__init__()
        self.storages, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return out


def most_alive(f):
    with Alive() as alive:
        f()
    return alive.most


def test_the_memory_does_not_depend_on_the_number_of_steps():
    loss, weights, batches, others = federated_client("mlp", 1)
    end = mean_loss(loss, others)
    size = sum(v.nbytes for v in weights.values())

    def tangent(t):
        return most_alive(lambda: model_meta_gradient(loss, end, weights, batches * t, 0.1))

    def adjoint(t):
        return most_alive(lambda: model_meta_gradient(loss, end, weights, batches * t, [0.1] * t))

    def backward(t):
        eta = torch.full((t,), 0.1, dtype=torch.float64, requires_grad=True)
        run = log_end(loss, end, weights, batches * t, eta)
        torch.autograd.grad(run, eta)

    assert tangent(12) <= tangent(3)
    # A weight for every √t-th step and as many between: 2 · (5 - 2) more at 25 than at 4.
    assert adjoint(25) - adjoint(4) <= 2 * 3 * size + 25 * 16
    grown = most_alive(lambda: backward(12)) - most_alive(lambda: backward(4))
    assert grown > 8 * size  # What is measured does see what back-propagation keeps.


@pytest.mark.parametrize("each", [False, True])
def test_a_trajectory_that_leaves_the_ball_has_no_gradient(each):
    loss, weights = as_model(torch.eye(2).double(), torch.ones(2).double())

    def run(eta, **options):
        step_size = [eta] * 9 if each else eta
        end = lambda w: loss(w, None)  # noqa: E731
        return model_meta_gradient(loss, end, weights, [None] * 9, step_size, **options)

    assert not run(10.0).truncated
    found = run(10.0, max_norm=40.0)
    assert found.truncated
    assert not found.log_slope.any()
    assert found.value("log") == math.inf
    assert not run(0.5, max_norm=40.0).truncated
    assert run(1e60).truncated  # the loss at the end is infinite
    with pytest.raises(ValueError, match="max_norm=0"):
        run(0.5, max_norm=0)


def test_a_loss_that_is_0_or_negative_at_the_end():
    weights = {"a": torch.tensor(1.0)}
    found = model_meta_gradient(lambda w, b: w["a"] ** 2, lambda w: w["a"] ** 2, weights, [0], 0.5)
    assert (found.log_loss, float(found.log_slope)) == (-math.inf, 0.0)
    with pytest.raises(ValueError, match=r"The loss at the end is -1\.0: its logarithm"):
        model_meta_gradient(lambda w, b: w["a"] ** 2, lambda w: w["a"] - 1, weights, [0], 0.5)


def test_no_batches_are_named():
    with pytest.raises(ValueError, match="num_steps=0"):
        model_meta_gradient(lambda w, b: w["a"], lambda w: w["a"], {"a": torch.ones(())}, [], 0.5)
    with pytest.raises(ValueError, match="at least one batch"):
        mean_loss(lambda w, b: w["a"], [])
    with pytest.raises(ValueError, match="there is nothing to move"):
        model_meta_gradient(lambda w, b: w["a"], lambda w: w["a"], {}, [0], 0.5)
