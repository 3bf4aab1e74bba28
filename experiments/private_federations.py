"""Private federations at equal epsilon: FedAvg, FedAdam and FedExP on MNIST by writer.

    python -m experiments.private_federations --data-dir DATA [--quick] [--out FILE.json]

539 writers of digits hold their own; the model is linear (7,850 parameters). Every client is asked
with probability ½, takes 10 local steps, and its update is clipped; the server adds the noise that
makes all rounds together cost a client epsilon 4 at delta 1e-4. ``10 times`` stands for 5,390
clients: each of the 539 is there ten times over, and a client more or less moves the mean by a
tenth of what it does among 539. Only the noise is simulated so, not new writers.

The bound C, and FedAdam's η, are chosen on a seed of their own by the final accuracy of the
averaged iterate; that choice is not accounted for. ``--quick`` is one seed, two rounds and no
choice. ``local`` stands for clients that hide their updates themselves, at the same epsilon for one
that takes part in every round. Results are kept in ``--out`` run by run; what is there is not run
again. A picture is drawn beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any

import fedexp
from fedexp.files import save_json
from fedexp.logs import level
from fedexp.privacy import multiplier_for
from fedexp.strategies import CentralPrivacy, FedAdam, FedAvg, FedExP, FedOpt, LocalPrivacy

EPSILON, DELTA, RATE = 4.0, 1e-4, 0.5
BOUNDS, ADAM_STEPS = (0.1, 0.3, 1.0, 3.0), (0.01, 0.03, 0.1)
SEEDS, TUNING_SEED = (0, 1, 2), 3
LOCAL = -1

METHODS: dict[str, Callable[..., FedOpt]] = {
    "FedAvg": FedAvg,
    "FedAdam": FedAdam,
    "FedExP, single rounds": FedExP,
    "FedExP, single, at most 3": lambda **kwargs: FedExP(max_step_size=3.0, **kwargs),
    "FedExP, smoothed": lambda **kwargs: FedExP(smoothing=0.8, **kwargs),
}
LOCAL_METHODS = ("FedAvg", "FedExP, single, at most 3", "FedExP, smoothed")


@dataclass(frozen=True)
class Crowd(CentralPrivacy):
    """As many copies of every client: the same mean of updates, and noise a ``times``-th of it."""

    times: float = 1.0

    @property
    def multipliers(self) -> tuple[float, float, float]:
        """Of the sums over one copy of each."""
        updates, norms, quantile = super().multipliers
        return updates / self.times, norms / self.times, quantile / self.times


@dataclass(frozen=True)
class Cell:
    """One run; ``times`` is 0 without privacy, and ``LOCAL`` for local privacy of 539 clients."""

    method: str
    times: int
    seed: int
    clip: float = 0.0
    eta: float = 0.0

    @property
    def name(self) -> str:
        """All of it in a line."""
        return f"{self.method} | {self.times} | {self.seed} | {self.clip} | {self.eta}"


def run(cell: Cell, data_dir: str, num_rounds: int) -> dict[str, Any]:
    """Accuracies, steps and epsilon of a run."""
    own: dict[str, Any] = {"eta": cell.eta} if cell.eta else {}
    if cell.times == LOCAL:
        z = multiplier_for(EPSILON, 1.0, num_rounds, DELTA)
        own["extensions"] = [LocalPrivacy(z, cell.clip, DELTA)]
    elif cell.times:
        z = multiplier_for(EPSILON, RATE, num_rounds, DELTA)
        private = Crowd(z, cell.clip, DELTA, times=float(cell.times))
        own["extensions"] = [private]
    common = {"fraction_train": RATE, "fraction_evaluate": 0.0, "min_available_nodes": 1}
    with level(CRITICAL):
        strategy = METHODS[cell.method](**common, **own)
        simulation = fedexp.Simulation(
            strategy=strategy,
            **{"dataset": "mnist", "data_dir": data_dir, "partitioner": "natural"},
            **{"model": "linear", "local_steps": 10, "batch_size": 20, "learning_rate": 0.05},
            **{"engine": "serial", "seed": cell.seed},
        )
        rows = simulation.run(rounds=num_rounds).metrics
    last = rows[-1]
    return {
        "accuracy": last["test-accuracy"],
        "mean-accuracy": last["mean-test-accuracy"],
        "curve": [row["mean-test-accuracy"] for row in rows],
        "steps": [row["server-step-size"] for row in rows],
        "epsilon": last.get("privacy-epsilon"),
    }


def candidates(method: str, times: int) -> list[Cell]:
    """What is tried on the tuning seed; the three forms of FedExP share one choice."""
    etas = ADAM_STEPS if method == "FedAdam" else (0.0,)
    bounds = {0: (0.0,), LOCAL: BOUNDS[:3]}.get(times, BOUNDS)
    return [Cell(method, times, TUNING_SEED, clip, eta) for clip in bounds for eta in etas]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not there yet, then draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default="private-federations.json", type=Path)
    given = parser.parse_args(arguments)
    num_rounds, seeds = (2, SEEDS[:1]) if given.quick else (10, SEEDS)
    done: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}

    def result(cell: Cell) -> dict[str, Any]:
        if cell.name not in done:
            done[cell.name] = run(cell, given.data_dir, num_rounds)
            save_json(given.out, done)
            found = done[cell.name]
            print(f"{cell.name:50} {found['mean-accuracy']:.4f}", flush=True)
        found = done[cell.name]
        return dict(found)

    lines = {}
    for times in (1, 10, 0, LOCAL):
        for method in LOCAL_METHODS if times == LOCAL else METHODS:
            tuned = "FedExP, smoothed" if method.startswith("FedExP") else method
            tried = candidates(tuned, times)
            best = tried[len(tried) // 2]
            if not given.quick and len(tried) > 1:
                best = max(tried, key=lambda cell: float(result(cell)["mean-accuracy"]))
            cells = [Cell(method, times, seed, best.clip, best.eta) for seed in seeds]
            lines[method, times] = [result(cell) for cell in cells]
            print(line_of(method, times, best, lines[method, times]), flush=True)
    draw(lines, given.out.with_suffix(".png"))


def line_of(method: str, times: int, best: Cell, found: Sequence[dict[str, Any]]) -> str:
    """A row of the document's table."""
    scores = {key: [100 * x[key] for x in found] for key in ("accuracy", "mean-accuracy")}
    spread = {k: statistics.stdev(v) if len(v) > 1 else 0.0 for k, v in scores.items()}
    parts = [f"{statistics.fmean(v):.1f} ± {spread[k]:.1f}" for k, v in scores.items()]
    step = statistics.fmean(statistics.fmean(x["steps"]) for x in found)
    widest = max(max(x["steps"]) for x in found)
    clients = {0: "no noise", LOCAL: "539, local"}.get(times, f"{539 * times:,}")
    own = f"η = {best.eta}" if best.eta else ""
    return (
        f"| {method} | {clients} | {best.clip or ''} | {own} | {' | '.join(parts)} "
        f"| {step:.2f} (≤ {widest:.2f}) |"
    )


def draw(lines: dict[tuple[str, int], list[dict[str, Any]]], file: Path) -> None:
    """Accuracy over the rounds, one panel for each number of clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
    for axis, (times, title) in zip(
        axes, {1: "539 clients", 10: "5,390 clients", 0: "no noise"}.items(), strict=True
    ):
        for method in METHODS:
            curves = [found["curve"] for found in lines[method, times]]
            means = [100 * statistics.fmean(x) for x in zip(*curves, strict=True)]
            axis.plot(range(1, len(means) + 1), means, label=method)
        axis.set(title=title, xlabel="round")
    axes[0].set_ylabel("test accuracy, averaged iterate, %")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
