"""Where a long server step may fail: digits made hard in nine ways, methods tuned and scored alike.

    python -m experiments.hard_federations --out docs/hard-federations.jsonl --workers 2

Each federation differs from the first in one thing. As in ``experiments.server_steps`` the client
rate of each method is the best of three on the seeds ``TUNING``, and what is reported comes from
the seeds 0 to 2. A line of the file is one run; runs that it holds are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from logging import ERROR
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.server_step_tables import TUNING, Rows, accuracy, read, tuned_rate
from experiments.server_steps import METHODS, config_of, measure
from experiments.server_steps import Federation as Base
from experiments.which_step import AVERAGE, against, chosen, table
from fedexp.datasets import load
from fedexp.logs import level
from fedexp.runs.engines import grid_of

RATES = (0.1, 0.316, 1.0)
SEEDS = range(3)
COMPARED = (
    *("FedAvg", "FedExP", "FedAdagrad 0.1 / 0.01", "FedAdam 0.01 / 0.001"),
    *("Nesterov 0.7 / 0.9", "Nesterov 1 / 0.9", "NesterovExP", "NesterovExP, relative step 0.2"),
)
HARD: dict[str, dict[str, Any]] = {
    "as before": {},
    "2 clients a round": {"fraction_train": 0.04, "num_server_rounds": 80},
    "5 clients a round": {"fraction_train": 0.1, "num_server_rounds": 80},
    "all clients": {"fraction_train": 1.0, "num_server_rounds": 30},
    "unequal sizes": {"partitioner": "quantity-lognormal", "sigma": 1.5},
    "one step": {"local_steps": 1, "num_server_rounds": 120},
    "100 steps": {"local_steps": 100},
    "200 rounds": {"num_server_rounds": 200},
    "a fifth of the labels wrong": {"dataset": "noisy"},
    "batch norm": {"model": "experiments.hard_federations:batch_norm"},
}


def batch_norm(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two hidden layers with batch norm; for ``Config(model=...)``."""
    width = int(np.prod(shape))
    hidden = [[nn.Linear(n, 64), nn.BatchNorm1d(64), nn.ReLU()] for n in (width, 64)]
    return nn.Sequential(nn.Flatten(), *hidden[0], *hidden[1], nn.Linear(64, num_classes))


def noisy_digits(folder: Path) -> str:
    """Digits of which a fifth of the training labels are drawn at random, as an ``.npz`` file."""
    path = folder / "noisy-digits.npz"
    if not path.exists():
        data, rng = load("digits"), np.random.default_rng(0)
        (x_train, y_train), (x_test, y_test) = (
            [x.numpy() for x in part] for part in (data.train, data.test)
        )
        wrong = rng.random(len(y_train)) < 0.2
        y_train = np.where(wrong, rng.integers(0, 10, len(y_train)), y_train)
        np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(path)


def run_all(file: Path, workers: int) -> None:
    """Make the runs that ``file`` lacks, first those that choose the rates of the others."""
    noisy_digits(file.parent)
    for seeds in (TUNING, tuple(SEEDS)):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            tasks = list(missing(read(file), seeds))
            list(pool.map(partial(run_seed, file), *zip(*tasks, strict=True)))


def missing(
    done: Rows, seeds: tuple[int, ...]
) -> Iterator[tuple[str, int, list[tuple[str, float]]]]:
    """Federation, seed, and the methods and rates to run there."""
    for name in HARD:
        mine = [row for row in done if row["federation"] == name]
        known = {(row["seed"], row["method"], row["rate"]) for row in mine}
        for seed in seeds:
            wanted = [
                (method, rate)
                for method in COMPARED
                for rate in (RATES if seed in TUNING else [tuned_rate(mine, method, AVERAGE)])
                if (seed, method, rate) not in known
            ]
            if wanted:
                yield name, seed, wanted


def run_seed(file: Path, name: str, seed: int, wanted: list[tuple[str, float]]) -> None:
    """Runs of one federation and seed, on one grid; each is written as it ends."""
    torch.set_num_threads(1)
    own = dict(HARD[name])
    if own.get("dataset") == "noisy":
        own["dataset"] = noisy_digits(file.parent)
    federation = Base(0.85, own)
    config = config_of(federation, seed, "", file.parent)
    with level(ERROR), grid_of(config) as grid, file.open("a", encoding="utf-8") as out:
        for method, rate in wanted:
            found = measure(grid, config, METHODS[method], rate, federation.target)
            key = {"federation": name, "method": method, "rate": rate, "seed": seed}
            print(json.dumps({**key, "target": federation.target, **found}), file=out, flush=True)


def document(rows: Rows) -> str:
    """Accuracy of each method; bold if it is ahead of FedAvg with every seed, ``-`` if behind."""
    parts = {name: [row for row in rows if row["federation"] == name] for name in HARD}
    return table({name: mine for name, mine in parts.items() if mine}, cell)


def cell(mine: Rows, method: str) -> str:
    """One entry of the table."""
    text = accuracy(chosen(mine, method), AVERAGE)
    return {"ahead": f"**{text}**", "behind": f"{text} -"}.get(against(mine, method), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/hard-federations.jsonl"))
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        run_all(args.out, args.workers)
    print(document(read(args.out)))


if __name__ == "__main__":
    main()
