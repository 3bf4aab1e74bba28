"""Steps of a chain of layers against torch's own SGD, client by client."""

import copy

import pytest
import torch
from torch import nn

from fedexp.clients import default_loss
from fedexp.clients.groups.chain import Chain

CLIENTS, STEPS, BATCH = 3, 4, 5
RNG = torch.Generator().manual_seed(0)


def squares(outputs, targets):
    return (outputs.mean(1) - targets).square().mean()


def with_twice(act):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), act, nn.Linear(5, 6), act, nn.Linear(6, 4))


MODELS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4)),
    "no container": lambda: nn.Linear(3, 4),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False)),
    "deep": lambda: nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(6, 5), nn.GELU()), nn.Linear(5, 4), nn.Tanh()
    ),
    "two linear layers in a row": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.Flatten()
    ),
    "an activation that comes twice": lambda: with_twice(nn.Tanh()),
    "in place": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)
    ),
    "activation first": lambda: nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(6, 4)),
    "a layer on every row": lambda: nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 4)),
    "a weight of many blocks": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 90_000)),
}


def stepped(module, loss, batches, *, lr, decay):
    """The module of one client after its steps, and the sum of its losses."""
    module = copy.deepcopy(module)
    optimizer, total = torch.optim.SGD(module.parameters(), lr=lr, weight_decay=decay), 0.0
    for inputs, targets in batches:
        optimizer.zero_grad()
        value = loss(module(inputs), targets)
        value.backward()
        optimizer.step()
        total += float(value.detach())
    return module, total


@pytest.mark.parametrize("clients", [1, CLIENTS])
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("loss", [default_loss, squares], ids=["cross-entropy", "own loss"])
@pytest.mark.parametrize("name", MODELS)
def test_it_takes_the_steps_of_sgd(name, loss, decay, clients):
    module = MODELS[name]()
    shape = (clients, BATCH, 3) if name == "no container" else (clients, BATCH, 2, 3)
    batches = [
        (
            torch.randn(shape, generator=RNG),
            torch.randint(4, (clients, BATCH), generator=RNG),
        )
        for _ in range(STEPS)
    ]
    chain = Chain.of(module, loss)
    start = {k: p.detach().clone() for k, p in module.named_parameters()}
    params, losses = chain.descend(start, batches, rates=[0.3] * STEPS, decay=decay)
    assert losses.isfinite().all()
    for i in range(clients):
        own = [(x[i], y[i]) for x, y in batches]
        expected, total = stepped(module, loss, own, lr=0.3, decay=decay)
        assert float(losses[i]) == pytest.approx(total, rel=1e-4)
        for key, p in expected.named_parameters():
            torch.testing.assert_close(params[key][i], p.detach(), rtol=1e-4, atol=1e-5)
    for key, p in module.named_parameters():
        assert torch.equal(start[key], p)


def tied():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    return module


def hooked(kind):
    module = nn.Sequential(nn.Linear(4, 4))
    getattr(module[0], kind)(lambda *args: None)
    return module


def gradient_hooked():
    module = nn.Sequential(nn.Linear(4, 4))
    module[0].weight.register_hook(lambda grad: 2 * grad)
    return module


def frozen():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].weight.requires_grad_(False)
    return module


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.layer(x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def repeated():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def with_a_buffer():
    module = nn.Sequential(nn.Linear(4, 4))
    module.register_buffer("more", torch.ones(1))
    return module


def with_a_parameter():
    module = nn.Sequential(nn.Linear(4, 4))
    module.register_parameter("more", nn.Parameter(torch.ones(1)))
    return module


OTHERS = {
    "tied weights": tied,
    "a layer that comes twice": repeated,
    "a container's parameter": with_a_parameter,
    "a container's buffer": with_a_buffer,
    "hook before": lambda: hooked("register_forward_pre_hook"),
    "hook after": lambda: hooked("register_forward_hook"),
    "backward hook": lambda: hooked("register_full_backward_hook"),
    "hook on a gradient": gradient_hooked,
    "frozen weight": frozen,
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
    "a forward of its own": Residual,
    "subclass": lambda: nn.Sequential(Doubled(4, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
    "nothing to learn": lambda: nn.Sequential(nn.Flatten(), nn.ReLU()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_module_is_no_chain(name):
    assert Chain.of(OTHERS[name](), default_loss) is None
