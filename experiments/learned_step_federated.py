"""Learned step sizes in a federation, beside hypergradient clients and plain SGD.

    OMP_NUM_THREADS=1 python -m experiments.learned_step_federated --full --out docs

Clients begin at a learning rate that is 100 times too small, or 10 times too large, against the
best of ``RATES`` for plain SGD under FedAvg; then at that best rate itself. The server is FedAvg or
FedExP. Every row is scored alike: test accuracy of the averaged iterate, the mean over the last
five rounds, and the first round in which it reaches the target. On a seed of its own, plain SGD's
best rate and, for each row, hypersgd's hyper-learning-rate are chosen by that accuracy;
learned-step runs at its default settings. Quick by default: digits, one seed, few rounds.
"""

from __future__ import annotations

import argparse
import json
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
FACTORS = (0.01, 10.0, 1.0)
SERVERS = ("fedavg", "fedexp")
CLIENTS: dict[str, dict[str, Any]] = {
    "sgd": {"local_optimizer": "sgd"},
    "hypersgd": {"local_optimizer": "hypersgd", "hyper_between_rounds": "average"},
    "learned-step": {"local_optimizer": "learned-step(every=5, steps=20, by=validation)"},
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


class Federated:
    """Runs of one federation and seed; all clients but for their optimizer are those of one grid.

    Args:
        grid: of the clients.
        common: fields of ``Config`` that all runs share.
        target: test accuracy that rounds are counted to.
    """

    def __init__(self, grid: LocalGrid, common: dict[str, Any], target: float) -> None:
        self.grid, self.common, self.target = grid, common, target

    def run(self, server: str, clients: str, rate: float, **own: Any) -> Row:
        """One run."""
        config = Config(**self.common | CLIENTS[clients] | own | {"learning_rate": rate})
        self.grid.forget()
        start, accuracies, rates, learned = time.perf_counter(), [], [], []
        for round_ in app.Run(config, server, self.grid.num_nodes).rounds(self.grid):
            accuracies.append(cast(float, round_.server["mean-test-accuracy"]))
            rates.append(cast(float, round_.train.get("learning-rate")))
            learned.append(cast(float, round_.train.get("learned-step-size")))
        return {
            **{"server": server, "clients": clients, "first-rate": rate, **own},
            "accuracy": fmean(accuracies[-5:]),
            "rounds": next((t for t, a in enumerate(accuracies, 1) if a >= self.target), None),
            "accuracies": [round(a, 4) for a in accuracies],
            "rates": rates,
            "learned-step-size": learned if clients == "learned-step" else None,
            "seconds": round(time.perf_counter() - start, 2),
        }

    def best_rate(self) -> tuple[float, dict[str, float]]:
        """Of plain SGD under FedAvg, and the accuracy of each."""
        found = {rate: self.run("fedavg", "sgd", rate)["accuracy"] for rate in RATES}
        return max(found, key=found.__getitem__), {str(k): v for k, v in found.items()}

    def best_hyper_rate(self, server: str, rate: float) -> float:
        """Of hypersgd clients that begin at ``rate``."""

        def score(hyper: float) -> float:
            found = self.run(server, "hypersgd", rate, hyper_learning_rate=hyper)
            return cast(float, found["accuracy"])

        return max(HYPER_RATES, key=score)


def opened(name: str, seed: int, num_rounds: int, data_dir: str) -> dict[str, Any]:
    """The fields of ``Config`` of a federation."""
    own = FEDERATIONS[name][1]
    return {**own, "data_dir": data_dir, "seed": seed, "num_server_rounds": num_rounds}


def compared(
    name: str, seeds: Sequence[int], num_rounds: int, data_dir: str, factors: Sequence[float]
) -> Row:
    """All rows of one federation."""
    target = FEDERATIONS[name][0]
    pairs = list(product(factors, SERVERS))
    common = opened(name, TUNING_SEED, num_rounds, data_dir)
    with grid_of(Config(**common, engine="serial")) as grid:
        tuning = Federated(grid, common, target)
        rate, scores = tuning.best_rate()
        hyper = {(f, s): tuning.best_hyper_rate(s, f * rate) for f, s in pairs}
    print(f"{name}: plain SGD's rate {rate}, hyper-learning-rates {hyper}", flush=True)
    rows = []
    for seed in seeds:
        common = opened(name, seed, num_rounds, data_dir)
        with grid_of(Config(**common, engine="serial")) as grid:
            runs = Federated(grid, common, target)
            for (factor, server), clients in product(pairs, CLIENTS):
                own = {"hyper_learning_rate": hyper[factor, server]} if "hyper" in clients else {}
                row = {"seed": seed, "factor": factor}
                row |= runs.run(server, clients, factor * rate, **own)
                rows.append(row)
                shown = ("accuracy", "rounds", "seconds")
                print(name, seed, factor, server, clients, [row[x] for x in shown], flush=True)
    return {"rate": rate, "scores-of-rates": scores, "target": target, "rows": rows}


def table(found: Row) -> str:
    """Accuracy and seconds of each row over seeds, as Markdown."""
    head = "| clients begin at | server | clients | accuracy % | rounds to target | seconds |\n"
    lines = [head, "| --- | --- | --- | ---: | --- | ---: |\n"]
    rows = found["rows"]
    for factor, server in product(dict.fromkeys(r["factor"] for r in rows), SERVERS):
        for clients in CLIENTS:
            same = [
                r
                for r in rows
                if (r["factor"], r["server"], r["clients"]) == (factor, server, clients)
            ]
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
    factors = list(dict.fromkeys(r["factor"] for r in result[federations[0]]["rows"]))
    columns = list(product(federations, factors))
    canvas = Figure(figsize=(4.2 * len(columns), 7), layout="constrained")
    axes = canvas.subplots(2, len(columns), squeeze=False)
    colours = dict(zip(CLIENTS, ("#000000", "#E69F00", "#0072B2"), strict=True))
    for (name, factor), (above, below) in zip(columns, axes.T, strict=True):
        found = result[name]
        rows = [r for r in found["rows"] if r["factor"] == factor]
        for clients, server in product(CLIENTS, SERVERS):
            same = [r for r in rows if (r["clients"], r["server"]) == (clients, server)]
            style = {"color": colours[clients], "ls": "-" if server == "fedexp" else "--"}
            mean = [fmean(x) for x in zip(*(r["accuracies"] for r in same), strict=True)]
            above.plot(range(1, len(mean) + 1), mean, label=f"{clients}, {server}", **style)
            rates = [fmean(x) for x in zip(*(r["rates"] for r in same), strict=True)]
            below.plot(range(1, len(rates) + 1), rates, **style)
        above.set(title=f"{name}, first rate {factor:g} × {found['rate']:g}", ylabel="accuracy")
        below.set(xlabel="round", ylabel="clients' learning rate", yscale="log")
    axes[0][0].legend(fontsize=7)
    canvas.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/learned-step-federated"))
    parser.add_argument("--data-dir", default="../shared/data", help="holds wisdm/, for --full")
    parser.add_argument("--full", action="store_true", help="WISDM too, three seeds, 30 rounds")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    names, seeds = (list(FEDERATIONS), (0, 1, 2)) if args.full else (["digits"], (0,))
    num_rounds, factors = (30, FACTORS) if args.full else (6, FACTORS[:1])
    result: dict[str, Row] = {}
    with level(ERROR):
        for name in names:
            result[name] = compared(name, seeds, num_rounds, args.data_dir, factors)
            print(table(result[name]))
            text = json.dumps(result, indent=1, allow_nan=False) + "\n"
            (args.out / "learned-step-federated.json").write_text(text, encoding="utf-8")
    plot(args.out / "learned-step-federated.png", result)


if __name__ == "__main__":
    main()
