"""Clients that learn their step size: where it leads, what it leaves alone, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import record
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import nn

from fedexp.clients import ClientSettings, Examples, client_app, default_loss, module_arrays
from fedexp.clients.client import model_in
from fedexp.clients.groups.group import ClientGroup
from fedexp.clients.named import named_optimizer
from fedexp.clients.step_tuning import StepTuning
from fedexp.clients.trial import try_model
from fedexp.learned_steps import LeastSquares, MetaDescent, closed_form, descend
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import context_of
from fedexp.strategies import FedAvg

torch.set_num_threads(1)
RUN = {"local-steps": 5, "batch-size": 8, "learning-rate": 0.001, "seed": 3}
NAME = "learned-step(every=3, steps=12)"
LEARNED, FAILED = "learned-step-size", "step-size-tuning-failed"


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def mlp(context=None):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


def rows(p, count=30):
    rng = np.random.default_rng(p)
    x = torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32))
    return Examples(x, x[:, :3].argmax(1))


def data(context):
    return (rows(int(context.node_config["partition-id"])),) * 2


def alike(context):
    return (rows(0),) * 2


def trained(name=NAME, server_round=1, app=None, model=mlp, vectorize="off", **config):
    """The result of the first of three clients; or of all of them, as a group if it takes them."""
    app = app or client_app(model, data)
    context = context_of(2, 3, RUN, RecordDict())
    settings = {"server-round": server_round, "local-optimizer": name, **config}
    arrays = module_arrays(model())
    body = RecordDict({"arrays": record(arrays), "config": ConfigRecord(settings)})
    client = app.trainer
    return client.fit(client.config(body, context), model_in(body), body, context)


def assert_same(a, b):
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name])


def test_a_client_tunes_in_every_so_manyth_round_the_first_included():
    told = {t: LEARNED in trained(server_round=t).metrics for t in (1, 2, 3, 4)}
    assert told == {1: True, 2: False, 3: False, 4: True}
    assert LEARNED not in trained(server_round=0).metrics  # a server that counts no rounds


@pytest.mark.parametrize("by", ["validation", "training"])
def test_it_then_trains_as_plain_sgd_would_at_what_it_found(by):
    found = trained(f"learned-step(steps=12, by={by})")
    rate = found.metrics[LEARNED]
    assert found.metrics["learning-rate"] == rate > 10 * RUN["learning-rate"]
    assert found.metrics[FAILED] == 0
    plain = trained("sgd", **{"learning-rate": rate})
    assert_same(found, plain)
    assert found.metrics["train-loss"] == plain.metrics["train-loss"]


def test_it_starts_from_what_the_server_sent_and_trains_at_it_between():
    sent = {LEARNED: 0.25}
    between = trained(server_round=2, **sent)
    assert between.metrics["learning-rate"] == 0.25
    assert_same(between, trained("sgd", server_round=2, **{"learning-rate": 0.25}))
    one_step = trained("learned-step(steps=1)", **sent).metrics[LEARNED]
    assert one_step == 0.25  # the best of a path of one
    assert trained("sgd", **sent).metrics["learning-rate"] == RUN["learning-rate"]


class Slope(nn.Module):
    """Least squares without intercept, from 0."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 1, bias=False)
        nn.init.zeros_(self.line.weight)

    def forward(self, x):
        return self.line(x)[:, 0]


