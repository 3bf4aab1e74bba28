"""The federations of ``experiments.augmentation_schedules``: linear regression, and digits.

Three clients hold one example each and all take part. With one local step the average of the
clients is the step of gradient descent on all three examples, so the exact recursion holds for
FedAvg. Several local steps and FedExP are an experiment: no theorem speaks of them.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

import fedexp
from fedexp.augmentation import Moments, PowerLaw, min_norm, noise_step

STRATEGIES = ("fedavg", "fedexp(epsilon=0)")
X, Y = 2 / 3, 1 / 3  # the exponents of the theorem's best rate
CHANGES = {  # of digits; the schedule begins at the same strength and rate as the constant
    "none": {},
    "constant augmentation": {"augmentation": "noise(scale=0.2), crop(scale=0.125)"},
    "falling rate": {"learning_rate_exponent": 0.4, "learning_rate_offset": 20},
    "both fall": {
        "augmentation": f"noise(scale={0.2 * 20**0.2:.4f}, exponent=0.4, offset=20), "
        f"crop(scale={0.125 * 20**0.4:.4f}, exponent=0.4, offset=20)",
        "learning_rate_exponent": 0.4,
        "learning_rate_offset": 20,
    },
}


class Size(NamedTuple):
    """Steps and seeds of the regressions; rounds and learning rates of the digits."""

    steps: int
    seeds: int
    rounds: int
    grid: list[float]


def save_problem(folder: Path, x: np.ndarray, y: np.ndarray, start: np.ndarray) -> None:
    """Examples by client as ``--data`` takes them, and the start as ``--initial-model``.

    The test set is made such that its loss is the squared distance to the minimum-norm solution:
    its inputs are the rows of ``√n I``, and its targets are what that solution makes of them.
    """
    root = math.sqrt(len(x))
    test = {"x_test": root * np.eye(len(x)), "y_test": root * min_norm(x, y)[0]}
    keys = np.arange(x.shape[1])
    np.savez(folder / "regression.npz", x_train=x.T, y_train=y[0], keys=keys, **test)
    save_file({"1.weight": start.astype(np.float32)}, folder / "start.safetensors")


def regressions(
    folder: Path, x: np.ndarray, y: np.ndarray, start: np.ndarray, size: Size
) -> list[dict[str, Any]]:
    """Rms distances to the minimum-norm solution, after as many steps of every client."""
    save_problem(folder, x, y, start)
    exact, eta, sigma = Moments.certain(start), PowerLaw(0.25, X), PowerLaw(1.0, Y / 2)
    for t in range(size.steps):
        exact = noise_step(exact, x, y, eta(t), sigma(t))
    expected, rows = exact.sq_distance(min_norm(x, y)) ** 0.5, []
    for local_steps, noise in product((1, 10), (f"noise(exponent={Y})", "")):
        found = fedexp.compare(
            ", ".join(STRATEGIES),
            seeds=range(size.seeds if noise else 1),  # nothing is drawn without noise
            rounds=size.steps // local_steps,
            data=str(folder / "regression.npz"),
            **{"model": "linear", "initial_model": str(folder / "start.safetensors")},
            **{"partitioner": "natural", "fraction_train": 1.0, "engine": "serial"},
            **{"local_steps": local_steps, "batch_size": 1, "learning_rate": 0.25},
            **{"learning_rate_exponent": X, "augmentation": noise, "targets": "values"},
        )
        for strategy in STRATEGIES:
            runs = [run for run in found if run.strategy == strategy]
            every = np.array([[row["test-loss"] for row in run.metrics] for run in runs])
            squares, rms = every[:, -1], float(np.sqrt(every[:, -1].mean()))
            shown = np.unique(np.geomspace(1, every.shape[1], 40).astype(int))  # rounds
            error = squares.std(ddof=1) / len(squares) ** 0.5 / (2 * rms) if noise else 0.0
            is_exact = bool(noise) and local_steps == 1 and strategy == "fedavg"
            rows.append(
                {
                    "strategy": strategy,
                    "local-steps": local_steps,
                    "augmentation": noise,
                    "steps": size.steps,
                    "rms": rms,
                    "rms-standard-error": float(error),
                    "rms-of-recursion": expected if is_exact else None,
                    "curve-steps": (shown * local_steps).tolist(),
                    "curve-rms": np.sqrt(every.mean(axis=0))[shown - 1].tolist(),
                    "mean-server-step": runs[0].summary["mean-server-step-size"],
                }
            )
            known = f"   recursion {expected:.4f}" if is_exact else ""
            print(
                f"{strategy:18} {local_steps:2} local steps  {noise or 'no noise':34} "
                f"rms {rms:.4f} ± {error:.4f}{known}",
                flush=True,
            )
    return rows


def digits(size: Size) -> list[dict[str, Any]]:
    """Test accuracy on the digits, at most three seeds, each row at its best rate of one grid."""
    rows = []
    for name, settings in CHANGES.items():
        # A rate is what the first step takes, whatever the schedule.
        scale = settings.get("learning_rate_offset", 1) ** settings.get("learning_rate_exponent", 0)
        found = fedexp.compare(
            "fedavg, fedexp",
            seeds=range(min(3, size.seeds)),
            rounds=size.rounds,
            sweep={"learning_rate": [rate * scale for rate in size.grid]},
            select="mean-final-accuracy",
            tuning_seeds="3",
            engine="serial",
            **settings,
        )
        for strategy in ("fedavg", "fedexp"):
            runs = [run.summary for run in found if run.strategy == strategy]
            scores = np.array([run["mean-final-accuracy"] for run in runs])
            row = {
                "strategy": strategy,
                "schedule": name,
                "settings": settings,
                "first-rate": runs[0]["settings"]["learning-rate"] / scale,
                "accuracy": scores.tolist(),
                "last-iterate": [run["final-accuracy"] for run in runs],
                "rounds": size.rounds,
            }
            rows.append(row)
            print(
                f"digits  {strategy:7} {name:22} rate {row['first-rate']:<5.3g} "
                f"accuracy {scores.mean():.4f} ± {scores.std(ddof=1):.4f}",
                flush=True,
            )
    return rows
