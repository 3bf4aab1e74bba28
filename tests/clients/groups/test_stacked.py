"""Losses of a stack of clients against the same module, client by client."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedexp.clients import default_loss
from fedexp.clients.groups.stacked import losses_of

CLIENTS, BATCH, CLASSES = 3, 5, 4
RNG = torch.Generator().manual_seed(0)


class Doubled(nn.Linear):
    """A subclass of a known layer that does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(6, CLASSES)
    layer.register_forward_hook(lambda module, args, out: out * 3)
    return nn.Sequential(nn.Flatten(), layer)


MODELS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)),
    "without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES, bias=False)),
    "nested": lambda: nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(6, 5), nn.GELU()), nn.Linear(5, CLASSES)
    ),
    "more dimensions": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4)
    ),
    "subclass": lambda: nn.Sequential(nn.Flatten(), Doubled(6, CLASSES)),
    "hook": hooked,
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(4, CLASSES)
    ),
}


def stack(module):
    return {
        name: torch.randn(CLIENTS, *p.shape, generator=RNG) for name, p in module.named_parameters()
    }


def one_by_one(module, loss, params, inputs, targets):
    outputs = [
        loss(
            functional_call(module, {k: p[i] for k, p in params.items()}, (inputs[i],)), targets[i]
        )
        for i in range(CLIENTS)
    ]
    return torch.stack(outputs)


def squares(outputs, targets):
    return (outputs.sum(1) - targets).square().mean()


@pytest.mark.parametrize("loss", [default_loss, squares], ids=["cross-entropy", "own loss"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_each_clients_own(name, loss):
    module = MODELS[name]()
    params = {k: p.requires_grad_() for k, p in stack(module).items()}
    inputs = torch.randn(CLIENTS, BATCH, 2, 3, generator=RNG)
    targets = torch.randint(CLASSES, (CLIENTS, BATCH), generator=RNG)
    got = losses_of(module, loss)(params, inputs, targets)
    expected = one_by_one(module, loss, params, inputs, targets)
    torch.testing.assert_close(got, expected)
    leaves = list(params.values())
    for a, b in zip(
        torch.autograd.grad(got.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_regression_and_targets_to_leave_out():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.Flatten(0))
    params, inputs = stack(module), torch.randn(CLIENTS, BATCH, 6, generator=RNG)
    values = torch.randn(CLIENTS, BATCH, generator=RNG)
    torch.testing.assert_close(
        losses_of(module, default_loss)(params, inputs, values),
        one_by_one(module, default_loss, params, inputs, values),
    )
    module = MODELS["linear"]()
    params = stack(module)
    classes = torch.tensor([[0, -100, 1, -100, 2]] * CLIENTS)
    torch.testing.assert_close(
        losses_of(module, default_loss)(params, inputs, classes),
        one_by_one(module, default_loss, params, inputs, classes),
    )
