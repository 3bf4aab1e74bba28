"""A checkpoint knows what it is of, and nothing else goes on from it."""

import os
import time

import numpy as np
import pytest
import torch

import fedexp
from fedexp.config import Config
from fedexp.datasets import Dataset
from fedexp.factories import dataset_of, reread_changed
from fedexp.runs.federation import Federation, Own
from fedexp.runs.fingerprint import check_same, data_hash, fingerprint_of, warn_of_code

pytestmark = pytest.mark.usefixtures("undrawn")
PARTS = {
    **{"strategy": "fedavg", "model": "linear", "num_clients": 2, "local_steps": 1},
    **{"engine": "serial", "num_server_rounds": 2, "partitioner": "iid"},
}


def dataset(first=0.0):
    x = torch.arange(16.0).reshape(8, 2)
    x[0, 0] = first
    pair = x, torch.arange(8) % 2
    return Dataset(train=pair, test=pair, num_classes=2)


def of(first=0.0, metrics=None, **keys):
    config = Config(**{**PARTS, **keys})
    return fingerprint_of(config, Federation(config, Own(data=dataset(first), metrics=metrics)))


SAME = {
    "nothing": {},
    "more rounds": {"num_server_rounds": 3},
    "another engine": {"engine": "ray", "num_workers": 2, "worker_log": True},
    "another place": {"out": "elsewhere", "name": "x", "log": "tensorboard"},
    "the files of the data moved": {"data": "moved/*.csv", "data_dir": "/moved"},
}
OTHER = {
    "another seed": ({"seed": 7}, "seed was 0 when it was written, now it is 7"),
    "fewer rounds": ({"num_server_rounds": 1}, "num-server-rounds was 2"),
    "more clients": ({"num_clients": 4}, "num-clients was 2"),
    "another split": ({"partitioner": "dirichlet"}, "partitioner was 'iid'"),
    "another model": ({"model": "mlp"}, "model was 'linear'"),
    "other data": ({"first": 0.5}, "the data has changed"),
    "an object more": ({"metrics": {"f1": len}}, "object metrics was None"),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_changes_no_result_may_change(kind, tmp_path):
    check_same(of(), of(**SAME[kind]), tmp_path)


@pytest.mark.parametrize("kind", OTHER)
def test_what_changes_results_is_named_in_one_line(kind, tmp_path):
    keys, said = OTHER[kind]
    with pytest.raises(ValueError, match=said) as caught:
        check_same(of(), of(**keys), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_the_first_model_counts_by_its_content(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"others")
    a, b, c = (of(initial_model=str(tmp_path / name)) for name in "abc")
    check_same(a, b, tmp_path)
    with pytest.raises(ValueError, match="the initial model has changed"):
        check_same(a, c, tmp_path)


def test_other_versions_are_said_and_go_on(tmp_path, logged):
    now = of()
    warn_of_code(now, now, tmp_path)
    assert not logged
    warn_of_code({**now, "code": {**now["code"], "torch": "0.1"}}, now, tmp_path)
    assert "was written with torch 0.1" in "".join(logged)


def test_a_checkpoint_that_says_nothing_of_itself_is_taken(tmp_path):
    check_same({}, of(), tmp_path)


def test_the_digest_is_of_values_types_and_shapes():
    pair = torch.zeros(2, 2), torch.tensor([0, 1])
    wide = torch.zeros(2, 4), pair[1]
    found = {data_hash(Dataset(train=x, test=x, num_classes=2)) for x in (pair, wide)}
    x = torch.zeros(2, 2, dtype=torch.float64), pair[1]
    found |= {data_hash(Dataset(train=x, test=x, num_classes=2))}
    assert len(found) == 3
    assert data_hash(dataset()) == data_hash(dataset())


def test_a_file_written_over_with_its_old_size_and_time_is_read_again(tmp_path):
    path = tmp_path / "own.npz"

    def digest(value):
        time.sleep(0.02)  # a file system's clock may be that coarse
        x, y = np.full((8, 2), value), np.arange(8) % 2
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
        os.utime(path, (1, 1))
        config = Config(dataset=str(path))
        reread_changed(config)
        return data_hash(dataset_of(config))

    assert digest(0.0) != digest(1.0)


def test_from_python_too_nothing_goes_on_from_other_data(tmp_path):
    parts = {**PARTS, "out": tmp_path / "r"}
    fedexp.simulate(data=dataset(), stop=lambda row: True, **parts)
    with pytest.raises(ValueError, match="the data has changed"):
        fedexp.Simulation(data=dataset(0.5), resume=True, **parts)
    with pytest.raises(ValueError, match="seed was 0"):
        fedexp.compare("fedavg", data=dataset(), resume=True, seed=3, **_without_strategy(parts))
    again = fedexp.Simulation(data=dataset(), resume=True, **parts)
    whole = fedexp.simulate(data=dataset(), **{**PARTS})
    run = again.run()
    assert [row["round"] for row in run.metrics] == [1, 2]
    for a, b in zip(run.arrays, whole.arrays, strict=True):
        np.testing.assert_equal(a, b)


def _without_strategy(parts):
    return {key: value for key, value in parts.items() if key != "strategy"}
