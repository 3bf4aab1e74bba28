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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_integers_of_any_kind_are_classes(dtype):
    expected = torch.nn.functional.cross_entropy(OUTPUTS[0], CLASSES[0])
    assert torch.equal(default_loss(OUTPUTS[0], CLASSES[0].to(dtype)), expected)
    assert torch.equal(default_loss(OUTPUTS[0], CLASSES[0].to(dtype).unsqueeze(1)), expected)
    losses, slope = each_slope(default_loss, OUTPUTS, CLASSES.to(dtype))
    alone, slopes = each_slope(default_loss, OUTPUTS, CLASSES)
    torch.testing.assert_close(losses, alone)
    torch.testing.assert_close(slope, slopes)
    torch.testing.assert_close(each_loss(default_loss, OUTPUTS, CLASSES.to(dtype)), alone)


def test_a_last_dimension_of_one_is_dropped_and_nothing_broadcast():
    x, y = OUTPUTS[0, :, 0], OUTPUTS[1, :, 0]
    expected = (x - y).square().mean()
    for outputs, targets in ((x, y[:, None]), (x[:, None], y), (x[:, None], y[:, None])):
        assert default_loss(outputs, targets) == expected
    with pytest.raises(ValueError, match=r"outputs=\[5\], targets=\[5, 5\]\): must have one sha"):
        default_loss(x, y.expand(5, 5))
    with pytest.raises(ValueError, match=r"outputs=\[5, 4\], targets=\[5\]\): must have one sha"):
        default_loss(OUTPUTS[0], y)
    with pytest.raises(ValueError, match=r"outputs=\[5\], targets=\[5\]\): outputs must be \[bat"):
        default_loss(x, CLASSES[0])
    with pytest.raises(ValueError, match="outputs=tuple"):
        default_loss((x, y), y)
