"""Local optimizers of a federation: alone and in groups, within a round and between rounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import record
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fedexp.clients import LOCAL_OPTIMIZERS, ClientSettings, Examples, client_app, module_arrays
from fedexp.clients.client import model_in
from fedexp.clients.groups.group import ClientGroup
from fedexp.clients.named import optimizer_markdown
from fedexp.simulation.grid import context_of

torch.set_num_threads(1)
RUN = {"local-steps": 6, "batch-size": 8, "learning-rate": 0.05, "seed": 3}
STEPPING = [name for name, entry in LOCAL_OPTIMIZERS.items() if entry.functional]
TUNING = [name for name, entry in LOCAL_OPTIMIZERS.items() if entry.adapts_lr]
NODES = range(2, 7)


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data(context):
    rng = np.random.default_rng(int(context.node_config["partition-id"]))
    x = torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 30))
    return (Examples(x, y),) * 2


class Nodes:
    """Five clients with states of their own, asked one by one or as a group."""

    def __init__(self, vectorize="off", app=None):
        self.app = app or client_app(model, data)
        self.contexts = [context_of(n, 5, RUN, RecordDict()) for n in NODES]
        self.cohort = ClientGroup.of(self.app, vectorize, self.contexts[0])

    def train(self, name, server_round=1, **config):
        settings = {"server-round": server_round, "local-optimizer": name}
        settings |= {k.replace("_", "-"): v for k, v in config.items()}
        body = RecordDict(
            {"arrays": record(module_arrays(model())), "config": ConfigRecord(settings)}
        )
        trainer, arrays = self.app.trainer, model_in(body)
        config = trainer.config(body, self.contexts[0])
        if self.cohort:
            return self.cohort.fit(config, arrays, body, self.contexts)
        return [trainer.fit(config, arrays, body, context) for context in self.contexts]


def rates(fitted):
    return [one.metrics["learning-rate"] for one in fitted]


def assert_close(a, b):
    for x, y in zip(a, b, strict=True):
        for name in x.arrays:
            np.testing.assert_allclose(x.arrays[name], y.arrays[name], 2e-4, 2e-6)
        assert x.metrics["train-loss"] == pytest.approx(y.metrics["train-loss"], rel=1e-4)
    assert rates(a) == pytest.approx(rates(b), rel=1e-3)


@pytest.mark.parametrize("height", [1, 2])
@pytest.mark.parametrize("name", STEPPING)
def test_a_group_of_clients_trains_as_each_of_them_alone(name, height):
    # In round 1 ``learned-step`` tunes, for which its clients leave the group.
    settings = {"hyper_height": height, "hyper_learning_rate": 0.1, "server_round": 2}
    assert_close(Nodes("on").train(name, **settings), Nodes().train(name, **settings))


@pytest.mark.parametrize("name", ["hypersgd", "hyperadam", "delta-sgd"])
def test_carried_rates_are_each_clients_own_in_a_group_too(name):
    group, alone = Nodes("on"), Nodes()
    for server_round in (1, 2, 3):
        told = {"server_round": server_round, "hyper_between_rounds": "carry"}
        told |= {"learning_rate": 5.0} if name == "delta-sgd" else {}  # beyond 1 / smoothness
        a, b = group.train(name, **told), alone.train(name, **told)
        assert_close(a, b)
    assert len(set(rates(a))) == len(NODES)


@pytest.mark.parametrize("name", TUNING)
def test_tuning_optimizers_report_the_rate_that_they_ended_at(name):
    # Delta-SGD's grows alike everywhere until it meets the smoothness of the client, and Polyak's
    # is what it is given where that is less than the loss allows.
    told = {"delta-sgd": {"learning_rate": 5.0}, "polyak": {"learning_rate": 500.0}}
    found = rates(Nodes().train(name, **told.get(name, {})))
    assert all(0 < rate < 1e3 and rate != RUN["learning-rate"] for rate in found)
    assert len(set(found)) > 1


def test_plain_sgd_reports_the_rate_it_was_given():
    assert rates(Nodes().train("sgd")) == [RUN["learning-rate"]] * 5
    assert rates(Nodes("on").train("sgd", learning_rate_decay=0.5)) == [0.025] * 5


def test_a_rate_moves_by_the_cosine_of_the_gradient_and_the_last_step():
    # Written out: SGD, and η ← η exp(κ cos(g, g_last)) from the second step on.
    kappa, settings = 0.3, ClientSettings(lr=0.05, optimizer="hypersgd", hyper_lr=0.3)
    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = LOCAL_OPTIMIZERS["hypersgd"]([w], settings)
    x, eta, last = w.detach().numpy().copy(), 0.05, None
    rng = np.random.default_rng(0)
    for _ in range(10):
        g = rng.normal(size=3)
        if last is not None:
            eta *= np.exp(kappa * (g @ last) / np.linalg.norm(g) / np.linalg.norm(last))
        x, last = x - eta * g, g
        w.grad = torch.from_numpy(g)
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), x, rtol=1e-10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(eta, rel=1e-10)


def test_fresh_clients_keep_nothing_and_begin_every_round_alike():
    nodes = Nodes()
    first, second = nodes.train("hypersgd"), nodes.train("hypersgd")
    assert rates(first) == rates(second)
    assert not any(context.state for context in nodes.contexts)


def test_a_carried_rate_is_where_the_next_round_starts():
    nodes = Nodes()
    kept = rates(nodes.train("hypersgd", hyper_between_rounds="carry"))
    # With next to no tuning a round ends where it starts.
    told = {"hyper_between_rounds": "carry", "hyper_learning_rate": 1e-12}
    again = rates(nodes.train("hypersgd", server_round=2, **told))
    assert again == pytest.approx(kept, rel=1e-9)


def test_a_rate_carried_in_another_run_is_not_used():
    nodes = Nodes()
    nodes.train("hypersgd", hyper_between_rounds="carry", run_id=1.0)
    told = {"hyper_between_rounds": "carry", "hyper_learning_rate": 1e-12}
    again = rates(nodes.train("hypersgd", run_id=2.0, **told))
    assert again == pytest.approx([RUN["learning-rate"]] * 5, rel=1e-9)


@pytest.mark.parametrize("vectorize", ["on", "off"])
def test_an_averaged_rate_is_where_every_client_starts(vectorize):
    told = {"hyper_between_rounds": "average", "hyper_learning_rate": 1e-12}
    found = rates(Nodes(vectorize).train("hypersgd", mean_learning_rate=0.02, **told))
    assert found == pytest.approx([0.02] * 5, rel=1e-9)


def test_plain_sgd_keeps_its_schedule_under_every_policy():
    nodes = Nodes()
    told = {"hyper_between_rounds": "carry", "learning_rate_decay": 0.5}
    assert rates(nodes.train("sgd", **told)) == [0.025] * 5
    assert rates(nodes.train("sgd", server_round=2, **told)) == [0.0125] * 5


@pytest.mark.parametrize("name", STEPPING)
def test_a_client_whose_loss_is_not_finite_says_so_and_keeps_nothing(name):
    def broken(context):
        x = torch.full((30, 4), float("inf"))
        return (Examples(x, torch.zeros(30, dtype=torch.int64)),) * 2

    nodes = Nodes(app=client_app(model, broken))
    with pytest.raises(FloatingPointError, match="train loss is"):
        nodes.train(name, hyper_between_rounds="carry")
    group = Nodes("on", client_app(model, broken))
    fitted = group.train(name, hyper_between_rounds="carry")
    assert all("FloatingPointError" in one.refused for one in fitted)
    assert not any(context.state for context in (*nodes.contexts, *group.contexts))


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"local-optimizer='sdg'.*hypersgd"):
        Nodes().train("sdg")


@pytest.mark.parametrize("name", ["delta-sgd", "fedhyper", "polyak"])
def test_weight_decay_is_refused_where_there_is_none(name):
    settings = ClientSettings(weight_decay=0.1)
    with pytest.raises(ValueError, match=f"weight_decay=0.1.*{name}"):
        LOCAL_OPTIMIZERS[name]([nn.Parameter(torch.zeros(1))], settings)


def test_an_optimizer_of_ones_own_has_its_rate_reported_and_is_not_vectorised():
    app = client_app(model, data, lambda params, s: torch.optim.Adam(params, lr=2 * s.lr))
    assert rates(Nodes(app=app).train("hypersgd")) == [0.1] * 5
    with pytest.raises(ValueError, match="no functional form"):
        Nodes("on", app)


def test_the_documents_table_is_the_one_that_the_flag_reads():
    path = Path(__file__).parents[2] / "docs" / "hypergradients.md"
    assert optimizer_markdown() in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STEPPING)
def test_both_forms_of_an_optimizer_read_the_same_settings(name):
    entry = LOCAL_OPTIMIZERS[name]
    assert entry.functional is not None
    assert entry.reads() == replace(entry, functional=None).reads()


@pytest.mark.parametrize("name", [x for x in LOCAL_OPTIMIZERS if LOCAL_OPTIMIZERS[x].known])
def test_the_known_settings_of_an_optimizer_are_those_that_making_it_reads(name):
    entry = LOCAL_OPTIMIZERS[name]
    assert entry.reads() == replace(entry, known=()).reads()
