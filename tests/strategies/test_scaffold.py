"""SCAFFOLD and FedProx on quadratics, against the authors' formulae written out."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedexp.clients import Examples, client_app, module_arrays
from fedexp.clients.client import model_in
from fedexp.clients.groups.group import ClientGroup
from fedexp.records import from_record, to_record
from fedexp.simulation import SerialGrid
from fedexp.simulation.transport import unpack
from fedexp.strategies import FedAvg, FedProx, Scaffold, ScaffoldExP

N, D, ROWS, STEPS, LR = 5, 3, 6, 8, 0.05
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, ROWS, D))
Y = RNG.normal(size=(N, ROWS, 1))
SHARED = torch.from_numpy(X.reshape(-1, D)), torch.from_numpy(Y.reshape(-1, 1))
SETTINGS = {"local-steps": STEPS, "batch-size": ROWS, "learning-rate": LR}


def gradient(i, w):
    return 2 / ROWS * X[i].T @ (X[i] @ w - Y[i])


def model(context):
    return nn.Linear(D, 1, bias=False).double()


def examples(context):
    p = int(context.node_config["partition-id"])
    own = Examples(*SHARED, torch.arange(p * ROWS, (p + 1) * ROWS))
    return own, own


def own_tensors(context):
    p = int(context.node_config["partition-id"])
    return (Examples(torch.from_numpy(X[p]), torch.from_numpy(Y[p])),) * 2


APP = client_app(model, examples)
FIRST = {"weight": np.ones((1, D))}


class Recording(SerialGrid):
    """Remembers which partitions trained, round by round."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if messages:
            self.sampled = [
                *getattr(self, "sampled", []),
                [m.metadata.dst_node_id - 2 for m in messages],
            ]
        return super().send_and_receive(messages, timeout=timeout)


def run(strategy, num_rounds, grid=None, first=FIRST, **settings):
    grid = grid or Recording(APP, N, run_config=SETTINGS | settings)
    result = strategy.start(grid, to_record(first), num_rounds=num_rounds)
    return from_record(result.arrays)["weight"].T, grid


def partial(make, **kwargs):
    sizes = {"min_train_nodes": 1, "min_available_nodes": N, "fraction_evaluate": 0.0}
    return make(**{"fraction_train": 0.4, "seed": 3, **sizes, **kwargs})


@pytest.mark.parametrize("server_lr", [1.0, 0.7])
def test_scaffold_is_the_authors_algorithm_with_option_two_and_partial_participation(server_lr):
    ours, grid = run(partial(Scaffold, server_learning_rate=server_lr), 12)
    w, c, own = np.ones((D, 1)), np.zeros((D, 1)), np.zeros((N, D, 1))
    assert len({tuple(s) for s in grid.sampled}) > 2
    for sampled in grid.sampled:
        ends, changes = [], []
        for i in sampled:
            y = w.copy()
            for _ in range(STEPS):
                y = y - LR * (gradient(i, y) - own[i] + c)
            new = own[i] - c + (w - y) / (STEPS * LR)
            changes.append(new - own[i])
            ends.append(y)
            own[i] = new
        w = w + server_lr * (np.mean(ends, 0) - w)
        c = c + len(sampled) / N * np.mean(changes, 0)
    np.testing.assert_allclose(ours, w, rtol=1e-10)


def test_with_everybody_the_servers_variate_is_the_mean_of_the_clients():
    strategy = Scaffold(fraction_evaluate=0.0, min_train_nodes=N, min_available_nodes=N)
    _, grid = run(strategy, 4)
    own = [from_record(unpack(s)["control-variate"])["weight"] for s in grid.states.values()]
    np.testing.assert_allclose(strategy.state["control-variate"]["weight"], np.mean(own, 0))


def test_scaffold_reaches_the_optimum_that_fedavg_misses():
    best = np.linalg.lstsq(X.reshape(-1, D), Y.reshape(-1, 1), rcond=None)[0]
    everybody = {"fraction_evaluate": 0.0, "min_train_nodes": N, "min_available_nodes": N}
    with_variates, _ = run(Scaffold(**everybody), 40)
    without, _ = run(FedAvg(**everybody), 40)
    assert np.linalg.norm(with_variates - best) < 1e-4
    assert np.linalg.norm(without - best) > 1e-3


