"""Where clients train changes no bit; which engine ``auto`` comes to, and what finding out does."""

import copy
import random
import sys
import time

import numpy as np
import pytest
import torch
from kept import timeless
from torch import nn

from fedexp.config import Config
from fedexp.runs import engines
from fedexp.runs.engines import SMALL_SECONDS, engine_of, grid_of, seconds_of
from fedexp.runs.federation import Federation, Own
from fedexp.runs.job import Job, run_job
from fedexp.runs.plan import first_units

SMALL = {
    **{"num_server_rounds": 2, "num_clients": 6, "fraction_train": 0.5, "local_steps": 3},
    "batch_size": 8,
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

    def forward(self, x):
        return self.layers(x)


FLOWERS = "flwr.serverapp.strategy:FedAvgM(server-momentum=0.5)"
CASES = {
    "clients that evaluate, a strategy of Flower's": (
        {
            "strategy": f"fedexp, scaffold, fedprox(proximal-mu=0.01), {FLOWERS}",
            "fraction_evaluate": 0.5,
        },
        Own(),
    ),
    "bounds, images, carried rates": (
        {
            **{"strategy": "fedavg, fedexp+hypersgd", "model": "cnn", "robust": True},
            "hyper_between_rounds": "carry",
        },
        Own(),
    ),
    "learned step sizes, in groups where clients do not tune": (
        {
            "strategy": "fedexp, fedavg",
            "local_optimizer": "learned-step(every=3, steps=3)",
            "num_server_rounds": 4,
        },
        Own(),
    ),
    "augmented images and falling rates": (
        {
            **{"strategy": "fedavg, scaffold", "learning_rate_exponent": 0.5},
            "augmentation": "flip, crop, jitter, noise(exponent=0.3)",
        },
        Own(),
    ),
    "every fault, unlike devices that come and go, and a deadline": (
        {
            **{"strategy": "fedexp", "num_clients": 8, "fraction_train": 0.9, "min_replies": 2},
            **{"faults": "drop=0.1, slow=0.1, nan=0.1, garbage=0.1, scale=0.1, crash=0.1"},
            "client_profiles": "speed=lognormal(0.5), availability=random(0.8)",
            "deadline": 0.5,
        },
        Own(),
    ),
    "an optimizer of PyTorch's": (
        {"strategy": "fedexp", "local_optimizer": "torch.optim:AdamW(weight-decay=0.1)"},
        Own(),
    ),
    "a class and an optimizer of the caller's": (
        {"strategy": "fedexp", "fraction_evaluate": 1.0},
        Own(model=Net, optimizer=torch.optim.AdamW),
    ),
}
# A second worker is worth its start where what it trains alone could differ: in sums and groups.
WORKERS = {"an optimizer of PyTorch's": 1, "a class and an optimizer of the caller's": 1}
WORKERS["every fault, unlike devices that come and go, and a deadline"] = 1


def left(case, **engine):
    """What every unit of a case leaves."""
    fields, own = CASES[case]
    config = Config(**{**SMALL, **fields, **engine})
    federation = Federation(config, own)
    keys = [unit for unit in first_units(config, named(config))]
    found = []
    with grid_of(config, federation) as grid:
        for unit in keys:
            outcome = run_job(Job(unit, own), federation, grid)
            models = [{name: x.tobytes() for name, x in m.items()} for m in outcome.models]
            rows = list(map(timeless, outcome.rows))
            found.append((unit.label, models, rows, outcome.clients))
    return found


def named(config):
    from fedexp.choices import strategy_keys

    return {key: key for key in strategy_keys(config)}


@pytest.fixture(scope="module")
def ray(one_ray):
    """Workers that know the classes of this module."""
    pickler = pytest.importorskip("ray.cloudpickle")
    here = sys.modules[__name__]
    pickler.register_pickle_by_value(here)  # as classes of a program or of a cell are
    yield
    pickler.unregister_pickle_by_value(here)


@pytest.mark.parametrize("case", CASES)
def test_every_engine_gives_the_same_bits(case, ray):
    serial = left(case, engine="serial")
    assert left(case, engine="ray", num_workers=WORKERS.get(case, 2)) == serial


def test_auto_gives_the_bits_of_the_engine_that_it_comes_to():
    case = "an optimizer of PyTorch's"
    assert left(case, engine="auto") == left(case, engine="serial")


def chosen(seconds, **fields):
    return engine_of(Config(**fields), lambda: seconds)


def test_auto_is_ray_for_what_takes_long_or_needs_it(monkeypatch):
    pytest.importorskip("ray")
    long = SMALL_SECONDS + 1
    assert chosen(long) == "ray"
    assert chosen(1) == "serial"
    assert chosen(1, num_workers=2) == chosen(1, num_gpus=1) == "ray"
    assert chosen(1, ray_address="auto") == "ray"
    assert chosen(long, num_workers=1) == chosen(long, device="cuda") == "serial"
    assert chosen(long, engine="serial") == "serial"
    assert chosen(1, engine="ray") == "ray"
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert chosen(long) == "serial"


@pytest.mark.parametrize(("engine", "lines"), [("auto", 0), ("ray", 1)])
def test_without_ray_clients_run_in_this_process(engine, lines, monkeypatch, logged):
    from fedexp.simulation import SerialGrid

    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "fedexp.simulation.ray.grid", None)
    config = Config(**SMALL, engine=engine)
    with grid_of(config, Federation(config)) as grid:
        assert isinstance(grid, SerialGrid)
    assert len(logged) == lines


