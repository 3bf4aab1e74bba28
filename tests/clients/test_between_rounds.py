"""What a local optimizer carries from round to round, against one loop over all of the rounds."""

import numpy as np
import pytest
import torch
from builders import record
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fedexp.choices import client_config
from fedexp.clients import ClientSettings, Examples, client_app, module_arrays
from fedexp.clients.client import model_in
from fedexp.config import Config
from fedexp.readers import optimizer_fields
from fedexp.simulation.grid import context_of

torch.set_num_threads(1)
STEPS, BATCH, LR = 3, 8, 0.02
RUN = {"local-steps": STEPS, "batch-size": BATCH, "learning-rate": LR, "seed": 3}


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, 3)


def data(context=None):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32))
    return (Examples(x, torch.from_numpy(rng.integers(0, 3, 30))),) * 2


def two_rounds(name, runs=(1.0, 1.0), **told):
    """A client's model after two rounds, the second of which begins where the first one ended."""
    app, context = client_app(model, data), context_of(2, 1, RUN, RecordDict())
    arrays = module_arrays(model())
    for t in (1, 2):
        settings = {"server-round": t, "local-optimizer": name, "run-id": runs[t - 1]}
        settings |= {k.replace("_", "-"): v[t - 1] for k, v in told.items()}
        body = RecordDict({"arrays": record(arrays), "config": ConfigRecord(settings)})
        fitted = app.trainer.fit(app.trainer.config(body, context), model_in(body), body, context)
        arrays = {k: np.array(x) for k, x in fitted.arrays.items()}
    return arrays, context


def by_hand(make, rates=(LR, LR), anew=False):
    net, (examples, _) = model(), data()
    optimizer = make(net.parameters())
    for t in (1, 2):
        if anew and t == 2:
            optimizer = make(net.parameters())
        optimizer.param_groups[0]["lr"] = rates[t - 1]
        rng = np.random.default_rng([RUN["seed"], t, 0])
        rng.integers(2**63)  # of dropout, which there is none of
        for rows in torch.from_numpy(ClientSettings(STEPS, BATCH).batches(30, rng)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(examples.inputs[rows]), examples.targets[rows])
            loss.backward()
            optimizer.step()
    return module_arrays(net)


def adamw(params):
    return torch.optim.AdamW(params, lr=LR, weight_decay=0.0)


def momentum(params):
    return torch.optim.SGD(params, lr=LR, momentum=0.9)


def prodigy(params):
    return pytest.importorskip("prodigyopt").Prodigy(params, lr=1.0)


WRITTEN = {"adamw": adamw, "sgd(momentum=0.9)": momentum, "prodigy": prodigy}
CARRY, FRESH = {"hyper_between_rounds": ("carry",) * 2}, {"hyper_between_rounds": ("fresh",) * 2}


def assert_same(a, b):
    for name in b:
        np.testing.assert_allclose(a[name], b[name], 1e-5, 1e-7)


@pytest.mark.parametrize("name", WRITTEN)
def test_carried_states_are_those_of_one_long_loop(name):
    rates = (1.0, 1.0) if name == "prodigy" else (LR, LR)
    found, context = two_rounds(name, **CARRY)
    assert context.state
    assert_same(found, by_hand(WRITTEN[name], rates))
    fresh, context = two_rounds(name, **FRESH)
    assert not context.state
    anew = by_hand(WRITTEN[name], rates, anew=True)
    assert_same(fresh, anew)
    assert any(not np.allclose(found[k], fresh[k]) for k in fresh)


def test_a_rounds_own_rate_replaces_the_one_of_the_carried_state():
    found, _ = two_rounds("adamw", **CARRY, learning_rate=(LR, LR / 4))
    assert_same(found, by_hand(adamw, (LR, LR / 4)))


def test_a_state_of_another_run_is_not_used():
    found, _ = two_rounds("adamw", (1.0, 2.0), **CARRY)
    assert_same(found, by_hand(adamw, anew=True))


def test_muons_two_halves_are_both_carried():
    carried, _ = two_rounds("muon", **CARRY)
    fresh, _ = two_rounds("muon", **FRESH)
    assert all(not np.allclose(carried[k], fresh[k]) for k in ("weight", "bias"))


@pytest.mark.parametrize("name", ["sgd", "polyak", "schedule-free-sgd", "learned-step"])
def test_some_optimizers_keep_nothing_and_do_not_read_the_setting(name):
    if "free" in name:
        pytest.importorskip("schedulefree")
    assert "hyper_between_rounds" not in optimizer_fields(name)
    config = Config(hyper_between_rounds="carry", local_optimizer=name)
    assert client_config(config, "fedavg")["hyper-between-rounds"] == "fresh"


def test_the_server_averages_no_states():
    config = Config(hyper_between_rounds="average", local_optimizer="adamw")
    with pytest.raises(ValueError, match=r"adamw keeps more than a learning rate.*Use carry or fr"):
        client_config(config, "fedavg")
    assert client_config(config, "fedavg+hypersgd")["hyper-between-rounds"] == "average"
    carried = Config(hyper_between_rounds="carry", local_optimizer="adamw")
    assert client_config(carried, "fedavg")["hyper-between-rounds"] == "carry"
