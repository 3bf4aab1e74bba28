"""Settings that arrive by a run config: a slip is an error there as on the command line."""

import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from torch import nn

from fedexp import app
from fedexp.clients import ClientSettings, client_app, module_arrays
from fedexp.config import Config
from fedexp.records import to_record
from fedexp.simulation import SerialGrid
from fedexp.strategies import STRATEGIES, FedAvg
from tests.builders import grid_of

SMALL = {"num-server-rounds": 1, "local-steps": 1, "strategy": "fedavg"}


def grids():
    from fedexp.simulation.ray.grid import RayGrid

    return [SerialGrid, RayGrid]


@pytest.mark.parametrize("make", [0, 1])
def test_our_app_takes_no_unknown_key_on_any_grid(make):
    with pytest.raises(ValueError, match=r"unknown key 'learning-rat'. Did you mean"):
        grids()[make](app.client, 3, run_config={"learning-rat": 0.1})
    with pytest.raises(ValueError, match="batch-size='x'"):
        grids()[make](app.client, 3, run_config={"batch-size": "x"})


def users_app():
    return client_app(lambda context: nn.Linear(1, 1), lambda context: app.examples(context))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning-rat", "learning-rate"),
        ("learning_rate", "learning-rate"),
        ("batchsize", "batch-size"),
        ("local-step", "local-steps"),
    ],
)
def test_a_slip_in_a_users_app_is_an_error(key, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        SerialGrid(users_app(), 3, run_config={key: 1})


def test_keys_of_a_users_own_are_no_business_of_ours():
    SerialGrid(users_app(), 3, run_config={"dropout": 0.1, "local-epochs": 3, "model-name": "x"})
    SerialGrid(grid_of(2, lambda m, c: RecordDict()).client_app, 3, run_config={"learning-rat": 1})


def test_no_key_that_we_send_ourselves_looks_like_a_slip():
    ClientSettings.of(Config().values())
    for key in STRATEGIES:
        ClientSettings.of(app.strategy_of(Config(), key, 3).client_config)


def test_a_slip_in_the_train_config_is_the_reason_of_the_failures():
    config = Config(num_clients=3)
    grid = SerialGrid(app.client, 3, run_config=config.values())
    strategy = FedAvg(fraction_evaluate=0.0)
    arrays = to_record(module_arrays(app.model_of(config)))
    strategy.start(grid, arrays, 1, train_config=ConfigRecord({"learning-rat": 0.1}))
    (reason,) = strategy.attendance.reasons
    assert "Did you mean 'learning-rate'?" in reason
    assert len(strategy.attendance.missing) == 3


def serve(**run_config):
    """The server app of ours on a grid of ours, as Flower calls it."""
    values = {**SMALL, **run_config}
    grid = SerialGrid(app.client, 3, run_config=Config.of(values).values())
    app.main(grid, Context(1, 1, {}, RecordDict(), values))


def test_the_server_app_refuses_what_nothing_reads():
    serve()
    with pytest.raises(ValueError, match="no chosen strategy reads epsilon"):
        serve(epsilon=0.5)
    serve(epsilon=0.001)  # Flower's run config holds every key: defaults pass


def test_the_server_app_fails_when_its_run_does(monkeypatch, tmp_path):
    def data(context):
        raise OSError("no disk")

    monkeypatch.setattr(app.client.trainer, "data", data)
    with pytest.raises(
        RuntimeError, match=r"fedavg: no round of 2 succeeded: 3 clients: .*no disk"
    ):
        serve(**{"num-server-rounds": 9, "max-failed-rounds": 2, "fraction-train": 1.0})


def test_the_server_app_ends_early_as_a_simulation_does(logged):
    serve(**{"num-server-rounds": 9, "stop-at-target": True, "target-accuracy": 0.0})
    rounds = [line for line in logged if line.startswith("fedavg round ")]
    assert len(rounds) == 1
    assert "fedavg: reached the test accuracy 0 in round 1." in logged
