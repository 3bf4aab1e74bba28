"""Server steps on six federations, each method at its own client learning rate, all judged alike.

    python -m experiments.server_steps                                   # digits, one seed
    python -m experiments.server_steps --full --data-dir DATA --out FILE.jsonl
    python -m experiments.server_steps --tables FILE.jsonl               # only print the tables

A line of the file is one run: federation, method, client learning rate and seed, and for the last
iterate and three averages the accuracy over the last ten rounds and the rounds to the target. Runs
that the file holds are not run again, so the command goes on where it was stopped. The client
learning rate of a method is the one with the best accuracy over the seeds ``TUNING``, of the same
rates for all; what is reported comes from other seeds. Server settings are those named in
``METHODS``, untouched.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from logging import ERROR
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from torch.nn.functional import avg_pool2d

from experiments.server_step_tables import SCORES, TUNING, document, read, tuned_rate
from fedexp import app
from fedexp.clients import module_arrays
from fedexp.config import Config
from fedexp.datasets import load
from fedexp.logs import level
from fedexp.records import to_record
from fedexp.rounds import rounds
from fedexp.runs.engines import grid_of
from fedexp.simulation.grid import LocalGrid
from fedexp.strategies import (
    FedAdagrad,
    FedAvg,
    FedAvgM,
    FedExP,
    FedOpt,
    MeanOfIterates,
    NesterovExP,
    average_named,
)

RATES = (0.0316, 0.1, 0.316, 1.0)  # half a decade apart; further ones where the best is at an end
AVERAGES = ("last-1", "last-2", "last-5", "ema-0.7")


@dataclass(frozen=True)
class Method:
    """A server step, with the local optimizer of its clients."""

    strategy: type[FedOpt]
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"


MOMENTUM = {"server_momentum": 0.9, "nesterov": True}
METHODS = {
    "FedAvg": Method(FedAvg),
    "fixed step 2": Method(FedAvg, {"server_learning_rate": 2.0}),
    "fixed step 3": Method(FedAvg, {"server_learning_rate": 3.0}),
    "FedExP": Method(FedExP),
    "FedExP, epsilon 0.1": Method(FedExP, {"epsilon": 0.1}),
    "FedExP, step at most 3": Method(FedExP, {"max_step_size": 3.0}),
    "FedExP, smoothing 0.5": Method(FedExP, {"smoothing": 0.5}),
    "FedAdagrad 0.1 / 0.01": Method(FedAdagrad, {"eta": 0.1, "tau": 0.01}),
    "Nesterov 0.7 / 0.9": Method(FedAvgM, MOMENTUM | {"server_learning_rate": 0.7}),
    "Nesterov 1 / 0.9": Method(FedAvgM, MOMENTUM | {"server_learning_rate": 1.0}),
    "NesterovExP": Method(NesterovExP),
    "NesterovExP, hypersgd": Method(NesterovExP, optimizer="hypersgd"),
}


class Federation(NamedTuple):
    """Where the methods are compared."""

    target: float
    config: dict[str, Any]
    pooled: bool = False
    seeds: int = 3
    shown: tuple[float, ...] = (0.1, 0.316)
    """Client rates at which every method is run with the reported seeds too."""
    rates: tuple[float, ...] = RATES
    """Client rates to choose from; none if all methods are run at ``shown`` alone."""


_SKEWED = {"num_clients": 100, "alpha": 0.3, "num_server_rounds": 80}
_NATURAL = {"partitioner": "natural", "num_clients": 0}
FEDERATIONS = {
    "digits": Federation(0.85, {}, seeds=10),
    "heart disease": Federation(
        0.75,
        {
            **_NATURAL,
            "dataset": "heart-disease",
            "model": "linear",
            "fraction_train": 1.0,
            "num_server_rounds": 20,
        },
        shown=(0.0316, 0.1),
        rates=(0.00316, 0.01, *RATES[:3]),
    ),
    "WISDM": Federation(
        0.70,
        {**_NATURAL, "dataset": "wisdm", "fraction_train": 0.3, "num_server_rounds": 60},
        shown=(0.05, 0.158),
        rates=(*RATES, 3.16),
    ),
    "MNIST by writer": Federation(
        0.90,
        {**_NATURAL, "dataset": "mnist", "fraction_train": 0.02, "num_server_rounds": 40},
        pooled=True,
        shown=(),
        rates=(*RATES, 3.16),
    ),
    "Fashion-MNIST": Federation(
        0.80, {**_SKEWED, "dataset": "fashion-mnist"}, pooled=True, rates=()
    ),
    "MNIST": Federation(0.90, {**_SKEWED, "dataset": "mnist"}, pooled=True, rates=()),
}


def pooled(dataset: str, data_dir: str, folder: Path) -> str:
    """The images of a dataset at half their width and height, as an ``.npz`` file."""
    path = folder / f"{dataset}-14.npz"
    if not path.exists():
        data = load(dataset, data_dir=data_dir)
        x_train, x_test = (avg_pool2d(part[0], 2).numpy() for part in (data.train, data.test))
        y_train, y_test = (part[1].numpy() for part in (data.train, data.test))
        keys = {} if data.keys is None else {"keys": data.keys}
        np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, **keys)
    return str(path)


def config_of(federation: Federation, seed: int, data_dir: str, folder: Path) -> Config:
    """The configuration of a run; the learning rate comes with the messages."""
    own = dict(federation.config)
    if federation.pooled:
        own["dataset"] = pooled(own["dataset"], data_dir, folder)
    return Config(**own, data_dir=data_dir, seed=seed)


class Curves:
    """Test accuracy after every round, of each of ``AVERAGES`` of the iterates."""

    def __init__(self, config: Config) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in AVERAGES}
        score = app.test_evaluation(config)
        self._means = [
            MeanOfIterates(partial(self._note, name, score), average_named(name))
            for name in AVERAGES
        ]

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        """Evaluate a round; for ``rounds``."""
        for mean in self._means:
            mean(server_round, arrays)

    def _note(self, name: str, score: Any, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        found: MetricRecord = score(server_round, arrays)
        self.values[name].append(float(found["test-accuracy"]))  # type: ignore[arg-type]
        return found


def measure(grid: LocalGrid, config: Config, method: Method, rate: float, target: float) -> Any:
    """One run: what a line of the file says of it."""
    grid.forget()
    curves = Curves(config)
    strategy = method.strategy(
        fraction_train=config.fraction_train,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=grid.num_nodes,
        seed=config.seed,
        client_config={"learning-rate": rate, "local-optimizer": method.optimizer},
        **method.settings,
    )
    start = to_record(module_arrays(app.model_of(config)))
    steps = [
        round_.train.get("server-step-size", 0.0)
        for round_ in rounds(
            strategy, grid, start, num_rounds=config.num_server_rounds, evaluate_fn=curves
        )
    ]
    return {
        "mean-step": float(np.mean(steps)),
        "accuracy": {name: round(float(np.mean(x[-10:])), 5) for name, x in curves.values.items()},
        "to-target": {
            name: next((i for i, a in enumerate(x, 1) if a >= target), None)
            for name, x in curves.values.items()
        },
    }


def wanted(federation: Federation, done: list[dict[str, Any]]) -> Iterator[tuple[int, str, float]]:
    """Seed, method and rate of the runs to make, given those of the tuning seeds."""
    for seed in TUNING:
        yield from ((seed, method, rate) for method in METHODS for rate in federation.rates)
    for seed in range(federation.seeds):
        for method in METHODS:
            yield from ((seed, method, rate) for rate in sorted(rates_of(federation, done, method)))


def rates_of(federation: Federation, done: list[dict[str, Any]], method: str) -> set[float]:
    """Client rates that a method is reported at: the tuned ones, and those shown for all."""
    tuned = {tuned_rate(done, method, name) for name in SCORES.values() if federation.rates}
    return tuned | set(federation.shown)


def run_all(names: list[str], data_dir: str, file: Path) -> None:
    """Make the runs that ``file`` lacks."""
    done = read(file)
    for name in names:
        federation = FEDERATIONS[name]
        for seeds in (TUNING, tuple(range(federation.seeds))):
            for seed in seeds:
                mine = [row for row in done if row["federation"] == name]
                known = {(row["seed"], row["method"], row["rate"]) for row in mine}
                todo = [x for x in wanted(federation, mine) if x[0] == seed and x not in known]
                if todo:
                    done += run_seed(name, todo, data_dir, file)


def run_seed(
    name: str, todo: list[tuple[int, str, float]], data_dir: str, file: Path
) -> list[dict[str, Any]]:
    """Runs of one federation and seed, on one grid; each is written as it ends."""
    federation, rows = FEDERATIONS[name], []
    config = config_of(federation, todo[0][0], data_dir, file.parent)
    with grid_of(config) as grid, file.open("a", encoding="utf-8") as out:
        for seed, method, rate in todo:
            found = measure(grid, config, METHODS[method], rate, federation.target)
            key = {"federation": name, "method": method, "rate": rate, "seed": seed}
            rows.append({**key, "target": federation.target, **found})
            print(json.dumps(rows[-1]), file=out, flush=True)
            print(name, method, rate, seed, found["accuracy"], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="all federations, tuned rates")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--only", nargs="*", choices=FEDERATIONS, default=list(FEDERATIONS))
    parser.add_argument("--out", type=Path, default=Path("runs/server-steps.jsonl"))
    parser.add_argument("--tables", type=Path, help="print the tables of this file, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.tables:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with level(ERROR):
            if args.full:
                run_all(args.only, args.data_dir, args.out)
            else:
                known = {(row["method"], row["rate"]) for row in read(args.out)}
                quick = [(0, method, 0.1) for method in METHODS if (method, 0.1) not in known]
                if quick:
                    run_seed("digits", quick, "", args.out)
    print(document(read(args.tables or args.out)))


if __name__ == "__main__":
    main()
