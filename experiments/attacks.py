"""Test accuracy while some clients attack: four server rules, with ``robust`` and without.

    python -m experiments.attacks [--full] [--out FILE.json]

Digits, 50 clients, labels skewed by a Dirichlet(0.1), 20 local steps, learning rate 0.1, 40 rounds
(12 and one seed in place of three without ``--full``). The server draws 10 clients a round
uniformly; the attackers, the first 1, 2 or 5 of a permutation of the clients that the seed fixes,
are drawn like anybody else. ``pairs`` is also run with all 50 clients in every round, for FedAvg
and FedExP. What attackers send in the rounds that they are drawn for:

- ``pairs``: the attackers of a round meet two by two and send ``w - v`` and ``w + v`` with equal
  ``num-examples``: ``v`` is one draw from a Gaussian for each pair and round, 100 times as long as
  the model ``w``. Who is left over trains honestly;
- ``times 30`` and ``times 1e6``: their honest update times that;
- ``flip``: their honest update with the opposite sign; ``flip times 30``: that times 30;
- ``1e14 examples``: their honest update, with that claim of ``num-examples``;
- ``absent``: nothing, they fail. What is lost here is lost with their data.

Accuracies are means over the last ten rounds and the seeds, of the last iterate and of the
averaged one (``--average ema-0.7``). Results are kept in ``--out`` run by run; what is there is
not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from logging import CRITICAL
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from fedexp import app
from fedexp.arrays import Arrays, sq_norm, trainable_names
from fedexp.config import Config
from fedexp.files import save_json
from fedexp.logs import level
from fedexp.records import from_record, to_record
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import FIRST_NODE_ID
from fedexp.strategies.sampling import sample

ROBUST: dict[str, Any] = {"robust": True}
RULES = {
    "FedAvg": "fedavg",
    "FedExP": "fedexp",
    "Nesterov": "fedavgm(server-learning-rate=1.0, server-momentum=0.9, nesterov=true)",
    "NesterovExP": "nesterovexp",
}
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}{ending}": (key, options)
    for name, key in RULES.items()
    for ending, options in (("", {}), (", robust", ROBUST))
}
FACTORS = {"times 30": 30.0, "times 1e6": 1e6, "flip": -1.0, "flip times 30": -30.0}
ATTACKS = {
    "pairs": (2, 5),
    "times 30": (1, 2, 5),
    "times 1e6": (1, 2, 5),
    "flip": (1, 2, 5),
    "1e14 examples": (1, 2, 5),
    "flip times 30": (5,),
    "absent": (5,),
}
"""How many clients attack, by kind of attack."""

LAST = 10
"""Rounds whose accuracies are averaged."""

_NUM_CLIENTS = 50
_PAIR_NORM = 100.0


@dataclass(frozen=True)
class Cell:
    """One run."""

    strategy: str
    attack: str
    number: int
    fraction_train: float
    seed: int

    @property
    def name(self) -> str:
        """All of it in a line."""
        return " | ".join(map(str, astuple(self)))

    @classmethod
    def named(cls, name: str) -> Cell:
        """The inverse of ``name``."""
        strategy, attack, number, fraction, seed = name.split(" | ")
        return cls(strategy, attack, int(number), float(fraction), int(seed))


@dataclass(frozen=True)
class Attack:
    """Who attacks, and how.

    Attributes:
        kind: one of ``ATTACKS``.
        nodes: ids of the attackers' nodes.
        config: of the run; it fixes who is in a round.
    """

    kind: str
    nodes: tuple[int, ...]
    config: Config

    @classmethod
    def by(cls, number: int, kind: str, config: Config) -> Attack:
        """An attack by the first ``number`` clients of the seed's permutation."""
        order = np.random.default_rng([config.seed, 11]).permutation(config.num_clients)
        return cls(kind, tuple(int(p) + FIRST_NODE_ID for p in order[:number]), config)

    def app(self) -> ClientApp:
        """The clients of the run, some of which attack."""
        attacking = ClientApp()

        @attacking.train()
        def train(message: Message, context: Context) -> Message:
            if context.node_id in self.nodes and self.kind == "absent":
                raise RuntimeError("absent")
            reply = app.client(message, context)
            if context.node_id in self.nodes:
                self._alter(reply, message, context.node_id)
            return reply

        return attacking

    def _alter(self, reply: Message, message: Message, node: int) -> None:
        before = from_record(message.content["arrays"])  # type: ignore[arg-type]
        metrics = MetricRecord(dict(reply.content["metrics"]))  # type: ignore[arg-type]
        after = from_record(reply.content["arrays"])  # type: ignore[arg-type]
        if self.kind == "1e14 examples":
            metrics["num-examples"] = 1e14
        if factor := FACTORS.get(self.kind):
            after = shifted(before, after, factor)
        if self.kind == "pairs":
            server_round = int(message.content["config"]["server-round"])  # type: ignore[arg-type]
            pair, sign = self._pair(node, server_round)
            if sign:
                metrics["num-examples"] = 30
                after = self._drawn(before, sign, [self.config.seed, server_round, pair])
        reply.content["arrays"], reply.content["metrics"] = to_record(after), metrics

    def _pair(self, node: int, server_round: int) -> tuple[int, int]:
        """The number of the node's pair in a round, and its sign; 0 if it has no partner."""
        everybody = range(FIRST_NODE_ID, FIRST_NODE_ID + self.config.num_clients)
        size = int(self.config.num_clients * self.config.fraction_train + 1e-9)
        seed = self.config.seed
        drawn = sample(everybody, size, seed=seed, server_round=server_round, use="train")
        place = (present := [n for n in self.nodes if n in drawn]).index(node)
        alone = place == len(present) - 1 and len(present) % 2
        return place // 2, 0 if alone else 1 - 2 * (place % 2)

    def _drawn(self, before: Arrays, sign: int, seed: list[int]) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        v = {name: rng.normal(size=x.shape) for name, x in before.items()}
        scale = sign * _PAIR_NORM * (sq_norm(before) / sq_norm(v)) ** 0.5
        return {name: np.asarray(x + scale * v[name], x.dtype) for name, x in before.items()}


