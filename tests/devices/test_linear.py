"""The client without PyTorch computes what the client with PyTorch computes."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedexp.devices import app as with_torch
from fedexp.devices import linear
from fedexp.devices.data_description import DataDescription
from fedexp.models import of_shape
from fedexp.records import from_record, to_record


@pytest.mark.filterwarnings("ignore:The noise is fixed by the seed")
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight-decay": 0.1},
        {"proximal-mu": 0.5},
        {"max-grad-norm": 0.05},
        {"learning-rate-decay": 0.9},
        {"local-noise": 0.1, "local-clip": 1.0, "local-noise-seed": 1},
    ],
)
def test_both_clients_give_the_same_numbers(tmp_path, num_classes, settings):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(13, 2, 3)).astype("f")
    y = rng.integers(0, 3, 13) if num_classes else rng.normal(size=13)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    described = DataDescription((2, 3), num_classes=num_classes).text()
    start = {
        k: rng.normal(size=v.shape).astype("f")
        for k, v in of_shape("linear", (2, 3), num_classes).state_dict().items()
    }
    sent: dict[str, Any] = {"data-description": described, "server-round": 2, "final-loss": True}
    answers = []
    for client in (linear.client, with_torch.client):
        for kind in ("train", "evaluate"):
            config = ConfigRecord({**sent, **settings, "client-number": 4})
            content = RecordDict({"arrays": to_record(start), "config": config})
            context = Context(
                1, 7, {"data": str(tmp_path / "a.npz")}, RecordDict(), {"model": "linear"}
            )
            answers.append(client(Message(content, 7, kind), context).content)
    for own, theirs in zip(answers[:2], answers[2:], strict=True):
        metrics = dict(own["metrics"]), dict(theirs["metrics"])
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
        if "arrays" in own:
            arrays = from_record(own["arrays"]), from_record(theirs["arrays"])
            assert arrays[0].keys() == arrays[1].keys()
            for name, array in arrays[0].items():
                assert array.dtype == np.float32
                np.testing.assert_allclose(array, arrays[1][name], rtol=2e-5, atol=1e-6)
