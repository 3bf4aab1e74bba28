import tomllib
from pathlib import Path

from fedexp.config import Config
from fedexp.flags import GROUPS

APP = tomllib.loads((Path(__file__).parents[1] / "flower_app" / "pyproject.toml").read_text())


def test_the_flower_app_knows_every_key_that_means_something_there():
    # The number of nodes and the engine are Flower's there, and a run is one run.
    elsewhere = {"num-clients", "engine", "num-workers", "num-gpus", "ray-address", "vectorize"}
    elsewhere |= {"worker-log", "seeds", "sweep", "select", "tuning-seeds", "log"}
    elsewhere |= {"checkpoint-every"}  # of a run's folder
    elsewhere |= set(GROUPS["devices"])  # of `fedexp run`
    config = APP["tool"]["flwr"]["app"]["config"]
    assert config.keys() == Config.keys().keys() - elsewhere
    Config.of(config)


def test_a_superlink_has_nothing_to_install_for_it():
    assert APP["project"]["dependencies"] == []
