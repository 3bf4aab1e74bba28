"""Clients that begin at a learning rate 100 times too small, and find a better one, or do not.

Digits, labels skewed by a Dirichlet(0.1), 10 of 50 clients a round, 20 local steps, learning rate
0.001 where 0.1 is right. Counts the rounds to 85 % test accuracy of the averaged iterate
(``--average``), for both servers alike. Fixed-rate clients get ``--max-rounds`` of them, the others
half as many: who arrives has halved the rounds.

    python -m experiments.hypergradient_clients [--seeds 3] [--max-rounds 100] [--out FILE.json]

With ``--learning-rate 0.1 --whole --max-rounds 40`` the rate is right from the start: all clients
get all rounds, and the mean accuracy over the last five is printed as well.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from logging import ERROR
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

from fedexp import app
from fedexp.config import Config
from fedexp.logs import level
from fedexp.runs.engines import grid_of
from fedexp.simulation.grid import LocalGrid

TARGET = 0.85
SERVERS = ("fedavg", "fedexp")
TOO_SMALL = 0.001
CLIENTS: dict[str, dict[str, Any]] = {
    "fixed": {"local_optimizer": "sgd"},
    **{
        f"hypersgd, height {height}, {policy}": {
            "local_optimizer": "hypersgd",
            "hyper_height": height,
            "hyper_between_rounds": policy,
        }
        for height, policy in product((1, 2), ("fresh", "carry", "average"))
    },
    **{
        f"{name}, carry": {"local_optimizer": name, "hyper_between_rounds": "carry"}
        for name in ("delta-sgd", "fedhyper")
    },
}


class Found(NamedTuple):
    """Of a run: rounds until the target is reached, None if it is not, and the last accuracies."""

    rounds: int | None
    accuracy: float


def measure(
    grid: LocalGrid,
    server: str,
    clients: str,
    *,
    rate: float,
    seed: int,
    num_rounds: int,
    whole: bool,
) -> Found:
    """One row in one column with one seed; ends at the target unless ``whole``."""
    config = Config(learning_rate=rate, **CLIENTS[clients], seed=seed, num_server_rounds=num_rounds)
    grid.forget()
    accuracies: list[float] = []
    for round_ in app.Run(config, server, grid.num_nodes).rounds(grid):
        accuracies.append(cast(float, round_.server["mean-test-accuracy"]))
        if accuracies[-1] >= TARGET and not whole:
            break
    reached = next((i for i, x in enumerate(accuracies, 1) if x >= TARGET), None)
    return Found(reached, round(fmean(accuracies[-5:]), 4))


Table = dict[str, dict[str, list[Found]]]


def rounds_given(clients: str, max_rounds: int, whole: bool) -> int:
    """Half the rounds for clients that tune their rate: who arrives has halved them."""
    return max_rounds if whole or clients == "fixed" else max_rounds // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-rounds", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=TOO_SMALL)
    parser.add_argument("--whole", action="store_true", help="do not stop at the target")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: Table = {clients: {server: [] for server in SERVERS} for clients in CLIENTS}
    with level(ERROR):
        for seed in range(args.seeds):
            # Clients take all but their optimizer from the grid: it is that of every row.
            with grid_of(Config(learning_rate=args.learning_rate, seed=seed)) as grid:
                for clients, server in product(CLIENTS, SERVERS):
                    given = rounds_given(clients, args.max_rounds, args.whole)
                    run = measure(
                        grid,
                        server,
                        clients,
                        rate=args.learning_rate,
                        seed=seed,
                        num_rounds=given,
                        whole=args.whole,
                    )
                    found[clients][server].append(run)
                    print(seed, clients, server, run, flush=True)
    print(table(found, args.max_rounds, args.whole))
    if args.out:
        settings = {"target": TARGET, "max-rounds": args.max_rounds, "rate": args.learning_rate}
        args.out.write_text(json.dumps({**settings, "runs": found}, indent=1) + "\n")


def table(found: Table, max_rounds: int, whole: bool) -> str:
    """Rounds to the target by seed, and last accuracies if ``whole``, as Markdown."""
    lines = ["| clients | FedAvg | FedExP |", "|---|---|---|"]
    for clients, row in found.items():
        limit = rounds_given(clients, max_rounds, whole)
        cells = []
        for server in SERVERS:
            cell = ", ".join(str(run.rounds or f"> {limit}") for run in row[server])
            last = ", ".join(f"{run.accuracy:.3f}" for run in row[server])
            cells.append(f"{cell}: {last}" if whole else cell)
        lines.append(f"| {clients} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
