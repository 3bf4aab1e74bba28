"""Schedulers over the local steps of a round, against torch's."""

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import nn
from torch.optim import lr_scheduler

from fedexp.choices import client_config
from fedexp.clients import ClientSettings, Examples, client_app, module_arrays
from fedexp.clients.groups.group import ClientGroup
from fedexp.config import Config
from fedexp.simulation.grid import context_of

torch.set_num_threads(1)
COSINE = "cosine(eta-min=0.01)"
RUN = {
    **{"local-steps": 4, "batch-size": 5, "learning-rate": 0.2, "seed": 3, "server-round": 2},
    "local-scheduler": COSINE,
}
RNG = torch.Generator().manual_seed(0)
ROWS = Examples(torch.randn(30, 4, generator=RNG), torch.randint(3, (30,), generator=RNG))


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


APP = client_app(model, lambda context: (ROWS, ROWS))


def fitted(group=False, **config):
    config = RUN | {name.replace("_", "-"): value for name, value in config.items()}
    context = context_of(2, 1, config, RecordDict())
    made = ClientGroup.of(APP, "on", context) if group else APP.trainer
    args = config, module_arrays(model()), RecordDict()
    return made.fit(*args, [context])[0] if group else made.fit(*args, context)


def by_torch(make, scheduler=lambda x: lr_scheduler.CosineAnnealingLR(x, T_max=4, eta_min=0.01)):
    rng = np.random.default_rng([RUN["seed"], RUN["server-round"], 0])
    rng.integers(2**63)  # PyTorch's generator
    module = model()
    optimizer = make(module.parameters())
    steps, rates = scheduler(optimizer), []
    for rows in torch.from_numpy(ClientSettings(4, 5).batches(30, rng)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(ROWS.inputs[rows]), ROWS.targets[rows]).backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    return module_arrays(module), rates


def sgd(params):
    return torch.optim.SGD(params, lr=0.2)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.2, weight_decay=0.0)


@pytest.mark.parametrize(("name", "make"), [("sgd", sgd), ("adamw", adamw)])
def test_a_round_is_that_of_torchs_scheduler(name, make):
    expected, rates = by_torch(make)
    results = [fitted(local_optimizer=name)]
    results += [fitted(group=True)] if name == "sgd" else []
    for result in results:
        for key, x in expected.items():
            np.testing.assert_allclose(result.arrays[key], x, 1e-5, 1e-6)
        assert result.metrics["learning-rate"] == pytest.approx(rates[-1])
    settings = ClientSettings.of(RUN)
    assert settings.rates() == pytest.approx(rates)
    assert settings.path_length == pytest.approx(sum(rates))  # SCAFFOLD divides by it
    assert settings.local_work(0.2) == pytest.approx(sum(rates) / 0.2)


def test_a_round_begins_at_its_own_rate():
    settings = ClientSettings.of(RUN | {"learning-rate": 0.04})
    assert settings.rates()[0] == pytest.approx(0.04)
    assert settings.rates()[3] > 0.01


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"local_scheduler": "cosin"}, r"local-scheduler='cosin'.*Did you mean 'cosine'"),
        ({"local_optimizer": "hypersgd"}, "hypersgd tunes its own rate"),
        ({"local_optimizer": "learned-step"}, "learned-step takes local-steps at a rate of its"),
        ({"learning_rate_exponent": 0.5}, "learning-rate-exponent=0.5 is a schedule of local"),
    ],
)
def test_what_does_not_go_together_is_said_before_round_1(flags, said):
    with pytest.raises(ValueError, match=said):
        client_config(Config(**{"local_scheduler": "cosine", **flags}), "fedavg")
