"""Server steps on seven federations, each method at its own client learning rate, judged alike.

    python -m experiments.server_steps                                   # digits, one seed
    python -m experiments.server_steps --full --data-dir DATA --out FILE.jsonl --workers 2
    python -m experiments.server_steps --tables FILE.jsonl               # only print the tables

A line of the file is one run: federation, method, client learning rate and seed, and for the last
iterate and three averages the accuracy over the last ten rounds and the rounds to the target. A
method that comes with an average of its own has that one too. Runs that the file holds are not run
again, so the command goes on where it was stopped. The client
learning rate of a method is the one with the best accuracy over the seeds ``TUNING``, of the same
rates for all; what is reported comes from other seeds. Server settings are those named in
``METHODS``, untouched.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from logging import ERROR
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import nn
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
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDoG,
    FedDoWG,
    FedExP,
    FedExPM,
    FedHyper,
    FedOpt,
    FedScheduleFree,
    FedYogi,
    MeanOfIterates,
    NesterovExP,
    average_named,
)

RATES = (0.0316, 0.1, 0.316, 1.0)  # half a decade apart; further ones where the best is at an end
AVERAGES = ("last-1", "last-2", "last-5", "ema-0.7")


@dataclass(frozen=True)
class Method:
    """A server step, what its clients are told, and the average that is part of it."""

    strategy: type[FedOpt]
    settings: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict)
    average: str = ""


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
    "NesterovExP, hypersgd": Method(NesterovExP, clients={"local-optimizer": "hypersgd"}),
    "NesterovExP, relative step 0.2": Method(NesterovExP, {"max_relative_step": 0.2}),
    "Nesterov 1 / 0.8": Method(
        FedAvgM, MOMENTUM | {"server_learning_rate": 1.0, "server_momentum": 0.8}
    ),
    "NesterovExP, momentum 0.8": Method(NesterovExP, {"server_momentum": 0.8}),
    "momentum 1 / 0.9": Method(FedAvgM, {"server_momentum": 0.9}),
    "FedExPM": Method(FedExPM),
    "FedExP, factor 1": Method(FedExP, {"factor": 1.0}),
    "FedAdam 0.1 / 0.001": Method(FedAdam, {"eta": 0.1, "tau": 0.001}),
    "FedAdam 0.01 / 0.001": Method(FedAdam, {"eta": 0.01, "tau": 0.001}),
    "FedYogi 0.01 / 0.001": Method(FedYogi, {"eta": 0.01, "tau": 0.001}),
    "FedHyper": Method(FedHyper),
    "FedDoG": Method(FedDoG, average="poly-8"),
    "FedDoWG": Method(FedDoWG, average="poly-8"),
    "schedule-free 3": Method(FedScheduleFree, average="poly-9"),
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


class NextCharacter(nn.Module):
    """The next character from the ten before it: an embedding and a hidden layer.

    An LSTM over 80 characters takes a hundred times as long, too long for a grid of rates.
    """

    def __init__(self, alphabet: int = 128, context: int = 10, width: int = 128) -> None:
        super().__init__()
        self.context = context
        self.layers = nn.Sequential(
            nn.Embedding(alphabet, 8),
            nn.Flatten(),
            nn.Linear(8 * context, width),
            nn.ReLU(),
            nn.Linear(width, alphabet),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, length]`` characters to ``[n, alphabet]`` logits."""
        return self.layers(x[:, -self.context :].long())  # type: ignore[no-any-return]


