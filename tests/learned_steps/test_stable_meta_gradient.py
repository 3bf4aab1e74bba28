"""The stable meta-gradient against the closed form, and both against 60 digits and autograd."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from problems_and_models import published

from fedexp.learned_steps import LeastSquares, Quadratic, closed_form, meta_gradient

STEP_SIZES = [1e-4, 0.01, 0.0319, 0.032, 0.1, 1.0, 10.0]
NUM_STEPS = [1, 2, 40, 640]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
BOTH = pytest.mark.parametrize("dtype", TOLERANCE)


def least_squares(dtype=torch.float64, n=12, d=8, *, validation=False, noise=0.5):
    r = np.random.default_rng(1)
    x, w, other = r.normal(size=(n, d)), r.normal(size=d), r.normal(size=(5, d))
    y, y_other = x @ w + noise * r.normal(size=n), other @ w + noise * r.normal(size=5)
    x, y, other, y_other = (torch.tensor(a, dtype=dtype) for a in (x, y, other, y_other))
    return LeastSquares(x, y, validation=(other, y_other) if validation else None)


def in_double(problem):
    """The same numbers, so that only the arithmetic differs."""
    if isinstance(problem, Quadratic):
        return Quadratic(problem.matrix.double(), problem.first.double())
    other = problem.validation and tuple(x.double() for x in problem.validation)
    return LeastSquares(problem.inputs.double(), problem.targets.double(), validation=other)


PROBLEMS = {
    "quadratic": published,
    "train-by-train": least_squares,
    "more-weights-than-rows": lambda dtype=torch.float64: least_squares(dtype, n=6, d=9),
    "train-by-validation": lambda dtype=torch.float64: least_squares(dtype, validation=True),
}
EACH = pytest.mark.parametrize("problem", PROBLEMS)


def error(found, exact):
    """Relative where the slope is large, absolute where it is small."""
    return ((found.double() - exact).abs() / exact.abs().clamp(min=1)).max()


@EACH
@BOTH
def test_it_is_the_closed_form_for_every_step_size_and_number_of_steps(problem, dtype):
    given = PROBLEMS[problem](dtype)
    exact = in_double(given)
    for eta, t in itertools.product(STEP_SIZES, NUM_STEPS):
        found, expected = (f(x, eta, t) for f, x in ((meta_gradient, given), (closed_form, exact)))
        gradient = found.gradient("log")
        assert gradient.dtype == dtype
        assert gradient.isfinite()
        assert error(gradient, expected.gradient("log")) <= TOLERANCE[dtype], (eta, t)
        assert found.value("log") == pytest.approx(expected.value("log"), abs=1e-3)


@EACH
def test_the_closed_form_is_right_to_many_digits(problem):
    given = PROBLEMS[problem]()
    for eta, t in [(0.01, 7), (0.1, 40), (10.0, 60)]:
        log_loss, slope = in_60_digits(given, eta, t)
        found = closed_form(given, eta, t)
        assert found.log_loss == pytest.approx(log_loss, rel=1e-9)
        assert float(found.log_slope) == pytest.approx(slope, rel=1e-8)


def in_60_digits(problem, eta, num_steps):
    """Plain gradient descent on the weights, and its tangent."""
    with mpmath.workdps(60 + 3 * num_steps):
        if isinstance(problem, Quadratic):
            h, w = (mpmath.matrix(x.tolist()) for x in (problem.matrix, problem.first))
            b, end, const = mpmath.zeros(len(w), 1), (h, mpmath.zeros(len(w), 1)), mpmath.mpf(0)
        else:
            h, b, _ = normal_equations(problem.inputs, problem.targets)
            other = problem.validation or (problem.inputs, problem.targets)
            *end, const = normal_equations(*other)
            w = mpmath.zeros(len(b), 1)
        v, eta = mpmath.zeros(len(w), 1), mpmath.mpf(eta)
        for _ in range(num_steps):
            g = h * w - b
            w, v = w - eta * g, v - eta * (h * v) - g
        loss = (w.T * end[0] * w)[0] / 2 - (end[1].T * w)[0] + const
        slope = (v.T * (end[0] * w - end[1]))[0] / loss
        return float(mpmath.log(loss)), float(slope)


def normal_equations(x, y):
    x, y, n = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist()), len(y)
    return x.T * x / n, x.T * y / n, (y.T * y)[0] / (2 * n)


def test_numbers_known_from_elsewhere():
    slopes = {10: 24.3925768, 40: 23.7970735, 80: 23.7954708}
    for t, slope in slopes.items():
        assert float(meta_gradient(published(), 0.1, t).gradient("log")) == pytest.approx(slope)
    for eta, slope in {0.1: 23.7954, 1.0: 2.03242, 10.0: 0.20032, 0.0319: 120.5}.items():
        found = meta_gradient(published(torch.float32), eta, 640).gradient("log")
        assert float(found) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_in_one_dimension_the_slope_is_that_of_one_factor(f):
    one = Quadratic(torch.full((1, 1), 3.0).double(), torch.ones(1).double())
    for eta in (0.0, 0.1, 5.0):
        for t in (1, 3, 100):
            found = float(f(one, eta, t).gradient("log"))
            assert found == pytest.approx(-2 * 3 / (1 - 3 * eta))


def backpropagated(problem, eta, num_steps):
    """The derivative of ``log f(w_t)`` by autograd."""
    eta = torch.as_tensor(eta, dtype=torch.float64).requires_grad_()
    rates = eta.expand(num_steps) if not eta.dim() else eta
    if isinstance(problem, Quadratic):
        w = problem.first
        for rate in rates:
            w = w - rate * (problem.matrix @ w)
        loss = w @ problem.matrix @ w / 2
    else:
        x, y = problem.inputs, problem.targets
        w = torch.zeros(x.shape[1], dtype=x.dtype)
        for rate in rates:
            w = w - rate * (x.T @ (x @ w - y)) / len(y)
        x, y = problem.validation or (x, y)
        loss = ((x @ w - y) ** 2).mean() / 2
    return torch.autograd.grad(loss.log(), eta)[0]


@EACH
@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_each_step_may_have_its_own_size(problem, f):
    given = PROBLEMS[problem]()
    for t in (1, 2, 9):
        eta = torch.linspace(0.01, 0.09, t, dtype=torch.float64)
        found = f(given, eta, t).log_slope
        assert error(found, backpropagated(given, eta, t)) < 1e-9
        assert float(f(given, torch.full((t,), 0.02), t).log_slope.sum()) == pytest.approx(
            float(f(given, torch.tensor(0.02), t).log_slope)
        )


@EACH
@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_a_step_may_remove_a_mode_at_once(problem, f):
    """``1 - η_k λ`` is 0 or rounding: whoever divides by it returns nothing useful."""
    given = PROBLEMS[problem]()
    rates = given.modes().rates
    eta = torch.stack([1 / rates.max(), 1 / rates.max(), rates.new_tensor(0.02)])
    assert error(f(given, eta, 3).log_slope, backpropagated(given, eta, 3)) < 1e-9


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_a_factor_that_is_exactly_0_is_no_division_by_0(f):
    two = Quadratic(torch.diag(torch.tensor([1.0, 4.0])).double(), torch.ones(2).double())
    eta = torch.tensor([0.25, 0.25, 0.5]).double()
    assert error(f(two, eta, 3).log_slope, backpropagated(two, eta, 3)) < 1e-12
    # With one factor 0 the other ones move that mode no more; the factor itself does.
    once = torch.tensor([0.25, 0.5]).double()
    assert error(f(two, once, 2).log_slope, backpropagated(two, once, 2)) < 1e-12


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_columns_that_repeat_others_change_nothing_but_the_rate(f):
    """Twice the same columns are a matrix whose smallest singular values are rounding."""
    one = least_squares(validation=True)
    x, y = one.validation
    twice = LeastSquares(one.inputs.repeat(1, 2), one.targets, validation=(x.repeat(1, 2), y))
    for eta in (0.01, 0.1):
        found, expected = f(twice, eta, 40), f(one, 2 * eta, 40)
        assert found.log_loss == pytest.approx(expected.log_loss)
        assert float(found.log_slope) == pytest.approx(2 * float(expected.log_slope), rel=1e-8)


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_a_column_of_zeros_changes_nothing(f):
    one = least_squares(validation=True)
    x, y = one.validation
    zeros = torch.zeros(12, 1).double()
    more = torch.cat([one.inputs, zeros], 1)
    wider = LeastSquares(more, one.targets, validation=(torch.cat([x, zeros[:5] + 7], 1), y))
    found, expected = f(wider, 0.05, 40), f(one, 0.05, 40)
    assert found.log_loss == pytest.approx(expected.log_loss)
    assert float(found.log_slope) == pytest.approx(float(expected.log_slope), rel=1e-8)


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_a_mode_that_is_not_there_may_explode(f):
    given = Quadratic(torch.diag(torch.tensor([1.0, 100.0])).double(), torch.eye(2)[0].double())
    assert float(f(given, 0.5, 640).gradient("log")) == pytest.approx(-2 / (1 - 0.5))


def test_many_steps_of_sizes_that_explode_and_vanish_have_a_finite_gradient():
    given, r = published(), torch.Generator().manual_seed(0)
    for scale in (1e-4, 0.03, 1.0, 10.0):
        eta = scale * torch.rand(640, generator=r, dtype=torch.float64)
        found, exact = meta_gradient(given, eta, 640), closed_form(given, eta, 640)
        assert found.log_slope.isfinite().all()
        assert error(found.gradient("log"), exact.gradient("log")) < 1e-6


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
def test_a_loss_of_0_has_no_slope(f):
    one = Quadratic(torch.ones(1, 1), torch.ones(1))
    found = f(one, 1.0, 700)
    assert (found.log_loss, float(found.log_slope)) == (-math.inf, 0.0)
    assert float(found.gradient("naive")) == found.value("naive") == 0.0
    flat = Quadratic(torch.zeros(2, 2), torch.ones(2))
    assert f(flat, 1.0, 3).log_loss == -math.inf


def test_the_bounds_of_theorem_3():
    """The naive gradient vanishes below 2/L and explodes above it; the log one does neither."""
    problem = published()
    problem = Quadratic(problem.matrix, problem.first / problem.first.norm())
    lambdas, vectors = torch.linalg.eigh(problem.matrix)
    c, top = vectors.T @ problem.first, lambdas[-1]
    for t in (5, 20, 80):
        for eta in (0.01, 0.03):
            most = t * (c**2 * lambdas**2 * (1 - eta * lambdas).abs() ** (2 * t - 1)).sum()
            assert abs(float(meta_gradient(problem, eta, t).gradient("naive"))) <= most * 1.000001
        eta = 0.04
        least = c[-1] ** 2 * top**2 * t * (eta * top - 1) ** (2 * t - 1) - top**2 * t
        found = meta_gradient(problem, eta, t)
        assert float(found.gradient("naive")) >= least
        assert abs(float(found.gradient("log"))) < 200


@pytest.mark.parametrize("f", [meta_gradient, closed_form])
@pytest.mark.parametrize(
    ("step_size", "num_steps", "message"),
    [
        (0.1, 0, r"num_steps=0: at least one local step"),
        (0.1, 2.5, r"num_steps=2.5: at least one local step"),
        (-0.1, 3, r"step_size=-0.1"),
        ([0.5, -2.0], 2, r"step_size=-2.0: must be finite and at least 0"),
        (math.nan, 3, r"step_size=nan"),
        ([0.1, 0.1], 3, r"step_size has shape \(2,\): give one number, or 3"),
    ],
)
def test_bad_arguments_are_named(f, step_size, num_steps, message):
    with pytest.raises(ValueError, match=message) as caught:
        f(least_squares(), step_size, num_steps)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_are_named():
    x, y = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match="the validation part has no rows"):
        LeastSquares(x, y, validation=(x[:0], y[:0]))
    with pytest.raises(ValueError, match="the inner part has no rows"):
        LeastSquares(x[:0], y[:0])
    with pytest.raises(ValueError, match=r"inputs has shape \(3, 2\), expected \(2, 2\)"):
        LeastSquares(x, y[:2])
    with pytest.raises(ValueError, match=r"matrix has shape \(3, 2\), expected \(2, 2\)"):
        Quadratic(x, y[:2])
    with pytest.raises(ValueError, match=r"first has shape \(3,\), expected \(2,\)"):
        LeastSquares(x, y, first=y)
