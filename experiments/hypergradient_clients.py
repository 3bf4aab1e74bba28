"""Clients that begin at a learning rate 100 times too small, and find a better one, or do not.

Digits, labels skewed by a Dirichlet(0.1), 10 of 50 clients a round, 20 local steps, learning rate
0.001 where 0.1 is right. Counts the rounds to 85 % test accuracy. Fixed-rate clients get
``--max-rounds`` of them, the others half as many: who arrives has halved the rounds.

    python -m experiments.hypergradient_clients [--seeds 3] [--max-rounds 100] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from logging import ERROR
from pathlib import Path
from typing import Any

from fedexp import app
from fedexp.config import Config
from fedexp.logs import level
from fedexp.simulation.grid import LocalGrid
from fedexp.simulation.run import grid_of

TARGET = 0.85
SERVERS = ("fedavg", "fedexp")
SETTINGS = {"learning_rate": 0.001}
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


def rounds_to_target(grid: LocalGrid, config: Config, server: str) -> int | None:
    """Rounds until the target is reached; None if it is not."""
    grid.forget()
    for round_ in app.Run(config, server, grid.num_nodes).rounds(grid):
        if round_.server["test-accuracy"] >= TARGET:
            return round_.server_round
    return None


def measure(
    grid: LocalGrid, server: str, clients: str, *, seed: int, max_rounds: int
) -> int | None:
    """Rounds to the target of one row in one column with one seed."""
    limit = max_rounds if clients == "fixed" else max_rounds // 2
    config = Config(**SETTINGS, **CLIENTS[clients], seed=seed, num_server_rounds=limit)
    return rounds_to_target(grid, config, server)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-rounds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[str, list[int | None]]] = {
        clients: {server: [] for server in SERVERS} for clients in CLIENTS
    }
    with level(ERROR):
        for seed in range(args.seeds):
            # Clients take all but their optimizer from the grid: it is that of every row.
            with grid_of(Config(**SETTINGS, seed=seed)) as grid:
                for clients, server in product(CLIENTS, SERVERS):
                    rounds = measure(grid, server, clients, seed=seed, max_rounds=args.max_rounds)
                    found[clients][server].append(rounds)
                    print(seed, clients, server, rounds, flush=True)
    print(table(found, args.max_rounds))
    if args.out:
        result = {"target": TARGET, "max-rounds": args.max_rounds, "rounds": found}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def table(found: dict[str, dict[str, list[int | None]]], max_rounds: int) -> str:
    """Rounds to the target by seed, as Markdown."""
    lines = ["| clients | FedAvg | FedExP |", "|---|---|---|"]
    for clients, row in found.items():
        limit = max_rounds if clients == "fixed" else max_rounds // 2
        cells = [", ".join(str(n or f"> {limit}") for n in row[server]) for server in SERVERS]
        lines.append(f"| {clients} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
