"""Polyak's step against the formula of Loizou et al. 2021 and on quadratics."""

import numpy as np
import pytest
import torch

from fedexp.clients import LOCAL_OPTIMIZERS, ClientSettings
from fedexp.clients.polyak_sgd import PolyakSGD


def descend(curvatures, start, num_steps, floor=0.0, **settings):
    """Rates and points on ``½ Σ hᵢ wᵢ² + floor``."""
    h = torch.tensor(curvatures, dtype=torch.float64)
    w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer, rates = PolyakSGD([w], **settings), []

    def closure():
        w.grad = h * w.detach()
        return 0.5 * (h * w.detach().square()).sum() + floor

    for _ in range(num_steps):
        optimizer.step(closure)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates, w.detach().numpy()


def test_a_run_on_a_quadratic_is_the_papers_recursion():
    h, w = np.array([1.0, 5.0]), np.array([2.0, -1.0])
    expected = []
    for _ in range(6):
        loss, g = 0.5 * h @ w**2 + 3.0, h * w
        expected.append(min((loss - 2.5) / (0.7 * g @ g), 0.9))
        w = w - expected[-1] * g
    rates, found = descend([1.0, 5.0], [2.0, -1.0], 6, 3.0, lr=0.9, c=0.7, least_loss=2.5)
    assert rates == pytest.approx(expected, rel=1e-12)
    assert {rate == 0.9 for rate in rates} == {True, False}  # the bound holds in some steps
    np.testing.assert_allclose(found, w, rtol=1e-12)


def test_with_c_of_a_half_it_steps_to_the_minimum_of_a_round_bowl():
    rates, w = descend([4.0, 4.0], [3.0, 1.0], 1, lr=100.0)
    assert rates == pytest.approx([1 / 4])
    np.testing.assert_allclose(w, 0, atol=1e-12)


def test_at_the_least_loss_nothing_moves():
    rates, w = descend([4.0], [3.0], 2, lr=1.0, least_loss=1e6)
    assert rates == [0.0, 0.0]
    assert w.tolist() == [3.0]
    assert descend([4.0], [0.0], 1, lr=1.0)[0] == [1.0]  # no gradient: any step is none


@pytest.mark.parametrize("wrong", [{"c": 0.0}, {"c": float("inf")}, {"least_loss": float("nan")}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"PolyakSGD\({next(iter(wrong))}="):
        PolyakSGD([torch.nn.Parameter(torch.ones(1))], **wrong)


def test_a_step_needs_the_loss():
    optimizer = PolyakSGD([torch.nn.Parameter(torch.ones(1))])
    for closure in (None, lambda: None):
        with pytest.raises(ValueError, match="a closure that returns the loss"):
            optimizer.step(closure)


@pytest.mark.parametrize("changed", [{"proximal_mu": 0.1}, {"max_grad_norm": 1.0}])
def test_a_gradient_that_is_not_the_losss_own_is_refused(changed):
    settings = ClientSettings(optimizer="polyak", **changed)
    with pytest.raises(ValueError, match="polyak needs the gradient of its loss as it is"):
        settings.check_optimizer(LOCAL_OPTIMIZERS["polyak"])
    settings.check_optimizer(LOCAL_OPTIMIZERS["fedhyper"])
