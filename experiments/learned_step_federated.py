"""Learned step sizes in a federation, beside hypergradient clients and plain SGD.

    OMP_NUM_THREADS=1 python -m experiments.learned_step_federated --full --out docs

Clients begin at a learning rate that is 100 times too small, or 10 times too large, against the
best of ``RATES`` for plain SGD under FedAvg. The server is FedAvg or FedExP. Every row is scored
alike: test accuracy of the averaged iterate, the mean over the last five rounds, and the first
round in which it reaches the target. On a seed of its own, plain SGD's best rate and, for each row,
hypersgd's hyper-learning-rate are chosen by that accuracy; of learned-step nothing is tuned. As a
reference, plain SGD runs at its best rate too. Seconds are those of the processor, of which clients
in one process use one core. Quick by default: digits, one seed, few rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import product
from logging import ERROR
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from fedexp import app
from fedexp.config import Config
from fedexp.logs import level
from fedexp.runs.engines import grid_of
from fedexp.simulation.grid import LocalGrid

RATES = (0.0316, 0.1, 0.316, 1.0)
HYPER_RATES = (0.03, 0.1, 0.3)
FACTORS = (0.01, 10.0)
SERVERS = ("fedavg", "fedexp")
CLIENTS: dict[str, dict[str, Any]] = {
    "sgd": {"local_optimizer": "sgd"},
    "hypersgd": {"local_optimizer": "hypersgd", "hyper_between_rounds": "average"},
    "learned-step": {"local_optimizer": "learned-step(every=5, steps=10, by=validation)"},
}
TUNING_SEED = 100
FEDERATIONS: dict[str, tuple[float, dict[str, Any]]] = {
    "digits": (0.85, {"dataset": "digits", "fraction_train": 0.1}),
    "WISDM": (
        0.70,
        {
            **{"dataset": "wisdm", "partitioner": "natural", "num_clients": 0},
            "fraction_train": 0.15,
        },
    ),
}
Row = dict[str, Any]


def run(
    grid: LocalGrid, common: dict[str, Any], target: float, server: str, clients: str, **own: Any
) -> Row:
    """One run. The learning rate that clients begin at is that of the grid."""
    config = Config(**common | CLIENTS[clients] | own)
    grid.forget()
    start, accuracies, rates, learned = time.process_time(), [], [], []
    for round_ in app.Run(config, server, grid.num_nodes).rounds(grid):
        accuracies.append(cast(float, round_.server["mean-test-accuracy"]))
        rates.append(cast(float, round_.train.get("learning-rate")))
        learned.append(cast(float, round_.train.get("learned-step-size")))
    return {
        **{"server": server, "clients": clients, **own},
        "accuracy": fmean(accuracies[-5:]),
        "rounds": next((t for t, a in enumerate(accuracies, 1) if a >= target), None),
        "accuracies": [round(a, 4) for a in accuracies],
        "rates": [_short(x) for x in rates],
        "learned-step-size": [_short(x) for x in learned] if clients == "learned-step" else None,
        "seconds": round(time.process_time() - start, 2),
    }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


class Federation:
    """Digits or WISDM, for so many rounds.

    Args:
        name: a key of ``FEDERATIONS``.
        num_rounds: of every run.
        data_dir: where the files are.
    """

    def __init__(self, name: str, num_rounds: int, data_dir: str) -> None:
        self.target, own = FEDERATIONS[name]
        self.common = {**own, "data_dir": data_dir, "num_server_rounds": num_rounds}

    def rows(self, seed: int, rate: float, wanted: Sequence[tuple[str, str, Row]]) -> list[Row]:
        """Runs of ``(server, clients, settings)`` whose clients begin at ``rate``."""
        common = {**self.common, "seed": seed, "learning_rate": rate}
        with grid_of(Config(**common, engine="serial")) as grid:
            return [run(grid, common, self.target, s, c, **own) for s, c, own in wanted]

    def best_rate(self) -> tuple[float, dict[str, float]]:
        """Of plain SGD under FedAvg, and the accuracy of each."""
        plain: list[tuple[str, str, Row]] = [("fedavg", "sgd", {})]
        found = {x: self.rows(TUNING_SEED, x, plain)[0]["accuracy"] for x in RATES}
        return max(found, key=found.__getitem__), {str(k): v for k, v in found.items()}

    def best_hyper_rates(self, rate: float) -> dict[str, float]:
        """Of hypersgd clients that begin at ``rate``, for each server."""
        wanted = [
            (s, "hypersgd", {"hyper_learning_rate": x}) for s, x in product(SERVERS, HYPER_RATES)
        ]
        rows = self.rows(TUNING_SEED, rate, wanted)
        best = {s: max((r for r in rows if r["server"] == s), key=_accuracy) for s in SERVERS}
        return {s: row["hyper_learning_rate"] for s, row in best.items()}

    def compared(self, seeds: Sequence[int], factors: Sequence[float]) -> Row:
        """All rows: those of plain SGD at its best rate have the factor 1."""
        rate, scores = self.best_rate()
        rows, chosen = [], {}
        for factor in (1.0, *factors):
            names = list(CLIENTS) if factor != 1 else ["sgd"]
            hyper = self.best_hyper_rates(factor * rate) if factor != 1 else {}
            chosen[str(factor)] = hyper
            wanted = [
                (s, c, {"hyper_learning_rate": hyper[s]} if c == "hypersgd" else {})
                for s, c in product(SERVERS, names)
            ]
            for seed in seeds:
                for row in self.rows(seed, factor * rate, wanted):
                    rows.append({"seed": seed, "factor": factor, **row})
                    shown = ("server", "clients", "accuracy", "rounds", "seconds")
                    print(seed, f"{factor:g} × {rate:g}", *(row[x] for x in shown), flush=True)
        chosen_rates = {"rate": rate, "scores-of-rates": scores, "hyper-rates": chosen}
        return {**chosen_rates, "target": self.target, "rows": rows}


def _accuracy(row: Row) -> float:
    return cast(float, row["accuracy"])


def table(found: Row) -> str:
    """Accuracy and seconds of each kind of row over seeds, as Markdown."""
    head = "| clients begin at | server | clients | accuracy % | rounds to target | seconds |\n"
    lines = [head, "| --- | --- | --- | ---: | --- | ---: |\n"]
    rows = found["rows"]
    for factor, server in product(dict.fromkeys(r["factor"] for r in rows), SERVERS):
        for clients in CLIENTS:
            key = factor, server, clients
            same = [r for r in rows if (r["factor"], r["server"], r["clients"]) == key]
            if not same:
                continue
            values = [100 * r["accuracy"] for r in same]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            rounds = ", ".join(str(r["rounds"] or "-") for r in same)
            seconds = fmean(r["seconds"] for r in same)
            begin = f"{factor:g} × {found['rate']:g}"
            cells = (begin, server, clients, f"{fmean(values):.1f}{spread}", rounds)
            lines.append(f"| {' | '.join(cells)} | {seconds:.0f} |\n")
    return "".join(lines)


def plot(path: Path, result: dict[str, Row]) -> None:
    """Accuracy against rounds, and below it the rates; one column for each start."""
    from matplotlib.figure import Figure

    federations = list(result)
    rows = result[federations[0]]["rows"]
    factors = [x for x in dict.fromkeys(r["factor"] for r in rows) if x != 1]
    columns = list(product(federations, factors))
    canvas = Figure(figsize=(4.2 * len(columns), 7), layout="constrained")
    axes = canvas.subplots(2, len(columns), squeeze=False)
    colours = dict(zip(CLIENTS, ("#000000", "#E69F00", "#0072B2"), strict=True))
    for (name, factor), (above, below) in zip(columns, axes.T, strict=True):
        found = result[name]
        rows = [r for r in found["rows"] if r["factor"] == factor]
        best = [r for r in found["rows"] if r["factor"] == 1]
        for server, ls in zip(SERVERS, ("--", "-"), strict=True):
            same = [r["accuracies"] for r in best if r["server"] == server]
            mean = [fmean(x) for x in zip(*same, strict=False)]
            label = f"sgd at {found['rate']:g}, {server}"
            above.plot(range(1, len(mean) + 1), mean, color="0.7", ls=ls, label=label)
        for clients, server in product(CLIENTS, SERVERS):
            same = [r for r in rows if (r["clients"], r["server"]) == (clients, server)]
            style = {"color": colours[clients], "ls": "-" if server == "fedexp" else "--"}
            # As long as all seeds ran: a run ends after three failed rounds.
            mean = [fmean(x) for x in zip(*(r["accuracies"] for r in same), strict=False)]
            above.plot(range(1, len(mean) + 1), mean, label=f"{clients}, {server}", **style)
            for row in same:  # one line for each seed; none where no client replied
                rates = [math.nan if x is None else x for x in row["rates"]]
                below.plot(range(1, len(rates) + 1), rates, lw=0.8, **style)
        above.set(title=f"{name}, first rate {factor:g} × {found['rate']:g}", ylabel="accuracy")
        below.set(xlabel="round", ylabel="clients' learning rate", yscale="log")
    axes[0][0].legend(fontsize=7)
    canvas.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/learned-step-federated"))
    parser.add_argument("--data-dir", default="../shared/data", help="holds wisdm/, for --full")
    parser.add_argument("--full", action="store_true", help="WISDM too, three seeds, 25 rounds")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    names, seeds = (list(FEDERATIONS), (0, 1, 2)) if args.full else (["digits"], (0,))
    num_rounds, factors = (25, FACTORS) if args.full else (6, FACTORS[:1])
    result: dict[str, Row] = {}
    with level(ERROR):
        for name in names:
            print(name, flush=True)
            federation = Federation(name, num_rounds, args.data_dir)
            result[name] = federation.compared(seeds, factors)
            print(table(result[name]))
            text = json.dumps(result, allow_nan=False) + "\n"
            (args.out / "learned-step-federated.json").write_text(text, encoding="utf-8")
    plot(args.out / "learned-step-federated.png", result)


if __name__ == "__main__":
    main()
