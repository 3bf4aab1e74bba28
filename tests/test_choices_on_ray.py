"""What clients are told, and what they carry between rounds, reaches the workers of Ray."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedexp import cli
from fedexp.clients import Examples, client_app
from fedexp.clients.schedules import schedule
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.runs.reading import read_metrics
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedExP

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own files and processes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class OwnNet(nn.Linear):
    """Sent to Ray by value, as a class of a notebook cell is."""


class OwnAdam(torch.optim.Adam):
    """The same."""


def worst(outputs, targets):
    return float((outputs.argmax(1) == targets).float().min())


def own_app():
    def model(context):
        return OwnNet(4, 3)

    def data(context):
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        x = torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32))
        return (Examples(x, torch.from_numpy(rng.integers(0, 3, 30))),) * 2

    return client_app(model, data, OwnAdam, metrics={"worst": worst})


def test_classes_of_ones_own_travel_and_give_the_bits_of_the_serial_grid(one_ray):
    ray = pytest.importorskip("ray")
    from fedexp.simulation.ray.grid import RayGrid

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config = {"local-steps": 3, "batch-size": 8, "seed": 1}
    client = own_app()
    rates = schedule("cosine", 2, 0.1)
    weights = {"weight": np.ones((3, 4), np.float32), "bias": np.zeros(3, np.float32)}
    found = []
    for make in (SerialGrid, partial(RayGrid, num_workers=1, vectorize="auto")):
        with make(client, 4, run_config=config) as grid:
            *_, last = rounds(
                FedExP(fraction_evaluate=1.0, seed=1),
                grid,
                to_record(weights),
                num_rounds=2,
                train_config=rates.settings,
            )
            found.append((from_record(last.arrays), dict(last.train), dict(last.evaluate)))
    serial, on_ray = found
    assert serial[1] == on_ray[1]
    assert serial[2] == on_ray[2]
    assert "eval-worst" in serial[2]
    for name, x in serial[0].items():
        np.testing.assert_array_equal(on_ray[0][name], x)


def run(folder, *flags):
    quick = [
        *("--num-server-rounds", 3, "--num-clients", 8, "--fraction-train", 0.5),
        *("--local-steps", 4, "--learning-rate", 0.02, "--strategy", "fedexp+hypersgd"),
    ]
    cli.main(["simulate", *map(str, [*quick, *flags, "--out", folder])])
    return read_metrics(folder / "fedexp+hypersgd")


@pytest.mark.parametrize("policy", ["carry", "average"])
def test_rays_groups_of_clients_agree_with_clients_one_by_one(tmp_path, policy, one_ray, undrawn):
    between = ("--hyper-between-rounds", policy)
    on_ray = ("--engine", "ray", "--num-workers", 1, "--vectorize", "on")
    ours = run(tmp_path / "ray", *between, *on_ray)
    expected = run(tmp_path / "serial", *between, "--engine", "serial", "--vectorize", "off")
    for a, b in zip(ours, expected, strict=True):
        for key in ("learning-rate", "learning-rate-std", "train-loss", "test-loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-3)
