"""The ServerApp: FedExP over the devices that are there, from a model of zeros."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedexp.devices.data_description import DataDescription
from fedexp.devices.device_grid import DeviceGrid
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.strategies import FedExP

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write the model and a line for each round."""
    config = context.run_config
    described = DataDescription.of_text(str(config["description"]))
    edges = [int(x) for x in str(config["edges"]).split(",") if x]
    devices = DeviceGrid(grid, description=described.text(), edges=edges)
    devices.wait_for(int(config["num-devices"]), 60)
    start = to_record(
        {
            "1.weight": np.zeros((described.num_classes, *described.shape), "f"),
            "1.bias": np.zeros(described.num_classes, "f"),
        }
    )
    out = Path(str(config["out"]))
    strategy = FedExP(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, seed=0)
    timeout, number = float(config["timeout"]), int(config["num-server-rounds"])
    for seen in rounds(strategy, devices, start, num_rounds=number, timeout=timeout):
        line = {"round": seen.server_round, "seconds": seen.seconds, **dict(seen.train)}
        line["failures"] = [reason for _, reason in seen.training.failures]
        with (out / "rounds.jsonl").open("a") as file:
            print(json.dumps(line), file=file)
        np.savez(out / "model.part.npz", **from_record(seen.arrays))
    (out / "model.part.npz").rename(out / "model.npz")
