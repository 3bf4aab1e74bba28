"""Six more server rules next to those that are recommended: is one of them better?

    python -m experiments.untried_rules --data-dir DATA --out FILE.jsonl
    python -m experiments.untried_rules --out docs/untried-rules.jsonl --tables

FedExP's step for each layer by itself, schedule-free descent with FedExP's step, and, where all
clients train in every round, Barzilai and Borwein's step and Anderson acceleration. As in
``experiments.hard_federations`` the client rate of each method is the best of the same three for
all on the seeds ``TUNING``, and what is reported comes from the seeds 0 to 2. A line of the file is
one run; runs that it holds are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from logging import ERROR
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord

from experiments.server_step_tables import TUNING, Rows, read, tuned_rate, unique
from experiments.server_steps import (
    FEDERATIONS,
    METHODS,
    Federation,
    Method,
    config_of,
    strategy_of,
)
from experiments.untried_steps import RESULT, ArrayNorms, PerLayer, ScheduleFreeExP
from experiments.which_step import AVERAGE, against, chosen, complete, marked, sensitivity, table
from fedexp import app
from fedexp.arrays import cast_like
from fedexp.clients import module_arrays
from fedexp.config import Config
from fedexp.logs import level
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.runs.engines import grid_of
from fedexp.simulation.grid import LocalGrid
from fedexp.strategies import (
    FedAnderson,
    FedBB,
    FedOpt,
    MeanOfIterates,
    Momentum,
    ServerOptimizer,
    average_named,
)
from fedexp.strategies.directions import Direction

SEEDS = (0, 1, 2)
LAST = 10  # rounds that count


def stepping(direction: Direction, average: str = "", **settings: Any) -> Method:
    """A method whose direction is the whole step."""
    rule = ServerOptimizer(direction)
    return Method(ArrayNorms, {"optimizer": rule, **settings}, average=average)


NESTEROV = Momentum(0.9, nesterov=True)
COMPARED = "FedAvg", "FedExP, smoothing 0.5", "Nesterov 1 / 0.9", "NesterovExP"
UNTRIED = {
    "FedExP per layer": stepping(PerLayer()),
    "NesterovExP per layer": stepping(PerLayer(NESTEROV), relaxation=0.5),
    "schedule-free, c = η²/Σ η²": stepping(ScheduleFreeExP("η²"), average=RESULT),
    "schedule-free, c = 1/t": stepping(ScheduleFreeExP("1/t"), average=RESULT),
}
OF_ALL = {"Barzilai-Borwein": Method(FedBB), "Anderson": Method(FedAnderson)}
ALL = {name: METHODS[name] for name in COMPARED} | UNTRIED | OF_ALL


class Place(NamedTuple):
    """A federation, the client rates to choose from, and what is run there."""

    federation: Federation
    rates: tuple[float, ...]
    methods: tuple[str, ...] = (*COMPARED, *UNTRIED)


PLACES = {
    "digits": Place(FEDERATIONS["digits"], (0.1, 0.316, 1.0)),
    "heart disease": Place(
        FEDERATIONS["heart disease"], (0.00316, 0.01, 0.0316), (*COMPARED, *UNTRIED, *OF_ALL)
    ),
    "WISDM": Place(FEDERATIONS["WISDM"], (0.0316, 0.1, 0.316)),
    "MNIST by writer": Place(FEDERATIONS["MNIST by writer"], (0.1, 0.316, 1.0)),
    "digits, all clients": Place(
        Federation(0.85, {"fraction_train": 1.0, "num_server_rounds": 30}),
        (0.1, 0.316, 1.0),
        (*COMPARED, *OF_ALL),
    ),
    "WISDM, all clients": Place(
        Federation(
            0.7, FEDERATIONS["WISDM"].config | {"fraction_train": 1.0, "num_server_rounds": 30}
        ),
        (0.0316, 0.1, 0.316),
        ("FedAvg", "Nesterov 1 / 0.9", "NesterovExP", "Anderson"),
    ),
}


def run_all(data_dir: str, file: Path) -> None:
    """Make the runs that ``file`` lacks, in each federation first those that choose the rates."""
    torch.set_num_threads(1)
    for name, place in PLACES.items():
        for seed in (*TUNING, *SEEDS):
            todo = list(missing(name, seed, read(file)))
            if not todo:
                continue
            config = config_of(place.federation, seed, data_dir, file.parent)
            with level(ERROR), grid_of(config) as grid, file.open("a", encoding="utf-8") as out:
                for method, rate in todo:
                    found = measure(grid, config, ALL[method], rate)
                    row = {"federation": name, "method": method, "rate": rate, "seed": seed}
                    print(json.dumps({**row, **found}, ensure_ascii=False), file=out, flush=True)


def missing(name: str, seed: int, done: Rows) -> Iterator[tuple[str, float]]:
    """Methods and rates of the runs of a seed that ``done`` lacks."""
    mine = [row for row in done if row["federation"] == name]
    known = {(row["seed"], row["method"], row["rate"]) for row in mine}
    place = PLACES[name]
    for method in place.methods:
        tuned = seed not in TUNING
        for rate in [tuned_rate(mine, method, AVERAGE)] if tuned else place.rates:
            if (seed, method, rate) not in known:
                yield method, rate


def measure(grid: LocalGrid, config: Config, method: Method, rate: float) -> dict[str, Any]:
    """The mean accuracy of the last ten rounds, of the averaged iterate or of the rule's own.

    Whichever it is, it has the name ``AVERAGE``, by which the tables find it.
    """
    grid.forget()
    strategy = strategy_of(method, config, grid, rate)
    score, values = app.test_evaluation(config), []

    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round <= config.num_server_rounds - LAST:
            return MetricRecord()
        found = cast(MetricRecord, score(server_round, own_result(strategy, arrays)))
        values.append(float(found["test-accuracy"]))  # type: ignore[arg-type]
        return found

    evaluate = note if method.average else MeanOfIterates(note, average_named(AVERAGE))
    start = to_record(module_arrays(app.model_of(config)))
    for _ in rounds(
        strategy, grid, start, num_rounds=config.num_server_rounds, evaluate_fn=evaluate
    ):
        pass
    return {"accuracy": {AVERAGE: round(float(np.mean(values)), 5)}}


def own_result(strategy: FedOpt, arrays: ArrayRecord) -> ArrayRecord:
    """The model that the rule itself returns, where it is not the server's."""
    if RESULT not in strategy.state:
        return arrays
    model = from_record(arrays)
    found = {name: cast_like(x, model[name]) for name, x in strategy.state[RESULT].items()}
    return to_record({**model, **found})