def shifted(before: Arrays, after: Arrays, factor: float) -> dict[str, Any]:
    """``w + factor (wᵢ - w)``; buffers as they are."""
    names = trainable_names(before)
    return {
        name: np.asarray(w + factor * (np.float64(after[name]) - w), w.dtype)
        if name in names
        else after[name]
        for name, w in before.items()
    }


def accuracies(cell: Cell, num_server_rounds: int) -> dict[str, float]:
    """Of a run: of the last iterate and of the averaged one, mean over the last rounds."""
    key, options = STRATEGIES[cell.strategy]
    config = Config(
        seed=cell.seed,
        num_clients=_NUM_CLIENTS,
        num_server_rounds=num_server_rounds,
        fraction_train=cell.fraction_train,
        **options,
    )
    clients = Attack.by(cell.number, cell.attack, config).app()
    with level(CRITICAL):
        grid = SerialGrid(clients, config.num_clients, run_config=config.values())
        found = [round_.server for round_ in app.Run(config, key, grid.num_nodes).rounds(grid)]
    names = {"last": "test-accuracy", "averaged": "mean-test-accuracy"}
    return {
        short: statistics.fmean(cast(float, metrics[name]) for metrics in found[-LAST:])
        for short, name in names.items()
    }


def cells(seeds: int) -> list[Cell]:
    """All runs of the tables, seed by seed."""
    sampled = [("none", 0), *((kind, n) for kind, numbers in ATTACKS.items() for n in numbers)]
    everybody = [("none", 0), ("pairs", 2), ("pairs", 5)]
    without = [name for name in STRATEGIES if "Nesterov" not in name]
    settings = (0.2, sampled, list(STRATEGIES)), (1.0, everybody, without)
    return [
        Cell(strategy, kind, number, fraction, seed)
        for seed, (fraction, attacks, strategies) in product(range(seeds), settings)
        for (kind, number), strategy in product(attacks, strategies)
    ]


