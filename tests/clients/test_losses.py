"""The slope of a loss in the outputs against autograd."""

import pytest
import torch

from fedexp.clients import default_loss
from fedexp.clients.losses import each_loss, each_slope

RNG = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(3, 5, 4, generator=RNG)
CLASSES = torch.randint(4, (3, 5), generator=RNG)


def smoothed(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


CASES = {
    "classes": (default_loss, OUTPUTS, CLASSES),
    "one client": (default_loss, OUTPUTS[:1], CLASSES[:1]),
    "some left out": (default_loss, OUTPUTS, CLASSES.where(CLASSES > 0, -100)),
    "large outputs": (default_loss, 200 * OUTPUTS, CLASSES),
    "double": (default_loss, OUTPUTS.double(), CLASSES),
    "images of classes": (
        default_loss,
        torch.randn(3, 5, 4, 2, generator=RNG),
        torch.randint(4, (3, 5, 2), generator=RNG),
    ),
    "values": (default_loss, OUTPUTS, torch.randn(3, 5, 4, generator=RNG)),
    "own loss": (smoothed, OUTPUTS, CLASSES),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_slopes_are_those_of_autograd(name):
    loss, outputs, targets = CASES[name]
    leaf = outputs.clone().requires_grad_()
    expected = torch.stack([loss(x, y) for x, y in zip(leaf, targets, strict=True)])
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    losses, slope = each_slope(loss, outputs, targets)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(slope, gradient)
    if outputs.dtype == torch.float64:  # five targets: a fifth is no number of floats
        torch.testing.assert_close(slope, gradient, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(each_loss(loss, outputs, targets), expected.detach())
    assert torch.equal(outputs, leaf)