def test_scaffold_goes_on_from_its_state_and_the_clients():
    whole, _ = run(partial(ScaffoldExP), 6)
    first = partial(ScaffoldExP)
    middle, grid = run(first, 3)
    other = SerialGrid(APP, N, run_config=SETTINGS)
    other.states = dict(grid.states)
    second = partial(ScaffoldExP)
    second.state = first.state
    arrays = to_record({"weight": np.ascontiguousarray(middle.T)})
    for server_round in range(4, 7):
        messages = second.configure_train(server_round, arrays, ConfigRecord(), other)
        arrays, _ = second.aggregate_train(server_round, other.send_and_receive(messages))
    np.testing.assert_allclose(from_record(arrays)["weight"].T, whole, rtol=1e-12)


def test_a_second_run_on_the_same_clients_starts_afresh():
    one, grid = run(partial(Scaffold), 4)
    two, _ = run(partial(Scaffold), 4, grid)
    np.testing.assert_array_equal(one, two)


def test_clients_that_take_unlike_steps_are_refused():
    app = client_app(model, examples)
    train = app.trainer.train

    def uneven(message, context):
        own = {"local-steps": 1 + int(context.node_config["partition-id"])}
        return train(message, Context(0, 2, context.node_config, context.state, SETTINGS | own))

    foreign = ClientApp()
    foreign.train()(uneven)
    with pytest.raises(ValueError, match="must be the same at every client"):
        run(partial(Scaffold, min_train_nodes=N), 1, SerialGrid(foreign, N))


def test_proximal_clients_descend_on_their_loss_and_the_distance():
    mu = 3.0
    everybody = {"fraction_evaluate": 0.0, "min_train_nodes": N, "min_available_nodes": N}
    ours, _ = run(FedProx(proximal_mu=mu, **everybody), 3)
    w = np.ones((D, 1))
    for _ in range(3):
        ends = []
        for i in range(N):
            y = w.copy()
            for _ in range(STEPS):
                y = y - LR * (gradient(i, y) + mu * (y - w))
            ends.append(y)
        w = np.mean(ends, 0)
    np.testing.assert_allclose(ours, w, rtol=1e-10)


def test_many_proximal_steps_reach_the_proximal_point():
    # argmin |Xw - y|^2 / n + mu/2 |w - w0|^2
    mu, i = 0.8, 0
    app = client_app(model, lambda context: examples(context_of(i)))
    grid = SerialGrid(app, 1, run_config=SETTINGS | {"local-steps": 2000})
    settings = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    ours, _ = run(FedProx(proximal_mu=mu, **settings), 1, grid)
    hessian = 2 / ROWS * X[i].T @ X[i] + mu * np.eye(D)
    point = np.linalg.solve(hessian, 2 / ROWS * X[i].T @ Y[i] + mu * np.ones((D, 1)))
    np.testing.assert_allclose(ours, point, rtol=1e-8)


def context_of(p, state=None):
    config = {"partition-id": p, "num-partitions": N}
    return Context(0, p + 2, config, state or RecordDict(), SETTINGS)


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("with_variate", [False, True])
@pytest.mark.parametrize("app", [APP, client_app(model, own_tensors)], ids=["shared", "own"])
def test_clients_trained_as_a_group_do_the_same(mu, with_variate, app):
    config = {"proximal-mu": mu, "final-loss": True, "run-id": 1.0}
    records = {"arrays": to_record(module_arrays(model(None))), "config": ConfigRecord(config)}
    if with_variate:
        records["control-variate"] = to_record({"weight": np.full((1, D), 0.3)})
    content, trainer = RecordDict(records), app.trainer
    alone, group = ([context_of(p) for p in range(3)] for _ in range(2))
    kept = {"control-variate", "control-run"}
    for _ in range(2):  # the second time with variates of their own
        settings, arrays = trainer.config(content, alone[0]), model_in(content)
        ones = [trainer.fit(settings, arrays, content, context) for context in alone]
        many = ClientGroup.of(app, "on", group[0]).fit(settings, arrays, content, group)
        for one, other in zip(ones, many, strict=True):
            assert other.metrics == pytest.approx(one.metrics)
            assert "final-loss" in one.metrics
            assert ("control-step" in one.metrics) == with_variate
            np.testing.assert_allclose(one.arrays["weight"], other.arrays["weight"])
        for a, b in zip(alone, group, strict=True):
            assert a.state.keys() == b.state.keys() == (kept if with_variate else set())
        kept |= {"control-variate-before"}
