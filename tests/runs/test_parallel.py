"""Units in processes beside each other: the bits of one after the other, and every way to end."""

import os
import pickle
import signal
from importlib.util import find_spec

import pytest
from kept import timeless
from torch import nn

from fedexp.arrays import Arrays
from fedexp.config import Config
from fedexp.runs import parallel, study
from fedexp.runs.federation import Own
from fedexp.runs.parallel import run_in_processes
from fedexp.runs.study import Study
from fedexp.strategies import FedAvg, FedExP

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="objects travel by value: with Ray, or cloudpickle"
)
SMALL = {"num_server_rounds": 2, "num_clients": 4, "local_steps": 2, "fraction_train": 0.5}


class Net(nn.Module):
    """Of the caller's; flat pixels to ten classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Raises(FedAvg):
    def aggregate_train(self, server_round, replies):
        raise self.error


class Error(Exception):
    """Cannot be pickled back."""

    def __init__(self, a, b):
        super().__init__(a)


class Killed(FedAvg):
    def aggregate_train(self, server_round, replies):
        os.kill(os.getpid(), signal.SIGKILL)


def bits(arrays: Arrays):
    return {name: x.tobytes() for name, x in arrays.items()}


def left(outcome):
    models = [bits(x) for x in outcome.models]
    rows = list(map(timeless, outcome.rows))
    return outcome.unit, models, rows, outcome.clients, timeless(outcome.summary)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    monkeypatch.setattr(study, "cores", lambda: 2)
    monkeypatch.setattr(study, "_WORTH_PROCESSES", 0)


@pytest.mark.usefixtures("forked")
def test_processes_and_one_after_the_other_give_the_same_bits_in_the_same_order(monkeypatch):
    """Strategies by name and as objects, a model class and local optimizer of the caller's."""
    texts = {"avg": "fedavg", "hyper": "fedexp+hypersgd", "mine": "scaffold"}
    config = Config(**SMALL, seeds="0,1", strategy="fedavg", fraction_evaluate=0.5)
    given = config, texts, {"mine": FedExP(epsilon=0.01, fraction_train=0.5)}, Own(model=Net)
    used = []

    def noted(*args):
        used.append(args)
        return run_in_processes(*args)

    rows = []
    monkeypatch.setattr(study, "run_in_processes", noted)
    beside = Study(*given).run(lambda unit, row: rows.append((unit, row["round"])))
    assert used
    assert {unit.folder for unit, _ in rows} == {outcome.unit.folder for outcome in beside}
    one_by_one = Study(config.model_copy(update={"num_workers": 1}), *given[1:]).run()
    assert len(used) == 1

    def comparable(outcome):
        unit, *rest = left(outcome)
        return unit.label, unit.config.seed, *rest

    assert list(map(comparable, beside)) == list(map(comparable, one_by_one))


@pytest.mark.usefixtures("forked")
def test_once_time_is_over_the_round_under_way_ends_and_no_other_unit_begins():
    config = Config(**SMALL, strategy="fedavg", max_minutes=1e-9)
    found = Study(config, {"a": "fedavg", "b": "fedavg"})
    (outcome,) = found.run()
    assert found.is_cut
    assert (outcome.unit.label, len(outcome.rows)) == ("a", 1)
    assert outcome.summary["ended"] == "interrupted"


def failing(strategy):
    """What a study raises of which one unit fails; nothing of it is left."""
    config = Config(**SMALL, strategy="fedavg")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the test's to say
        Study(config, {"a": "fedavg", "b": "fedavg", "c": "fedavg"}, {"b": strategy}).run()
    return caught.value


@pytest.mark.usefixtures("forked")
def test_what_a_unit_raises_is_raised_here():
    strategy = Raises()
    strategy.error = KeyError("of the user's own")
    error = failing(strategy)
    assert isinstance(error, KeyError)
    assert error.args == ("of the user's own",)


def test_an_error_that_cannot_travel_is_told():
    kind, error = pickle.loads(parallel._error(Error("x", "y")))
    assert (kind, type(error), str(error)) == ("error", RuntimeError, "Error: x")


@pytest.mark.usefixtures("forked")
def test_a_process_that_is_killed_is_told():
    assert str(failing(Killed())) == (
        "the process of a run was killed by signal 9, if memory ran out. "
        "--num-workers 1 runs one after the other."
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"num_workers": 1},
        {"engine": "serial"},
        {"engine": "ray", "num_workers": 2},
        {"log": "tensorboard"},
        {"device": "cuda"},
    ],
)
def test_what_asks_for_one_process_gets_one(fields):
    config = Config(**{**SMALL, **fields}, seeds="0,1", strategy="fedavg")
    plan = Study(config, {"fedavg": "fedavg"})
    assert not plan._several([plan._job(unit) for unit in plan.units()], None)
