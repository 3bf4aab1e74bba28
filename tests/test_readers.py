"""Who reads which setting: derived from the choices, so these tests ask the choices themselves."""

import inspect

import pytest

from fedexp import app, readers
from fedexp.clients import LOCAL_OPTIMIZERS
from fedexp.config import Config
from fedexp.datasets import PARTITIONERS
from fedexp.strategies import STRATEGIES


def refused(given=(), **fields):
    with pytest.raises(ValueError, match=r"^Config\(") as caught:
        app.check_read(Config(**fields), given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "fields", "said"),
    [
        ((), {"local_steps": 3}, "Config(local-steps=3)"),
        (("local-steps",), {}, "Config(local-steps=20)"),
    ],
)
def test_steps_beside_epochs_are_refused(given, fields, said):
    line = f"{said}: local-epochs=2 says how many steps a client takes. Leave one of the two out."
    assert refused(given, local_epochs=2, **fields) == line
    app.check_read(Config(local_epochs=2))
    app.check_read(Config(**fields), given)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"strategy": "fedavg", "epsilon": 0.1},
            "Config(epsilon=0.1): no chosen strategy reads epsilon; fedexp, fedexpm, ",
        ),
        (
            {"partitioner": "iid", "alpha": 0.3},
            "Config(alpha=0.3): no chosen partitioner reads alpha; "
            "dirichlet, dirichlet-unequal and quantity-dirichlet do.",
        ),
        ({"shards_per_client": 3}, "no chosen partitioner reads shards-per-client; shards does."),
        ({"classes_per_client": 3}, "; classes does."),
        ({"sigma": 2.0}, "; quantity-lognormal does."),
        (
            {"strategy": "fedavg", "hyper_height": 2},
            "no chosen local optimizer reads hyper-height; ",
        ),
        (
            {"strategy": "fedavg+delta-sgd", "hyper_learning_rate": 0.2},
            "hyper-learning-rate; hyper",
        ),
        ({"strategy": "fedavg", "hyper_between_rounds": "carry"}, "no chosen local optimizer"),
        ({"engine": "serial", "num_workers": 2}, "no chosen engine reads num-workers; ray does."),
        ({"engine": "serial", "ray_address": "auto"}, "no chosen engine reads ray-address"),
        ({"data_dir": "data"}, "no chosen dataset reads data-dir; mnist, "),
        ({"dataset": "hub:owner/name", "data_dir": "data"}, "no chosen dataset reads data-dir"),
        ({"impute": "mean"}, "no chosen dataset reads impute; .npz, hub:, CSV files and sav"),
        ({"standardize": True}, "no chosen dataset reads standardize; .npz, hub:, CSV files, im"),
        ({"image_size": 8}, "no chosen dataset reads image-size; images and saved datasets do."),
        ({"target": "x"}, "no chosen dataset reads target; CSV files and saved datasets do."),
        ({"drop": "x"}, "no chosen dataset reads drop; "),
        ({"client_from": "file", "partitioner": "iid"}, "no chosen dataset reads client-from; "),
        ({"test_fraction": 0.3}, "no chosen dataset reads test-fraction; CSV files, images and s"),
        ({"dataset": "mnist", "targets": "values"}, "no chosen dataset reads targets"),
        (
            {"strategy": "fedexp", "server_learning_rate": 2.0},
            "; fedavg, fedavgm, fedadagrad, fedadam, fedyogi, fedprox, scaffold, "
            "fedschedulefree and 2 more do.",
        ),
        ({"strategy": "fedavg+sgd", "local_optimizer": "hypersgd"}, "names its own behind a +"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused_and_who_would_is_named(fields, said):
    assert said in refused(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"strategy": "fedavg,fedexp", "epsilon": 0.1},
        {"strategy": "fedavg,fedexp+hypersgd", "hyper_height": 2},
        {"strategy": "fedavg", "local_optimizer": "hypersgd", "hyper_height": 2},
        {"strategy": "fedavg+delta-sgd", "hyper_between_rounds": "carry"},
        {"partitioner": "shards", "shards_per_client": 3},
        {"dataset": "mnist", "data_dir": "data"},
        {"dataset": "x.npz", "impute": "mean", "targets": "values"},
        {"dataset": "hub:owner/name", "targets": "values"},
        {"strategy": "all", "epsilon": 0.1, "server_learning_rate": 0.5},
        {"engine": "serial", "timeout": 5.0, "name": "x", "target_accuracy": 0.5},
    ],
)
def test_a_setting_that_one_choice_reads_passes(fields):
    app.check_read(Config(**fields))


def test_a_default_is_judged_only_where_it_was_given_on_the_command_line():
    config = Config(strategy="fedavg", engine="serial")
    app.check_read(config)
    assert "reads epsilon" in refused({"epsilon"}, strategy="fedavg")
    assert "reads num-workers" in refused({"num-workers"}, engine="serial")
    assert "behind a +" in refused({"local-optimizer"}, strategy="fedavg+sgd")


@pytest.mark.parametrize("key", STRATEGIES)
def test_a_strategy_is_said_to_read_what_changes_it(key):
    """Each field of the table that a strategy claims reaches its constructor, and no other."""
    read = readers.readers()["strategy"][key]
    changed = {"epsilon": 0.5, "server_learning_rate": 0.25, "max_step_size": 7.0}
    before = app.strategy_of(Config(strategy=key), key, 3).optimizer
    for field, value in changed.items():
        after = app.strategy_of(Config(strategy=key, **{field: value}), key, 3).optimizer
        assert (after != before) == (field in read)


@pytest.mark.parametrize("key", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_the_servers_learning_rate_is_the_step_of_every_fixed_step_rule(key):
    def step(**fields):
        return app.strategy_of(Config(strategy=key, **fields), key, 3).optimizer.step_size.value

    assert step(server_learning_rate=0.3) == 0.3
    assert step(server_learning_rate=1.0) == 1.0  # given, though it is FedAvg's own
    cls = STRATEGIES[key].strategy
    parameters = inspect.signature(cls).parameters
    own = parameters["eta" if "eta" in parameters else "server_learning_rate"].default
    assert step() == own


def test_the_engines_read_what_their_grids_take():
    pytest.importorskip("ray")
    from fedexp.simulation import SerialGrid
    from fedexp.simulation.ray.grid import RayGrid

    for name, grid in (("serial", SerialGrid), ("ray", RayGrid)):
        taken = set(inspect.signature(grid).parameters) & set(Config.model_fields)
        in_run_config = {"faults", "client_profiles", "deadline"}
        assert taken | in_run_config == readers.readers()["engine"][name]


def test_every_choice_is_covered():
    table = readers.readers()
    assert table["partitioner"].keys() == PARTITIONERS.keys()
    assert table["local optimizer"].keys() == LOCAL_OPTIMIZERS.keys()
    assert table["strategy"].keys() == STRATEGIES.keys()


def test_a_partition_refuses_what_it_does_not_read():
    given = {"partitioner": "iid", "alpha": 0.3}
    with pytest.raises(ValueError, match="no chosen partitioner reads alpha"):
        app.check_read_by_partition(Config(**given), given.keys())


def test_a_partition_takes_the_file_of_a_run():
    app.check_read_by_partition(Config(strategy="fedexp", epsilon=0.1, num_clients=7), ["out"])
