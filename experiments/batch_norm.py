"""What to do with batch norm when the server steps further than the mean.

Digits, labels skewed by a Dirichlet(0.1), 10 of 20 clients a round, an MLP with two batch-norm
layers. A row is a server step with its cap; a column is where the evaluated statistics come from:

- average: the clients' mean, as they return it (``buffers="average"``)
- pooled: the same, with the spread of the clients' means added to the variance
- stepped: moved by ``η`` as the weights are, variances kept positive
- re-estimated: the clients run the new weights over their examples, and the mean is taken
- kept: the server's first (``buffers="keep"``)

Training never reads these statistics, so all columns of a row evaluate the same weights.

    python -m experiments.batch_norm [--seeds 3] [--rounds 30]
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from flwr.app import ConfigRecord, Context
from torch import nn

from fedexp.arrays import Arrays
from fedexp.clients import Examples, client_app, default_loss, evaluate, load_arrays, module_arrays
from fedexp.datasets import load
from fedexp.datasets.partition import dirichlet_equal
from fedexp.records import from_record, to_record
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedAvg, FedExP, FedOpt

NUM_CLIENTS = 20
SETTINGS = {"local-steps": 20, "batch-size": 20, "learning-rate": 0.1}
COLUMNS = ("average", "pooled", "stepped", "re-estimated", "kept")
ROWS: dict[str, tuple[type[FedOpt], float]] = {
    "FedAvg": (FedAvg, 1.0),
    "FedExP, cap 1.5": (FedExP, 1.5),
    "FedExP, cap 2": (FedExP, 2.0),
    "FedExP, cap 3": (FedExP, 3.0),
    "FedExP, no cap": (FedExP, math.inf),
}


def model(context: Context | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [[nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()] for _ in range(2)]
        return nn.Sequential(nn.Flatten(), *hidden[0], *hidden[1], nn.Linear(64, 10))


def statistics(arrays: Arrays) -> Arrays:
    return {name: np.array(x) for name, x in arrays.items() if "running" in name}


def mean(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}


def pooled(parts: Sequence[Arrays]) -> Arrays:
    result = dict(mean(parts))
    for name in result:
        if name.endswith("var"):
            centres = [part[name.replace("var", "mean")] for part in parts]
            result[name] = result[name] + np.var(centres, axis=0)
    return result


def stepped(before: Arrays, after: Arrays, eta: float) -> Arrays:
    moved = {name: x + eta * (after[name] - x) for name, x in before.items()}
    return {n: np.maximum(x, 1e-3) if n.endswith("var") else x for n, x in moved.items()}


def estimated(weights: Arrays, examples: Examples) -> Arrays:
    module = model()
    load_arrays(module, weights)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
    with torch.no_grad():
        for positions in torch.split(torch.arange(len(examples)), 32):
            if len(positions) > 1:
                module(examples.take(positions)[0])
    return statistics(module_arrays(module))


def run(strategy: FedOpt, seed: int, num_rounds: int) -> list[list[float]]:
    """Test accuracy after each round, in the order of COLUMNS."""
    data = load("digits")
    inputs, targets = data.train
    parts = dirichlet_equal(targets.numpy(), num_clients=NUM_CLIENTS, alpha=0.1, seed=seed)
    clients = [Examples(inputs, targets, torch.tensor(part)) for part in parts]
    app = client_app(model, lambda c: 2 * (clients[int(c.node_config["partition-id"])],))
    grid = SerialGrid(app, NUM_CLIENTS, run_config=SETTINGS | {"seed": seed})
    first = {name: np.array(x) for name, x in module_arrays(model()).items()}
    arrays, tested, rows = to_record(first), model(), []
    for server_round in range(1, num_rounds + 1):
        before = statistics(from_record(arrays))
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages))
        returned = [statistics(from_record(r.content.array_records["arrays"])) for r in replies]
        arrays, metrics = strategy.aggregate_train(server_round, replies)
        weights = from_record(arrays)
        sampled = [clients[r.metadata.src_node_id - 2] for r in replies]
        columns = (
            mean(returned),
            pooled(returned),
            stepped(before, mean(returned), metrics["server-step-size"]),
            mean([estimated(weights, examples) for examples in sampled]),
            statistics(first),
        )
        rows.append([])
        for column in columns:
            load_arrays(tested, {**weights, **column})
            scores = evaluate(tested, Examples(*data.test), default_loss)
            rows[-1].append(scores["accuracy"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    windows: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "first third": lambda x: x[:, : args.rounds // 3],
        "last third": lambda x: x[:, -(args.rounds // 3) :],
    }
    print(f"{'test accuracy':32}" + "".join(f"{name:>14}" for name in COLUMNS))
    for name, (strategy, cap) in ROWS.items():
        options = {"fraction_train": 0.5, "min_available_nodes": NUM_CLIENTS, "max_step_size": cap}
        runs = np.array(
            [run(strategy(**options, seed=s), s, args.rounds) for s in range(args.seeds)]
        )
        for label, window in windows.items():
            values = window(runs).mean((0, 1))
            print(f"{name + ', ' + label:32}" + "".join(f"{v:14.3f}" for v in values), flush=True)


if __name__ == "__main__":
    main()
