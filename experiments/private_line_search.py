"""Private training of one client on Adult: line search, with and without adaptation, and DP-SGD.

    OMP_NUM_THREADS=1 python -m experiments.private_line_search --data-dir data --out docs

Logistic regression on 32,561 people, of whom a step draws 256 in expectation; delta is 1e-5, and
each method plans ``STEPS`` steps. What is protected is one person's row, against whoever sees the
model. DP-SGD runs at the default rate of the library and at the best of ``RATES`` at each epsilon,
by test accuracy on a seed of its own; the privacy cost of that sweep is not counted, which favours
DP-SGD. The noise comes from the system, so figures differ a little from run to run; ``--quick``
takes two epsilons and two seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from flwr.app import Context, RecordDict
from torch import nn

from fedexp.clients import (
    ClientSettings,
    Examples,
    PrivateLineSearch,
    PrivateSGD,
    default_loss,
    evaluate,
)
from fedexp.datasets.dataset import Dataset
from fedexp.datasets.tables import adult

EPSILONS = (0.1, 0.2, 0.4, 0.8, 1.6)
SEEDS = (0, 1, 2, 3, 4)
STEPS = 300
RATES = (0.3, 1.0, 3.0, 10.0)
DEFAULT_RATE = ClientSettings().lr
METHODS = {
    "adaptive line search": (PrivateLineSearch, {}),
    "line search": (PrivateLineSearch, {"growth": 1.0}),
    "DP-SGD, default rate": (PrivateSGD, {}),
    "DP-SGD, best rate": (PrivateSGD, {}),
}
Row = dict[str, Any]


def run(data: Dataset, method: str, epsilon: float, seed: int, rate: float = DEFAULT_RATE) -> Row:
    """One training; ``seed`` gives the first weights, and nothing fixes the noise."""
    kind, own = METHODS[method]
    training = kind(epsilon=epsilon, steps=STEPS, **own)
    torch.manual_seed(seed)
    model = nn.Linear(data.train[0].shape[1], 2)
    settings = ClientSettings(num_steps=4 * STEPS, batch_size=256, lr=rate)
    context = Context(0, 0, {}, RecordDict(), {})
    done = training.train(model, Examples(*data.train), settings, default_loss, context)
    score = evaluate(model, Examples(*data.test), default_loss)
    return {
        **{"method": method, "epsilon": epsilon, "seed": seed, "rate": round(done.rate, 4)},
        **{"accuracy": round(score["accuracy"], 5), "loss": round(score["loss"], 5)},
        **{"epsilon-spent": round(done.epsilon, 5), "steps": done.steps},
    }


def measure(data: Dataset, epsilons: Sequence[float], seeds: Sequence[int]) -> list[Row]:
    """All rows, and those of the sweep."""
    rows = []
    for epsilon in epsilons:
        sweep = [run(data, "DP-SGD, best rate", epsilon, 100, rate) for rate in RATES]
        best = max(sweep, key=lambda row: float(row["accuracy"]))["rate"]
        for method in METHODS:
            rate = best if method.endswith("best rate") else DEFAULT_RATE
            rows += [run(data, method, epsilon, seed, rate) for seed in seeds]
            print(table(rows[-len(seeds) :]).splitlines()[-1], flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The means and standard deviations over seeds, as Markdown."""
    head = "| ε | method | test accuracy, % | test loss | steps | mean step size |"
    lines = [head, "|---|---|---|---|---|---|"]
    for epsilon, method in dict.fromkeys((row["epsilon"], row["method"]) for row in rows):
        of = [row for row in rows if (row["epsilon"], row["method"]) == (epsilon, method)]
        accuracy, loss = _spread(of, "accuracy", 100), _spread(of, "loss")
        steps, rate = (fmean(row[key] for row in of) for key in ("steps", "rate"))
        lines.append(f"| {epsilon} | {method} | {accuracy} | {loss} | {steps:.0f} | {rate:.2f} |")
    return "\n".join(lines)


def _spread(rows: Sequence[Row], key: str, factor: float = 1) -> str:
    values = [factor * float(row[key]) for row in rows]
    digits = 2 if factor > 1 else 3
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Test accuracy over epsilon."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    epsilons = sorted({row["epsilon"] for row in rows})
    for method in METHODS:
        found = [
            [100 * r["accuracy"] for r in rows if (r["method"], r["epsilon"]) == (method, e)]
            for e in epsilons
        ]
        axes.errorbar(
            epsilons,
            [*map(fmean, found)],
            [*map(stdev, found)],
            marker="o",
            capsize=3,
            label=method,
        )
    axes.set(xscale="log", xlabel="ε at δ = 1e-5", ylabel="test accuracy, %", xticks=epsilons)
    axes.set_xticklabels([str(e) for e in epsilons])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/private-line-search"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    few = (EPSILONS[::3], SEEDS[:2]) if args.quick else (EPSILONS, SEEDS)
    rows = measure(adult(args.data_dir), *few)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"steps": {STEPS}, "rows": [\n{lines}\n]}}\n'
    (args.out / "private-line-search.json").write_text(text, encoding="utf-8")
    plot(args.out / "private-line-search.png", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
