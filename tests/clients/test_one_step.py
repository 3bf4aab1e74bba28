"""Clients of one local step against the same clients by torch's SGD."""

import numpy as np
import pytest
import torch
from builders import merging_if
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from fedexp.clients import ClientSettings, Examples, client_app, default_loss, module_arrays
from fedexp.clients.groups import one_step
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import context_of
from fedexp.strategies import FedExP
from fedexp.sums import Factored

SETTINGS = {"local-steps": 1, "batch-size": 8, "learning-rate": 0.5, "seed": 3}
LARGE = "1.weight"


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(600, 1200), nn.ReLU(), nn.Linear(1200, 3))


def data(context):
    rng = np.random.default_rng(int(context.node_config["partition-id"]))
    x = torch.from_numpy(rng.normal(size=(30, 600)).astype(np.float32))
    return (Examples(x, torch.from_numpy(rng.integers(0, 3, 30))),) * 2


def fitted(app=None, arrays=None, **settings):
    trainer = (app or client_app(model, data)).trainer
    arrays = arrays or {k: x.copy() for k, x in module_arrays(model()).items()}
    context = context_of(
        2, 4, SETTINGS | {k.replace("_", "-"): v for k, v in settings.items()}, None
    )
    config = trainer.config(RecordDict(), context)
    return arrays, one_step.fit(trainer, config, arrays, RecordDict(), context), context, trainer


def by_torch(context, trainer, config=SETTINGS):
    module, (examples, _) = model(), data(context)
    rng = trainer.generator(config, context)
    rng.integers(2**63)  # the trainer's seed for dropout
    (rows,) = ClientSettings(1, 8, 0.5).batches(30, rng)
    loss = default_loss(module(examples.inputs[rows]), examples.targets[rows])
    loss.backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    return module_arrays(module), float(loss.detach())


def test_a_large_weight_stays_in_factors_and_is_the_one_that_sgd_gives():
    _, got, context, trainer = fitted()
    expected, loss = by_torch(context, trainer)
    assert list(got.arrays) == list(expected)
    assert [name for name, x in got.arrays.items() if isinstance(x, Factored)] == [LARGE]
    assert got.metrics["train-loss"] == pytest.approx(loss, rel=1e-5)
    for name, x in expected.items():
        np.testing.assert_allclose(np.asarray(got.arrays[name]), x, rtol=1e-4, atol=1e-6)


def test_the_plain_loop_has_no_such_path():
    arrays, one, context, trainer = fitted()
    config = trainer.config(RecordDict(), context)
    plain = trainer.fit(config, arrays, RecordDict(), context)
    assert not any(isinstance(x, Factored) for x in plain.arrays.values())
    assert plain.metrics == pytest.approx(one.metrics, rel=1e-5)
    for name, x in plain.arrays.items():
        np.testing.assert_allclose(np.asarray(one.arrays[name]), x, rtol=1e-4, atol=1e-6)


def test_what_was_broadcast_stays_as_it_is():
    arrays, *_ = fitted()
    for name, x in module_arrays(model()).items():
        np.testing.assert_array_equal(arrays[name], x)


OTHERWISE = {
    "two steps": {"local_steps": 2},
    "weight decay": {"weight_decay": 0.1},
    "a proximal term": {"proximal_mu": 0.1},
    "clipping": {"max_grad_norm": 0.1},
    "a loss to be reported": {"final_loss": True},
    "another optimizer": {"local_optimizer": "hypersgd"},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_any_other_client_writes_its_model(name):
    _, got, *_ = fitted(**OTHERWISE[name])
    assert not any(isinstance(x, Factored) for x in got.arrays.values())


def test_a_model_of_doubles_is_written():
    app = client_app(lambda context: model().double(), doubles)
    arrays = {k: x.astype(np.float64) for k, x in module_arrays(model()).items()}
    _, got, *_ = fitted(app, arrays)
    assert not any(isinstance(x, Factored) for x in got.arrays.values())


def doubles(context):
    examples, _ = data(context)
    return (Examples(examples.inputs.double(), examples.targets),) * 2


def test_a_message_carries_the_whole_matrix():
    body = RecordDict(
        {"arrays": ArrayRecord(model().state_dict()), "config": ConfigRecord({"server-round": 1})}
    )
    grid = SerialGrid(client_app(model, data), 2, run_config=SETTINGS)
    (reply,) = grid.send_and_receive([Message(body, 2, "train")])
    got = reply.content["arrays"].to_torch_state_dict()
    context = context_of(2, 2, SETTINGS, None)
    expected, _ = by_torch(context, grid.client_app.trainer, SETTINGS | {"server-round": 1})
    for name, x in expected.items():
        np.testing.assert_allclose(got[name].numpy(), x, rtol=1e-4, atol=1e-6)


def rounds(*, merged):
    """Two rounds' model and the metrics of the last."""
    grid = SerialGrid(client_app(model, data), 4, run_config=SETTINGS, vectorize="auto")
    result = FedExP(fraction_evaluate=0.0, seed=1, epsilon=0.0).start(
        merging_if(merged, grid), ArrayRecord(model().state_dict()), num_rounds=2
    )
    metrics = dict(result.train_metrics_clientapp[2])
    return {k: x.numpy() for k, x in result.arrays.items()}, metrics


def test_a_round_of_them_is_merged_without_any_matrix_and_gives_the_same(monkeypatch):
    expected, metrics = rounds(merged=False)
    monkeypatch.delattr(Factored, "__array__")
    got, own = rounds(merged=True)
    assert metrics["server-step-size"] > 1.1
    assert own == pytest.approx(metrics, rel=1e-4)
    for name, x in expected.items():
        np.testing.assert_allclose(got[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("vectorize", "used"), [("auto", True), ("off", False)])
def test_whoever_wants_no_groups_gets_no_products(monkeypatch, vectorize, used):
    made, real = [], one_step.one_step
    monkeypatch.setattr(one_step, "one_step", lambda *args: made.append(args) or real(*args))
    grid = SerialGrid(client_app(model, data), 2, run_config=SETTINGS, vectorize=vectorize)
    start = ArrayRecord(model().state_dict())
    FedExP(fraction_evaluate=0.0, seed=1).start(grid, start, num_rounds=1)
    assert bool(made) == used


def test_a_round_that_overflows_is_left_out():
    config = SETTINGS | {"learning-rate": 1e30}
    grid = SerialGrid(client_app(model, data), 2, run_config=config, vectorize="auto")
    start = ArrayRecord(model().state_dict())
    result = FedExP(fraction_evaluate=0.0, seed=1).start(grid, start, num_rounds=1)
    metrics = dict(result.train_metrics_clientapp[1])
    assert metrics["num-clients"] + metrics["num-failures"] == 2
    assert all(np.isfinite(x.numpy()).all() for x in result.arrays.values())