def test_small_demos_are_small_and_long_runs_are_not():
    assert seconds_of(Federation(Config())) < SMALL_SECONDS
    assert seconds_of(Federation(Config(num_server_rounds=10**6))) > SMALL_SECONDS


class Slow(Net):
    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)


def test_a_slow_model_takes_long():
    """3 of 6 clients, 3 steps, 2 rounds: 18 steps of at least 0.02 s."""
    assert seconds_of(Federation(Config(**SMALL), Own(model=Slow))) >= 18 * 0.02


class SlowOnce(Net):
    calls = 0

    def forward(self, x):
        SlowOnce.calls += 1
        time.sleep(0.1 * (SlowOnce.calls == 2))
        return super().forward(x)


def test_a_busy_machine_does_not_make_a_model_slow():
    """The 18 steps of the test above, of which the second takes 0.1 s."""
    assert seconds_of(Federation(Config(**SMALL), Own(model=SlowOnce))) < 18 * 0.05
    assert SlowOnce.calls > 2


class Draws(Net):
    def forward(self, x):
        random.random()
        np.random.rand()  # noqa: NPY002 - as users do
        return super().forward(x) + torch.rand(())


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_finding_out_leaves_generators_threads_and_the_callers_module_as_they_were():
    class Counts(Draws):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(10)

        def forward(self, x):
            return self.norm(super().forward(x))

    module = Counts()
    before, threads, arrays = states(), torch.get_num_threads(), copy.deepcopy(module.state_dict())
    assert 0 < seconds_of(Federation(Config(**SMALL), Own(model=module))) < float("inf")
    assert states() == before
    assert torch.get_num_threads() == threads
    for name, x in module.state_dict().items():
        assert torch.equal(x, arrays[name])
    assert all(p.grad is None for p in module.parameters())


class Fails(Net):
    def forward(self, x):
        raise RuntimeError("of the user's own")


def wants_one_hot(outputs, targets):
    return ((outputs - targets) ** 2).mean()  # of other shapes


FAILING = {
    "a model that raises": Own(model=Fails),
    "a loss of other shapes": Own(model=Net, loss=wants_one_hot),
}


@pytest.mark.parametrize("kind", FAILING)
def test_what_fails_is_not_found_out_here(kind):
    assert seconds_of(Federation(Config(**SMALL), FAILING[kind])) == float("inf")


def test_one_row_and_a_norm_over_the_batch_do_no_harm():
    own = Own(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)))
    fields = {**SMALL, "batch_size": 1}
    assert seconds_of(Federation(Config(**fields), own)) == float("inf")


def test_an_app_of_others_goes_to_ray():
    from flwr.clientapp import ClientApp

    own = Own(client_app=ClientApp(), num_clients=2, arrays={"w": np.zeros(1)})
    assert seconds_of(Federation(Config(), own)) == float("inf")


@pytest.mark.parametrize("shown", [False, True])
def test_what_workers_print_is_shown_on_request(shown, monkeypatch):
    """What is shown then: see test_ray_processes.py."""
    pytest.importorskip("ray")
    given = []
    monkeypatch.setattr(
        "fedexp.simulation.ray.grid.RayGrid", lambda *_, **options: given.append(options)
    )
    grid_of(Config(**SMALL, engine="ray", worker_log=shown))
    assert [options["worker_log"] for options in given] == [shown]
