"""Delta-SGD on quadratics, where smoothness is known."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexp.clients.delta_sgd import DeltaSGD
from fedexp.clients.fedhyper_sgd import FedHyperSGD


def quadratic(curvature, w, optimizer, num_steps):
    def closure():
        w.grad = curvature * w.detach()

    rates = []
    for _ in range(num_steps):
        optimizer.step(closure)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def weight(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


@settings(deadline=None)
@given(st.floats(0.5, 100), st.floats(0.5, 2))
def test_on_a_quadratic_the_step_is_at_most_half_gamma_over_the_smoothness(smoothness, gamma):
    w = weight(1.0)
    rates = quadratic(smoothness, w, DeltaSGD([w], lr=1.0, gamma=gamma), 3)
    grown = 1.0 * (1 + 0.02) ** 0.5
    assert rates[0] == 1.0
    if abs(smoothness - 1) > 1e-3:  # There the first step lands on the minimum.
        assert rates[1] == pytest.approx(min(gamma / (2 * smoothness), grown))


def test_a_small_step_grows_as_the_recursion_says():
    w = weight(1.0, 1.0)
    rates = quadratic(0.01, w, DeltaSGD([w], lr=1e-3, delta=0.1), 4)
    expected, theta = [1e-3], 1.0
    for _ in range(3):
        expected.append(expected[-1] * (1 + 0.1 * theta) ** 0.5)
        theta = expected[-1] / expected[-2]
    assert rates == pytest.approx(expected)


def test_a_round_starts_afresh():
    w = weight(1.0)
    optimizer = DeltaSGD([w], lr=0.1)
    first = quadratic(5.0, w, optimizer, 4)
    optimizer.reset()
    with torch.no_grad():
        w.fill_(1.0)
    assert quadratic(5.0, w, optimizer, 4) == first


@pytest.mark.parametrize("to_none", [True, False])
def test_one_batch_for_both_gradients_sees_through_the_noise_between_batches(to_none):
    """With ``f_k = (w - c_k)²/2`` the smoothness is 1 whatever the ``c_k``."""
    generator = torch.Generator().manual_seed(0)
    w = weight(1.0, -1.0)
    optimizer = DeltaSGD([w], lr=0.9, delta=10.0)
    for step, c in enumerate(torch.randn(5, 2, generator=generator, dtype=torch.float64)):

        def closure(c=c):
            optimizer.zero_grad(set_to_none=to_none)
            loss = ((w - c) ** 2).sum() / 2
            loss.backward()
            return loss

        before = w.detach().clone()
        assert optimizer.step(closure).item() == pytest.approx(((before - c) ** 2).sum().item() / 2)
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(0.9 if step == 0 else 1.0)
        torch.testing.assert_close(w.detach(), before - rate * (before - c))
        torch.testing.assert_close(w.grad, before - c)


def test_a_closure_that_fails_at_the_last_iterate_leaves_weights_and_gradients():
    w = weight(1.0)
    optimizer = DeltaSGD([w], lr=0.1)
    places = []

    def closure():
        places.append(w.item())
        if len(places) == 3:
            raise RuntimeError("no memory")
        w.grad = w.detach().clone()

    optimizer.step(closure)
    with pytest.raises(RuntimeError, match="no memory"):
        optimizer.step(closure)
    assert places == [1.0, 0.9, 1.0]
    assert (w.item(), w.grad.item()) == (0.9, 0.9)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, -2.0, 1e300, float("inf"), float("nan")]), min_size=1))
def test_the_step_stays_positive_and_finite_whatever_the_gradients(gradients):
    w = weight(1.0)
    optimizer = DeltaSGD([w], lr=0.1, same_batch=False)
    for gradient in gradients:
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
        assert 0 < optimizer.param_groups[0]["lr"] < 1e3


@pytest.mark.parametrize("name", ["lr", "gamma", "delta"])
def test_a_constant_that_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=rf"DeltaSGD\({name}=-1\): must be positive"):
        DeltaSGD([weight(1.0)], **{name: -1})


def test_what_it_cannot_use_is_refused():
    w = weight(1.0)
    with pytest.raises(ValueError, match="needs a closure"):
        DeltaSGD([w]).step()
    w.grad = torch.ones(1).double().to_sparse()
    with pytest.raises(ValueError, match="only dense"):
        DeltaSGD([w], same_batch=False).step()


def test_a_parameter_that_sleeps_at_the_last_iterate_had_no_gradient_there():
    w, v = weight(1.0), weight(1.0)
    optimizer, calls = DeltaSGD([w, v], lr=1.0, delta=10.0), []

    def closure():
        calls.append(1)
        w.grad, v.grad = torch.ones(1).double(), None if len(calls) == 3 else torch.ones(1).double()

    optimizer.step(closure)
    optimizer.step(closure)
    # γ ‖dx‖ / (2 ‖dg‖) with dx = (1, 1), dg = (0, 1).
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_whose_norm_no_half_can_hold(dtype):
    w = torch.nn.Parameter(torch.full((4,), 300.0, dtype=dtype))
    rates = quadratic(200.0, w, DeltaSGD([w], lr=1e-3, gamma=1.0), 2)
    assert rates[1] == pytest.approx(1e-3 * 1.02**0.5)
    assert w.isfinite().all()


@pytest.mark.parametrize("kind", [DeltaSGD, FedHyperSGD])
def test_saved_and_loaded_it_goes_on_as_if_it_had_not_been(kind):
    own = {"same_batch": False} if kind is DeltaSGD else {}

    def steps(w, optimizer, num):
        for _ in range(num):
            w.grad = 3 * w.detach() + w.detach() ** 2
            optimizer.step()
        return w.detach().clone(), optimizer.param_groups[0]["lr"]

    w = weight(1.0, -0.5)
    optimizer = kind([w], lr=0.01, **own)
    steps(w, optimizer, 3)
    again = weight(*w.tolist())
    loaded = kind([again], lr=0.5, **own)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (x, rate), (y, same) = steps(w, optimizer, 3), steps(again, loaded, 3)
    assert torch.equal(x, y)
    assert rate == same != 0.01


@pytest.mark.parametrize("kind", [DeltaSGD, FedHyperSGD])
def test_groups_keep_the_ratio_of_their_rates(kind):
    own = {"same_batch": False} if kind is DeltaSGD else {}
    w, v = weight(1.0), weight(1.0)
    optimizer = kind([{"params": [w]}, {"params": [v], "lr": 0.03}], lr=0.01, **own)
    for _ in range(3):
        before = w.item(), v.item()
        w.grad, v.grad = torch.ones(1).double(), torch.ones(1).double()
        optimizer.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(3 * rates[0])
    assert rates[0] > 0.01
    assert [before[0] - w.item(), before[1] - v.item()] == pytest.approx(rates)
    optimizer.reset()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.03]


@pytest.mark.parametrize("kind", [DeltaSGD, FedHyperSGD])
def test_parameters_added_later_begin_without_a_past(kind):
    own = {"same_batch": False} if kind is DeltaSGD else {}
    w, v = weight(1.0), weight(2.0)
    optimizer = kind([w], lr=0.01, **own)
    w.grad = torch.ones(1).double()
    optimizer.step()
    optimizer.add_param_group({"params": [v]})
    v.grad = torch.ones(1).double()
    optimizer.step()
    assert v.item() == pytest.approx(1.99)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_without_any_gradient_nothing_moves():
    w = weight(1.0)
    optimizer = DeltaSGD([w], same_batch=False)
    assert optimizer.step() is None
    assert w.item() == 1.0
