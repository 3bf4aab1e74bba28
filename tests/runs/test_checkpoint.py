import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.runs import checkpoint
from fedexp.runs.checkpoint import Checkpoint
from fedexp.simulation.transport import pack, unpack


def test_a_checkpoint_comes_back_whole_and_in_order(tmp_path):
    params = {"z": np.ones(3, np.float32), "a.b": np.asarray(2, np.int64)}
    state = {"momentum": {"z": np.arange(3.0)}, "extrapolation": {"round": np.asarray(4.0)}}
    client = RecordDict(
        {
            "variate": ArrayRecord([np.arange(4.0)]),
            "numbers": MetricRecord({"lr": 0.5, "list": [1, 2]}),
            "text": ConfigRecord({"name": "x", "flag": True}),
        }
    )
    path = tmp_path / "checkpoint.safetensors"
    average = {"b": {"z": params["z"] * 2}, "a": {"z": params["z"]}}
    Checkpoint(7, params, state, average, {5: pack(client)}).save(path)
    back = Checkpoint.load(path)
    assert back.server_round == 7
    assert list(back.params) == ["z", "a.b"]
    for name, x in params.items():
        assert back.params[name].dtype == x.dtype
        np.testing.assert_array_equal(back.params[name], x)
    assert list(back.state) == list(state)
    np.testing.assert_array_equal(back.state["momentum"]["z"], np.arange(3.0))
    assert back.state["extrapolation"]["round"].shape == ()
    assert list(back.average) == ["b", "a"]
    np.testing.assert_array_equal(back.average["b"]["z"], 2 * params["z"])
    again = unpack(back.clients[5])
    np.testing.assert_array_equal(again.array_records["variate"]["0"].numpy(), np.arange(4.0))
    assert dict(again.metric_records["numbers"]) == {"lr": 0.5, "list": [1, 2]}
    assert dict(again.config_records["text"]) == {"name": "x", "flag": True}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clients", '{"another-file.safetensors": [5]}'),
        ("clients", "[]"),
        ("round", "x"),
        ("owners", "{"),
    ],
)
def test_a_sound_file_of_another_format_is_refused_in_one_line(key, value, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint(1, {"w": np.ones(1)}).save(path)
    read = checkpoint._read

    def other(path):
        arrays, meta = read(path)
        return arrays, meta | {key: value}

    monkeypatch.setattr(checkpoint, "_read", other)
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint.load(path)