Rows = dict[tuple[str, int], dict[str, dict[int, float]]]
"""Accuracies of one setting in percent: by attack and number of attackers, strategy and seed."""


def rows_of(found: Mapping[str, Mapping[str, float]], fraction: float, iterate: str) -> Rows:
    """The rows of a table, in the order in which ``found`` names them.

    A row has the seeds that all of its strategies have been run with, so that they compare.
    """
    rows: Rows = {}
    for name, result in found.items():
        cell = Cell.named(name)
        if cell.fraction_train == fraction:
            row = rows.setdefault((cell.attack, cell.number), {})
            row.setdefault(cell.strategy, {})[cell.seed] = 100 * result[iterate]
    for row in rows.values():
        shared = set.intersection(*map(set, row.values()))
        for name, seeds in row.items():
            row[name] = {seed: x for seed, x in seeds.items() if seed in shared}
    return rows


def table(found: Mapping[str, Mapping[str, float]], fraction: float, iterate: str) -> str:
    """Mean accuracies of one setting, in percent, as Markdown."""
    rows = rows_of(found, fraction, iterate)
    names = [name for name in STRATEGIES if any(name in row for row in rows.values())]
    means = {
        attack: [
            f"{statistics.fmean(row[name].values()):.1f}" if name in row else "" for name in names
        ]
        for attack, row in rows.items()
    }
    return markdown(names, rows, means)


def lost(found: Mapping[str, Mapping[str, float]], fraction: float, iterate: str) -> str:
    """What each rule loses with ``robust``, in points: mean over seeds, least and most.

    Every seed is compared with its own run without attackers and without ``robust``.
    """
    rows = rows_of(found, fraction, iterate)
    alone = rows["none", 0]

    def points(row: dict[str, dict[int, float]], name: str) -> str:
        seeds = row[f"{name}, robust"]
        each = [alone[name][seed] - accuracy for seed, accuracy in seeds.items()]
        return f"{statistics.fmean(each):z.1f} ({min(each):z.1f} to {max(each):z.1f})"

    return markdown(RULES, rows, {a: [points(row, x) for x in RULES] for a, row in rows.items()})


def markdown(
    names: Iterable[str], rows: Rows, entries: Mapping[tuple[str, int], Sequence[str]]
) -> str:
    """A table of one row for each attack, number of attackers and number of seeds."""
    columns = ["attack", "clients", "seeds", *names]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for (kind, number), row in rows.items():
        seeds = len(next(iter(row.values())))
        lines.append(f"| {kind} | {number} | {seeds} | {' | '.join(entries[kind, number])} |")
    return "\n".join(lines)


def in_order(found: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """What was found, in the order of ``cells``, whenever it was run."""
    names = [cell.name for cell in cells(seeds)]
    return {name: found[name] for name in [*names, *found] if name in found}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="three seeds, 40 rounds")
    parser.add_argument("--out", type=Path, help="JSON file to keep results in, and go on from")
    args = parser.parse_args(argv)
    num_rounds, seeds = (40, 3) if args.full else (12, 1)
    kept = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    if kept and kept["rounds"] != num_rounds:
        parser.error(f"{args.out} is of {kept['rounds']} rounds. Name another file.")
    found = kept.get("accuracies", {})
    for cell in cells(seeds):
        if cell.name not in found:
            found[cell.name] = accuracies(cell, num_rounds)
            print(cell.name, found[cell.name], flush=True)
            if args.out:
                save_json(args.out, {"rounds": num_rounds, "accuracies": in_order(found, seeds)})
    for fraction, iterate in product((0.2, 1.0), ("last", "averaged")):
        print(f"\n{fraction:.0%} of the clients a round, {iterate} iterate, %\n")
        print(table(found, fraction, iterate))
        if fraction < 1:
            print("\nPoints that the robust rules lose, mean over seeds (least to most)\n")
            print(lost(found, fraction, iterate))


if __name__ == "__main__":
    main()
