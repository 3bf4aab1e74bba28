"""Where a long server step may fail: federations made hard, methods tuned and scored alike.

    python -m experiments.hard_federations --data-dir DATA --out FILE.jsonl --workers 2
    python -m experiments.hard_federations --out docs/hard-federations.jsonl --tables

Most of the federations differ from the first, digits as in ``experiments.server_steps``, in one
thing. As there, the client rate of each method is the best of the same three for all on the seeds
``TUNING``, and what is reported comes from the seeds 0 to 2. A line of the file is one run; runs
that it holds are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from logging import ERROR
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from experiments.hard_models import written
from experiments.server_step_tables import TUNING, Rows, read, tuned_rate, unique
from experiments.server_steps import METHODS, Method, measure
from experiments.which_step import AVERAGE, marked
from fedexp.config import Config
from fedexp.logs import level
from fedexp.runs.engines import grid_of
from fedexp.strategies import NesterovExP

SEEDS = (0, 1, 2)
FEW = (
    *("FedAvg", "fixed step 2", "FedAdagrad 0.1 / 0.01", "Nesterov 1 / 0.9", "NesterovExP"),
    *("Nesterov 1 / 0.8", "NesterovExP, momentum 0.8"),
)
COMPARED = (
    *("FedAvg", "fixed step 2", "FedExP", "FedExP, smoothing 0.5", "FedAdagrad 0.1 / 0.01"),
    *("FedAdam 0.1 / 0.001", "FedAdam 0.01 / 0.001", "Nesterov 0.7 / 0.9", "Nesterov 1 / 0.9"),
    *("NesterovExP", "NesterovExP, relative step 0.2"),
    *("Nesterov 1 / 0.8", "NesterovExP, momentum 0.8"),
)
CONSTANTS = {
    "NesterovExP": Method(NesterovExP),
    "κ 0.25": Method(NesterovExP, {"relaxation": 0.25}),
    "κ 1": Method(NesterovExP, {"relaxation": 1.0}),
    "μ 0.8": Method(NesterovExP, {"server_momentum": 0.8}),
    "μ 0.95": Method(NesterovExP, {"server_momentum": 0.95}),
    "b 0": Method(NesterovExP, {"smoothing": 0.0}),
    "b 0.9": Method(NesterovExP, {"smoothing": 0.9}),
}
"""``NesterovExP`` with one of its constants changed; its own are κ 0.5, μ 0.9 and b 0.5."""


@dataclass(frozen=True)
class Hard:
    """A federation, what its clients are told, and how all its strategies are set."""

    config: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = COMPARED
    rates: tuple[float, ...] = (0.1, 0.316, 1.0)
    target: float = 0.85


HARD = {
    "as before": Hard(),
    "2 clients a round": Hard({"fraction_train": 0.04, "num_server_rounds": 80}),
    "5 clients a round": Hard({"fraction_train": 0.1, "num_server_rounds": 80}),
    "all clients": Hard({"fraction_train": 1.0, "num_server_rounds": 30}),
    "unequal sizes": Hard({"partitioner": "quantity-lognormal", "sigma": 1.5}),
    "one step": Hard({"local_steps": 1, "num_server_rounds": 120}),
    "100 steps": Hard({"local_steps": 100}),
    "a fifth of the labels wrong": Hard({"dataset": "noisy-digits"}),
    "batch norm": Hard({"model": "experiments.hard_models:batch_norm"}),
    "FedProx's clients": Hard(clients={"proximal-mu": 0.1}),
    "SCAFFOLD's clients": Hard(settings={"control_variates": True}),
    "hypergradient clients": Hard(clients={"local-optimizer": "hypersgd"}),
    "500 rounds": Hard({"num_server_rounds": 500}, methods=FEW),
    "an LSTM on Shakespeare": Hard(
        {
            "dataset": "tinyshakespeare",
            "partitioner": "natural",
            "num_clients": 0,
            "model": "experiments.hard_models:short_lstm",
            "fraction_train": 0.05,
        },
        methods=FEW,
        rates=(0.316, 1.0, 3.16, 10.0),
        target=0.3,
    ),
    "a ResNet on Fashion-MNIST": Hard(
        {
            "dataset": "small-fashion",
            "num_clients": 100,
            "alpha": 0.3,
            "fraction_train": 0.05,
            "local_steps": 10,
            "num_server_rounds": 30,
            "model": "experiments.hard_models:narrow_resnet18",
        },
        methods=FEW,
        rates=(0.01, 0.0316, 0.1),
        target=0.7,
    ),
}
_OF_USERS = {"partitioner": "natural", "num_clients": 0}
_ROLES = {"dataset": "tinyshakespeare", "model": "experiments.server_steps:next_character"}
TUNED = {
    "constants: digits": Hard(methods=tuple(CONSTANTS)),
    "constants: heart disease": Hard(
        {
            **_OF_USERS,
            "dataset": "heart-disease",
            "model": "linear",
            "fraction_train": 1.0,
            "num_server_rounds": 20,
        },
        methods=tuple(CONSTANTS),
        rates=(0.00316, 0.01, 0.0316),
        target=0.75,
    ),
    "constants: WISDM": Hard(
        {**_OF_USERS, "dataset": "wisdm", "fraction_train": 0.3, "num_server_rounds": 60},
        methods=tuple(CONSTANTS),
        rates=(0.0316, 0.1, 0.316),
        target=0.7,
    ),
    "constants: MNIST by writer": Hard(
        {**_OF_USERS, "dataset": "pooled-mnist", "fraction_train": 0.02},
        methods=tuple(CONSTANTS),
        target=0.9,
    ),
    "constants: Shakespeare": Hard(
        {**_OF_USERS, **_ROLES, "fraction_train": 0.1},
        methods=tuple(CONSTANTS),
        rates=(0.1, 0.316, 1.0),
        target=0.35,
    ),
}
"""Where the constants of ``NesterovExP`` are changed one by one."""

ALL = HARD | TUNED


def run_all(names: list[str], data_dir: str, file: Path, workers: int) -> None:
    """Make the runs that ``file`` lacks, first those that choose the rates of the others."""
    for name in names:
        written(ALL[name].config.get("dataset", ""), data_dir, file.parent)  # once, before several
    for seeds in (TUNING, SEEDS):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            tasks = list(missing(names, read(file), seeds))
            list(pool.map(partial(run_seed, data_dir, file), *zip(*tasks, strict=True)))


def missing(
    names: list[str], done: Rows, seeds: tuple[int, ...]
) -> Iterator[tuple[str, int, list[tuple[str, float]]]]:
    """Federation, seed, and the methods and rates to run there."""
    for name in names:
        mine = [row for row in done if row["federation"] == name]
        known = {(row["seed"], row["method"], row["rate"]) for row in mine}
        for seed in seeds:
            wanted = [
                (method, rate)
                for method in ALL[name].methods
                for rate in (
                    ALL[name].rates if seed in TUNING else [tuned_rate(mine, method, AVERAGE)]
                )
                if (seed, method, rate) not in known
            ]
            if wanted:
                yield name, seed, wanted


def run_seed(
    data_dir: str, file: Path, name: str, seed: int, wanted: list[tuple[str, float]]
) -> None:
    """Runs of one federation and seed, on one grid; each is written as it ends."""
    torch.set_num_threads(1)
    hard = ALL[name]
    own = {**hard.config, "data_dir": data_dir, "seed": seed, "engine": "serial"}
    if "dataset" in own:
        own["dataset"] = written(own["dataset"], data_dir, file.parent)
    config = Config(**own)
    with level(ERROR), grid_of(config) as grid, file.open("a", encoding="utf-8") as out:
        for method, rate in wanted:
            found = measure(grid, config, set_as(hard, method), rate, hard.target)
            key = {"federation": name, "method": method, "rate": rate, "seed": seed}
            print(json.dumps({**key, "target": hard.target, **found}), file=out, flush=True)


def set_as(hard: Hard, name: str) -> Method:
    """A method with the settings that all of a federation have."""
    method = (METHODS | CONSTANTS)[name]
    return replace(
        method,
        settings={**method.settings, **hard.settings},
        clients={**method.clients, **hard.clients},
    )


def document(rows: Rows) -> str:
    """Accuracy; bold if it is ahead of the first method with every seed, ``-`` if behind."""
    return "\n\n".join(
        table({name: [r for r in rows if r["federation"] == name] for name in names}, rival)
        for names, rival in ((HARD, "FedAvg"), (TUNED, "NesterovExP"))
    )


def table(parts: Mapping[str, Rows], rival: str) -> str:
    """A line for each federation that there are runs of, a column for each method."""
    methods = unique([row for mine in parts.values() for row in mine], "method")
    lines = [f"| federation | {' | '.join(methods)} |", "| --- |" + " ---: |" * len(methods)]
    lines += [
        f"| {name} | {' | '.join(marked(mine, method, rival) for method in methods)} |"
        for name, mine in parts.items()
        if mine
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/hard-federations.jsonl"))
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--only", nargs="*", choices=ALL, default=list(ALL))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        run_all(args.only, args.data_dir, args.out, args.workers)
    print(document(read(args.out)))


if __name__ == "__main__":
    main()