def plain_slope():
    """The same of PyTorch's own layers, whose second derivatives are several times as fast."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Flatten(0)).double()
    nn.init.zeros_(model[0].weight)
    return model


def linear(count=40):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32))
    return Examples(x, x @ torch.tensor([1.0, -2.0, 0.5, 1.0]) + 0.3 * torch.randn_like(x[:, 0]))


def test_on_linear_regression_it_is_what_the_closed_form_learns():
    """Whole batches: ``mean (y - ⟨w, x⟩)²`` is twice the loss of ``LeastSquares``."""
    x, y = (x.double() for x in seeded(linear).take(torch.arange(40)))
    settings = ClientSettings(num_steps=10, batch_size=40, lr=0.001)
    tuning = StepTuning(steps=60, by="training")
    found = tuning.tune(
        *(plain_slope(), Examples(x, y), settings, default_loss),
        rng=np.random.default_rng(0),
        split=np.random.default_rng(0),
    )
    problem = LeastSquares(x, y)
    best = descend(
        lambda eta: [closed_form(problem, 2 * eta, 10)],
        torch.tensor(0.001, dtype=torch.float64),
        MetaDescent(num_meta_steps=60),
    )
    assert found.step_size == pytest.approx(float(best.best()), rel=1e-9)
    grid = np.geomspace(1e-3, 1, 400)
    least = min(grid, key=lambda eta: closed_form(problem, 2 * float(eta), 10).log_loss)
    assert found.step_size == pytest.approx(least, rel=0.05)


def test_validation_rows_are_the_same_in_every_round_and_no_row_of_the_steps():
    seen = []

    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(4, 3)

        def forward(self, x):
            seen.append(x.detach())
            return self.line(x)

    def parts(server_round):
        seen.clear()
        trained("learned-step(every=1, steps=1)", server_round, model=lambda c=None: Noting())
        shapes = [len(x) for x in seen]
        assert shapes == [8] * 5 + [8] + [8] * 5  # steps, 8 of 30 rows set aside, local steps
        return ([tuple(r.tolist()) for x in xs for r in x] for xs in (seen[:5], seen[5:6]))

    (first, held), (second, again) = parts(1), parts(2)
    assert held == again
    assert first != second
    assert not {*first, *second} & {*held}


def federation(app, name=NAME, num_nodes=3, num_rounds=3, strategy=None, **run):
    grid = SerialGrid(app, num_nodes, run_config={**RUN, "local-optimizer": name, **run})
    start = record(module_arrays(mlp()))
    own = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    return list(rounds(strategy or own, grid, start, num_rounds=num_rounds))


def test_in_a_federation_of_identical_clients_the_learned_step_is_that_of_one():
    """The same rows; the batches differ, unless each of them holds all rows."""
    whole = {"batch-size": 30, "local-optimizer": "learned-step(steps=12, by=training)"}
    name = whole.pop("local-optimizer")
    several = federation(client_app(mlp, alike), name, 4, **whole)
    one = federation(client_app(mlp, alike), name, 1, **whole)
    for a, b in zip(several, one, strict=True):
        assert a.train[LEARNED] == pytest.approx(b.train[LEARNED], rel=1e-5)
    assert several[0].train["learned-step-size-spread"] == pytest.approx(0, abs=1e-5)


def test_from_a_hundred_times_too_small_the_loss_falls_faster_than_without():
    name = "learned-step(every=1, steps=12)"
    slow, fast = (federation(client_app(mlp, data), x, num_rounds=4) for x in ("sgd", name))
    assert fast[-1].train["train-loss"] < 0.8 * slow[-1].train["train-loss"]


def test_a_strategy_of_flowers_breaks_no_client():
    found = federation(client_app(mlp, data), strategy=FlowerFedAvg(min_available_nodes=3))
    assert found[0].train["learning-rate"] > found[1].train["learning-rate"]
    assert found[1].train["learning-rate"] == pytest.approx(RUN["learning-rate"])


def test_groups_take_the_rounds_in_which_nobody_tunes():
    app = client_app(mlp, data)
    group = ClientGroup.of(app, "on", context_of(2, 3, RUN | {"local-optimizer": NAME}, None))
    config = {**RUN, "local-optimizer": NAME}
    due = [group.takes({**config, "server-round": t}) for t in (1, 2, 3, 4)]
    assert due == [False, True, True, False]


# What tuning leaves alone.

KINDS = {
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)),
    "group norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)),
    "lstm": lambda: Recurrent(),
    "padding": lambda: Words(padding_idx=0),
}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.cells(x.view(len(x), 2, 2))[0][:, -1])


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.table((x.abs() * 3).long().clamp(max=4)).mean(1))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_buffers_and_random_numbers_are_as_if_nobody_had_tuned(kind):
    def model(context=None):
        return seeded(KINDS[kind])

    before = torch.get_rng_state()
    found = trained("learned-step(steps=4)", model=model)
    assert found.metrics[LEARNED] != RUN["learning-rate"]
    plain = trained("sgd", model=model, **{"learning-rate": found.metrics[LEARNED]})
    assert_same(found, plain)
    assert torch.equal(torch.get_rng_state(), before)
    assert trained("learned-step(steps=4)", model=model).metrics == found.metrics


def test_frozen_parameters_stay_where_they_are():
    def model(context=None):
        made = mlp()
        made[0].requires_grad_(False)
        return made

    found = trained(model=model)
    np.testing.assert_array_equal(found.arrays["0.weight"], mlp()[0].weight.detach().numpy())
    assert found.metrics[LEARNED] > RUN["learning-rate"]


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), default_loss])
def test_losses_of_values_can_be_tuned_too(loss):
    examples = seeded(linear)
    app = client_app(lambda context=None: Slope(), lambda context: (examples, examples), loss=loss)
    assert trained(app=app, model=lambda: Slope()).metrics[LEARNED] > RUN["learning-rate"]


def test_weight_decay_and_a_proximal_term_are_part_of_the_steps_that_are_tuned():
    """Against gradient descent written out: at every step size on the path the same objective."""
    examples, tuning = seeded(linear), StepTuning(steps=25, by="training")
    x, y = (part.double().numpy() for part in (examples.inputs, examples.targets))

    def found(decay, mu):
        model = plain_slope()
        nn.init.ones_(model[0].weight)
        settings = ClientSettings(10, 40, 0.02, weight_decay=decay, proximal_mu=mu)
        rngs = {key: np.random.default_rng(0) for key in ("rng", "split")}
        own = Examples(examples.inputs.double(), examples.targets.double())
        return float(tuning.tune(model, own, settings, default_loss, **rngs).step_size)

    def ends(etas, decay, mu):
        w, eta = np.ones((len(etas), 4)), np.reshape(etas, (-1, 1))
        for _ in range(10):
            w = w - eta * (2 * (w @ x.T - y) @ x / len(y) + decay * w + mu * (w - 1))
        return ((w @ x.T - y) ** 2).mean(1)

    steps = {case: found(*case) for case in [(0.0, 0.0), (1.0, 0.0), (0.0, 5.0)]}
    for (decay, mu), eta in steps.items():
        best = ends(np.geomspace(1e-3, 1, 300), decay, mu).min()
        end, begin = ends([eta, 0.0], decay, mu)
        assert end < best + 0.02 * (begin - best)
    assert steps[0.0, 5.0] != steps[1.0, 0.0] != steps[0.0, 0.0]


# What fails.


def test_a_client_that_finds_nothing_backs_off_says_so_and_trains_on():
    found = trained("learned-step(steps=2)", **{LEARNED: 1e30})
    assert found.metrics[FAILED] == 1
    assert found.metrics[LEARNED] < 1e30
    assert np.isfinite(found.arrays["0.weight"]).all()


def test_a_rate_that_is_far_too_large_kills_no_run():
    found = federation(client_app(mlp, data), "learned-step(steps=2)", **{"learning-rate": 1e12})
    assert [r.failed for r in found] == [False] * 3
    assert found[0].train[FAILED] == 1


def test_a_client_of_one_example_has_nothing_to_set_aside():
    app = client_app(mlp, lambda context: (rows(0, count=1),) * 2)
    with pytest.raises(ValueError, match=r"1 training example.*by=training"):
        trained(app=app)
    assert LEARNED in trained("learned-step(by=training)", app=app).metrics
    assert LEARNED in trained(app=client_app(mlp, lambda c: (rows(0, count=2),) * 2)).metrics


def test_what_pytorch_cannot_differentiate_twice_is_refused_before_round_1():
    def model():
        return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))

    with pytest.raises(ValueError, match="cannot be differentiated twice: NotImplementedError"):
        try_model("model=m", model(), rows(0), named_optimizer(NAME), ClientSettings())
    with pytest.raises(ValueError, match="Embedding with max_norm writes to weights"):
        trained(model=lambda context=None: Words(max_norm=1.0))


def test_a_trial_takes_what_can_be_tuned():
    for kind in KINDS.values():
        module = seeded(kind)
        before = {k: x.copy() for k, x in module_arrays(module).items()}
        try_model("model=m", module, rows(0), named_optimizer(NAME), ClientSettings())
        for name, x in module_arrays(module).items():
            np.testing.assert_array_equal(x, before[name])


def test_a_rate_that_changes_from_step_to_step_is_refused():
    settings = SimpleNamespace(max_grad_norm=0.0, lr_exponent=0.67)
    with pytest.raises(ValueError, match=r"learning-rate-exponent=0\.67.*plain steps of one size"):
        StepTuning().check(settings)


@pytest.mark.parametrize("server_round", [1, 2])
def test_a_rate_that_decays_from_round_to_round_is_refused(server_round):
    with pytest.raises(
        ValueError, match=r"learning-rate-decay=0\.9\): learned-step sets the learn"
    ):
        trained(server_round=server_round, **{"learning-rate-decay": 0.9})


def test_clipped_gradients_are_refused():
    with pytest.raises(ValueError, match=r"max-grad-norm=1\.0.*plain steps of one size"):
        trained(**{"max-grad-norm": 1.0})


@pytest.mark.parametrize("server_round", [1, 2])  # a client tunes in the first only
def test_control_variates_are_refused(server_round):
    context = context_of(2, 3, RUN, RecordDict())
    arrays = module_arrays(mlp())
    body = RecordDict(
        {
            "arrays": record(arrays),
            "control-variate": record({k: 0 * x for k, x in arrays.items()}),
            "config": ConfigRecord({"server-round": server_round, "local-optimizer": NAME}),
        }
    )
    client = client_app(mlp, data).trainer
    with pytest.raises(ValueError, match="control variates need one learning rate"):
        client.fit(client.config(body, context), model_in(body), body, context)