def next_character(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The model of the federation of roles; for ``Config(model=...)``."""
    return NextCharacter(num_classes)


_SKEWED = {"num_clients": 100, "alpha": 0.3, "num_server_rounds": 80}
_NATURAL = {"partitioner": "natural", "num_clients": 0}
FEDERATIONS = {
    "digits": Federation(0.85, {}, seeds=10, rates=(0.01, *RATES)),
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
    "Shakespeare": Federation(
        0.35,
        {
            **_NATURAL,
            "dataset": "tinyshakespeare",
            "model": "experiments.server_steps:next_character",
            "fraction_train": 0.1,
            "num_server_rounds": 40,
        },
        shown=(),
        rates=(*RATES, 3.16),
    ),
    "Fashion-MNIST": Federation(0.80, {**_SKEWED, "dataset": "fashion-mnist"}, pooled=True),
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
    return Config(**own, data_dir=data_dir, seed=seed, engine="serial")


class Curves:
    """Test accuracy after every round, of each of ``names``, averages of the iterates."""

    def __init__(self, config: Config, names: tuple[str, ...] = AVERAGES) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in names}
        score = app.test_evaluation(config)
        self._means = [
            MeanOfIterates(partial(self._note, name, score), average_named(name)) for name in names
        ]

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        """Evaluate a round; for ``rounds``."""
        for mean in self._means:
            mean(server_round, arrays)

    def _note(self, name: str, score: Any, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        found: MetricRecord = score(server_round, arrays)
        self.values[name].append(float(found["test-accuracy"]))  # type: ignore[arg-type]
        return found


def strategy_of(method: Method, config: Config, grid: LocalGrid, rate: float) -> FedOpt:
    """The strategy of a run, whose clients learn at a rate."""
    return method.strategy(
        fraction_train=config.fraction_train,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=grid.num_nodes,
        seed=config.seed,
        client_config={"learning-rate": rate, **method.clients},
        **method.settings,
    )


def measure(grid: LocalGrid, config: Config, method: Method, rate: float, target: float) -> Any:
    """One run: what a line of the file says of it."""
    grid.forget()
    curves = Curves(config, (*AVERAGES, *filter(None, [method.average])))
    strategy = strategy_of(method, config, grid, rate)
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


def run_all(names: list[str], data_dir: str, file: Path, workers: int) -> None:
    """Make the runs that ``file`` lacks, first those that choose the rates of the others."""
    for federation in (FEDERATIONS[name] for name in names):
        if federation.pooled:  # once, before several processes would
            pooled(federation.config["dataset"], data_dir, file.parent)
    for phase in ("tuning", "reported"):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            tasks = list(missing(names, read(file), phase == "tuning"))
            list(pool.map(partial(run_seed, data_dir, file), *zip(*tasks, strict=True)))


def missing(names: list[str], done: list[dict[str, Any]], tuning: bool) -> Iterator[Any]:
    """Federation and runs of one seed, of those that ``done`` lacks."""
    for name in names:
        federation = FEDERATIONS[name]
        mine = [row for row in done if row["federation"] == name]
        known = {(row["seed"], row["method"], row["rate"]) for row in mine}
        for seed in TUNING if tuning else range(federation.seeds):
            todo = [x for x in wanted(federation, mine) if x[0] == seed and x not in known]
            if todo:
                yield name, todo


def run_seed(data_dir: str, file: Path, name: str, todo: list[tuple[int, str, float]]) -> None:
    """Runs of one federation and seed, on one grid; each is written as it ends."""
    torch.set_num_threads(1)
    federation = FEDERATIONS[name]
    config = config_of(federation, todo[0][0], data_dir, file.parent)
    with level(ERROR), grid_of(config) as grid, file.open("a", encoding="utf-8") as out:
        for seed, method, rate in todo:
            found = measure(grid, config, METHODS[method], rate, federation.target)
            key = {"federation": name, "method": method, "rate": rate, "seed": seed}
            print(json.dumps({**key, "target": federation.target, **found}), file=out, flush=True)
            print(name, method, rate, seed, found["accuracy"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="all federations, tuned rates")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--only", nargs="*", choices=FEDERATIONS, default=list(FEDERATIONS))
    parser.add_argument("--out", type=Path, default=Path("runs/server-steps.jsonl"))
    parser.add_argument("--tables", type=Path, help="print the tables of this file, run nothing")
    args = parser.parse_args()
    if not args.tables:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.full:
            run_all(args.only, args.data_dir, args.out, args.workers)
        else:
            known = {(row["method"], row["rate"]) for row in read(args.out)}
            quick = [(0, method, 0.1) for method in METHODS if (method, 0.1) not in known]
            if quick:
                run_seed("", args.out, "digits", quick)
    print(document(read(args.tables or args.out)))


if __name__ == "__main__":
    main()
