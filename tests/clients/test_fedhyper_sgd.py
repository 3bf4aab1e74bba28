"""FedHyper's client scheduler against the recursion by hand."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexp.clients.fedhyper_sgd import FedHyperSGD


def weight(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def rates(optimizer, w, gradients):
    seen = []
    for gradient in gradients:
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_the_rate_follows_the_published_recursion():
    gradients = [[0.2, 0.1], [0.1, 0.2], [-0.3, 0.2], [0.5, 0.9], [0.6, 0.8]]
    delta = [0.4, -0.2]
    w, beta, expected = weight(1.0, 1.0), 1.0, [0.01]
    for last, g in pairwise(gradients):
        agreement = last[0] * g[0] + last[1] * g[1]
        globally = delta[0] * g[0] + delta[1] * g[1]
        beta = min(max(beta * min(1.1, 1 + agreement + 0.05 * globally), 0.1), 10)
        expected.append(0.01 * beta)
    optimizer = FedHyperSGD([w], 0.01, global_update=[torch.tensor(delta)], global_weight=0.05)
    assert rates(optimizer, w, gradients) == pytest.approx(expected, rel=1e-7)
    moved = sum(torch.tensor(g).double() * r for g, r in zip(gradients, expected, strict=True))
    torch.testing.assert_close(w.detach(), 1 - moved, rtol=1e-6, atol=0)


def test_the_rate_stays_within_ten_times_of_its_start():
    w = weight(1.0)
    assert rates(FedHyperSGD([w], 0.01), w, [[1.0]] * 40)[-1] == pytest.approx(0.1)
    assert rates(FedHyperSGD([w], 0.01), w, [[9.0], [-9.0]] * 3)[-1] == pytest.approx(0.001)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3))
def test_normalised_the_scale_of_the_loss_does_not_matter(scale):
    gradients = [[0.2, 0.1], [0.1, 0.2], [-0.3, 0.2], [0.5, 0.9]]
    seen = []
    for factor in (1.0, scale):
        w = weight(1.0, 1.0)
        optimizer = FedHyperSGD(
            [w], 0.01, global_update=[torch.tensor([0.4, -0.2])], normalised=True
        )
        seen.append(rates(optimizer, w, [[factor * x for x in g] for g in gradients]))
    assert seen[0] == pytest.approx(seen[1])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, -2.0, 1e300, math.inf, math.nan]), min_size=1))
@pytest.mark.parametrize("normalised", [False, True])
def test_the_rate_stays_in_range_whatever_the_gradients(normalised, gradients):
    w = weight(1.0)
    seen = rates(FedHyperSGD([w], 0.01, normalised=normalised), w, [[g] for g in gradients])
    assert all(0.000999 < rate < 0.1001 for rate in seen)


def test_what_it_cannot_use_is_refused():
    w = weight(1.0, 2.0)
    with pytest.raises(ValueError, match=r"FedHyperSGD\(lr=0\): must be positive"):
        FedHyperSGD([w], 0)
    with pytest.raises(ValueError, match=r"bound=0.5, max_growth=1.1"):
        FedHyperSGD([w], bound=0.5)
    with pytest.raises(ValueError, match=r"global_update=1 tensors"):
        FedHyperSGD([w], global_update=[torch.ones(3)])
    w.grad = torch.ones(2).double().to_sparse()
    with pytest.raises(ValueError, match="only dense"):
        FedHyperSGD([w]).step()