def document(rows: Rows) -> str:
    """All tables, of the federations whose runs are complete."""
    parts = {
        name: mine
        for name, place in PLACES.items()
        if complete(mine := [r for r in rows if r["federation"] == name], list(place.methods))
    }
    tables = {
        "Accuracy": table(parts, partial(marked, rival="NesterovExP")),
        "Federations ahead, level, behind": duels(parts),
        "Client rate, and mean accuracy over the three": table(parts, rates_of),
    }
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in tables.items())


def duels(parts: dict[str, Rows]) -> str:
    """In how many federations with both a method is ahead of each rival, level and behind."""
    lines = [f"| method | {' | '.join(COMPARED)} |", "| --- |" + " ---: |" * len(COMPARED)]
    for method in unique([row for mine in parts.values() for row in mine], "method"):
        counts = [
            Counter(
                against(mine, method, rival)
                for mine in parts.values()
                if chosen(mine, method) and chosen(mine, rival)
            )
            for rival in COMPARED
        ]
        words = "ahead", "level", "behind"
        told = [", ".join(str(count[word]) for word in words) for count in counts]
        cells = ["" if method == x else text for x, text in zip(COMPARED, told, strict=True)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rates_of(mine: Rows, method: str) -> str:
    """The client rate that was chosen; the mean over all, as in ``which_step``."""
    rate = tuned_rate(mine, method, AVERAGE)
    return f"{rate:g}; {sensitivity(mine, method):.1f}" if rate else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/untried-rules.jsonl"))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        run_all(args.data_dir, args.out)
    print(document(read(args.out)))


if __name__ == "__main__":
    main()
