"""Wang, Yuan, Wu & Ge 2021 (arXiv:2006.16495): learned step sizes on their own problems.

    OMP_NUM_THREADS=1 python -m experiments.learned_step --out runs/learned-step

Four parts. The meta-gradients of both objectives against the number of steps. What true
back-propagation makes of the log objective. The learned step size against the number of steps.
Tuning on the training loss (train-by-train) and on other examples (train-by-validation), over noise
and sample size, beside the exact expectation. The paper plots its results and prints few numbers:
what it states is compared as statements, and the numbers named ``reference`` were computed
independently of this package. Quick by default; ``--full`` has the paper's dimension 1000.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import learned_step_federated
from fedexp.learned_steps.descent import MetaDescent, descend
from fedexp.learned_steps.linear import closed_form, meta_gradient
from fedexp.learned_steps.oracle import expected_errors, marchenko_pastur
from fedexp.learned_steps.problems import Quadratic

STEPS = [1, 2, 5, 10, 20, 30, 40, 80, 160, 320, 640]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# What back-propagation returns, by type, step size and number of steps.
REFERENCE_FAILURES = {
    ("float32", 0.1, 20): "exact",
    ("float32", 0.1, 30): "zero",
    ("float32", 0.1, 40): "zero",
    ("float32", 0.1, 80): "nan",
    ("float32", 0.3, 20): "nan",
    ("float32", 0.3, 30): "zero",
    ("float32", 0.3, 40): "nan",
    ("float32", 1.0, 20): "nan",
    ("float32", 10.0, 10): "nan",
    ("float64", 10.0, 80): "zero",
    ("float64", 0.3, 160): "zero",
    ("float64", 0.1, 160): "exact",
    ("float64", 0.1, 640): "nan",
}
REFERENCE_BEST = {10: 0.03055, 20: 0.03091, 40: 0.03118, 80: 0.03143, 160: 0.03157, 640: 0.03177}
# (n, σ) at d = 1000, t = 40: the step size and the test error of train-by-train, then those of
# train-by-validation, in expectation.
REFERENCE_ERRORS = {
    (500, 1): (0.3162, 1.5742, 0.00562, 1.3406),
    (500, 2): (0.3162, 2.9005, 0.001, 2.2226),
    (500, 3): (0.3162, 4.2783, 0.00056, 3.1570),
    (500, 5): (0.3162, 7.0678, 0.00018, 5.0979),
    (1000, 1): (0.3162, 1.7332, 0.01, 1.2858),
    (2000, 1): (0.5623, 1.4031, 0.0178, 1.2083),
    (5000, 1): (0.5623, 1.1180, 0.0316, 1.1074),
    (10000, 1): (1.0, 1.0541, 0.0562, 1.0504),
}
GRID = np.logspace(-6, 0, 25)


def problem(dtype: torch.dtype = torch.float64) -> Quadratic:
    """The quadratic of the paper's first experiment: d = 20, ``H = Xᵀ X`` with Gaussian ``X``."""
    r = np.random.default_rng(0)
    x, w0 = r.normal(size=(20, 20)), r.normal(size=20)
    return Quadratic(torch.tensor(x.T @ x, dtype=dtype), torch.tensor(w0, dtype=dtype))


def gradients(step_sizes: list[float]) -> list[dict[str, Any]]:
    """Both meta-gradients against the number of steps; the naive one as a logarithm.

    On ``H + I``: the slowest mode of ``H`` alone takes longer than 640 steps to vanish.
    """
    rows, given = [], problem()
    given = Quadratic(given.matrix + torch.eye(20, dtype=torch.float64), given.first)
    for eta in step_sizes:
        found = [meta_gradient(given, eta, t) for t in STEPS]
        rows.append(
            {
                "step-size": eta,
                "num-steps": STEPS,
                "log": [float(x.gradient("log")) for x in found],
                "log10-naive": [
                    (x.log_loss + math.log(abs(float(x.log_slope)))) / math.log(10) for x in found
                ],
            }
        )
    return rows


def backpropagated(eta: float, num_steps: int, dtype: torch.dtype) -> float:
    """``d (1/t) log f(w_t) / dη`` by autograd through all steps; nothing is detached."""
    given, rate = problem(dtype), torch.tensor(eta, dtype=dtype, requires_grad=True)
    w = given.first
    for _ in range(num_steps):
        w = w - rate * (given.matrix @ w)
    objective = (w @ given.matrix @ w / 2).log() / num_steps
    return float(torch.autograd.grad(objective, rate)[0])


def outcome(found: float, exact: float, tolerance: float) -> str:
    """A silent 0 is told apart: nobody who looks for NaN finds it."""
    if not math.isfinite(found):
        return "nan"
    if abs(found - exact) <= tolerance * max(1, abs(exact)):
        return "exact"
    return "zero" if found == 0 else "wrong"


def failures() -> list[dict[str, Any]]:
    rows = []
    for name, dtype in DTYPES.items():
        tolerance = {"float32": 1e-3, "float64": 1e-6}[name]
        for eta in (0.01, 0.1, 0.3, 1.0, 10.0):
            for t in STEPS:
                exact = float(closed_form(problem(), eta, t).gradient("log"))
                stable = float(meta_gradient(problem(dtype), eta, t).gradient("log"))
                found = backpropagated(eta, t, dtype)
                rows.append(
                    {
                        "type": name,
                        "step-size": eta,
                        "num-steps": t,
                        "backpropagation": found if math.isfinite(found) else str(found),
                        "stable": stable,
                        "exact": exact,
                        "outcome": outcome(found, exact, tolerance),
                        "stable-outcome": outcome(stable, exact, tolerance),
                        "reference": REFERENCE_FAILURES.get((name, eta, t)),
                    }
                )
    for row in rows:
        if row["reference"]:
            print(
                f"{row['type']} η = {row['step-size']:<5} t = {row['num-steps']:<4}"
                f"back-propagation: {row['outcome']:6} reference: {row['reference']:6}"
                f"stable: {row['stable']:.6g}",
                flush=True,
            )
    return rows


def best_step_size(num_steps: int) -> float:
    """Where the log objective is least: its slope changes sign once, between 0 and 2/L."""
    low, high = 0.0, 2 / float(torch.linalg.eigvalsh(problem().matrix)[-1])
    for _ in range(60):
        middle = (low + high) / 2
        negative = closed_form(problem(), middle, num_steps).gradient("log") < 0
        low, high = (middle, high) if negative else (low, middle)
    return (low + high) / 2


def learned(num_meta_steps: int) -> list[dict[str, Any]]:
    """The paper's meta-descent: ``η_0 = 0.1``, ``μ = 1/(100 √k)``, 0 where negative."""
    rows, first = [], torch.tensor(0.1, dtype=torch.float64)
    settings = MetaDescent(scale="linear", rate=0.01, num_meta_steps=num_meta_steps)
    for t, reference in REFERENCE_BEST.items():
        found = descend(lambda eta, t=t: [closed_form(problem(), eta, t)], first, settings)
        path = [float(eta) for eta in [*found.path, found.step_size]]
        rows.append(
            {
                "num-steps": t,
                "learned": path[-1],
                "best": best_step_size(t),
                "reference": reference,
                "path": path[:: max(1, num_meta_steps // 100)],
            }
        )
        row = rows[-1]
        print(
            f"t = {t:<4} learned {path[-1]:.5f}   best {row['best']:.5f}   "
            f"reference {reference:.5f}",
            flush=True,
        )
    return rows


def drawn(dim: int, n: int, noise: float, r: np.random.Generator) -> tuple[Any, Any, Any]:
    """A task: inputs, targets and the truth."""
    x, truth = r.normal(size=(n, dim)), r.normal(size=dim)
    truth /= np.linalg.norm(truth)
    return x, x @ truth + noise * r.normal(size=n), truth


def descended(x: Any, y: Any, step_sizes: Any, num_steps: int = 40) -> Any:
    """The weights after plain gradient descent, ``[d, num_step_sizes]``."""
    w = np.zeros((x.shape[1], len(step_sizes)))
    for _ in range(num_steps):
        w -= step_sizes * (x.T @ (x @ w - y[:, None])) / len(y)
    return w


def tuned(dim: int, n: int, noise: float, num_tasks: int, r: np.random.Generator) -> list[float]:
    """The step sizes of the grid with the least mean loss: on the same rows, on the other half."""
    by_train, by_validation = np.zeros(len(GRID)), np.zeros(len(GRID))
    for _ in range(num_tasks):
        x, y, _ = drawn(dim, n, noise, r)
        w = descended(x, y, GRID)
        by_train += ((x @ w - y[:, None]) ** 2).mean(0)
        half = n // 2
        w = descended(x[:half], y[:half], GRID)
        by_validation += ((x[half:] @ w - y[half:, None]) ** 2).mean(0)
    return [float(GRID[np.argmin(losses)]) for losses in (by_train, by_validation)]


def simulated(dim: int, n: int, noise: float, num_tasks: int, num_tests: int) -> dict[str, Any]:
    r = np.random.default_rng([n, round(100 * noise)])
    step_sizes = np.array(tuned(dim, n, noise, num_tasks, r))
    sq_distances = np.zeros(2)
    for _ in range(num_tests):
        x, y, truth = drawn(dim, n, noise, r)
        sq_distances += ((descended(x, y, step_sizes) - truth[:, None]) ** 2).sum(0) / num_tests
    return {"step-size": step_sizes.tolist(), "rmse": np.sqrt(noise**2 + sq_distances).tolist()}


def expected(dim: int, n: int, noise: float) -> dict[str, Any]:
    """The same in expectation. All of the rows train the test trajectories."""
    rows, half = marchenko_pastur(dim, n), marchenko_pastur(dim, n // 2)
    step_sizes = [
        min(GRID, key=lambda eta: expected_errors(rows, noise, eta, 40).train_loss),
        min(GRID, key=lambda eta: expected_errors(half, noise, eta, 40).sq_distance),
    ]
    errors = [expected_errors(rows, noise, eta, 40).test_rmse for eta in step_sizes]
    return {"step-size": [float(x) for x in step_sizes], "rmse": errors}


def overfitting(dim: int, num_tasks: int, num_tests: int) -> list[dict[str, Any]]:
    """Both ways of tuning; the ratio n/d of every row is that of the reference at d = 1000."""
    rows = []
    for (n, noise), numbers in REFERENCE_ERRORS.items():
        own = n * dim // 1000
        row = {
            "num-examples": own,
            "dim": dim,
            "noise": noise,
            "simulated": simulated(dim, own, noise, num_tasks, num_tests),
            "oracle": expected(dim, own, noise),
            "reference": {"step-size": numbers[::2], "rmse": numbers[1::2]},
        }
        rows.append(row)
        cells = "   ".join(
            f"{source} {row[source]['rmse'][0]:.3f} {row[source]['rmse'][1]:.3f}"
            for source in ("simulated", "oracle", "reference")
        )
        print(f"n/d = {n / 1000:<4} σ = {noise}   by train, by validation: {cells}", flush=True)
    return rows


def statements(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the paper says of its plots, and whether it is so here."""
    steps = [row["best"] for row in result["learned"]]
    gaps = {
        (row["num-examples"] / row["dim"], row["noise"]): row["simulated"]["rmse"][0]
        - row["simulated"]["rmse"][1]
        for row in result["overfitting"]
    }
    by_noise = [gaps[0.5, noise] for noise in (1, 2, 3, 5)]
    by_size = [gaps[ratio, 1] for ratio in (1.0, 2.0, 5.0, 10.0)]
    path = next(row for row in result["learned"] if row["num-steps"] == 80)
    found = {
        "the best step size grows with t (Figure 2)": steps == sorted(steps),
        "meta-descent is near the optimum at its end (Figure 1)": abs(
            path["learned"] / path["best"] - 1
        )
        < 0.05,
        "train-by-train is worse when n < d (Figure 3)": min(by_noise) > 0,
        "the gap widens with the noise (Figure 3)": by_noise == sorted(by_noise),
        "the gap closes with the sample size (Figure 4)": by_size == sorted(by_size)[::-1],
    }
    for text, holds in found.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    return [{"statement": text, "holds": holds} for text, holds in found.items()]


def plot(path: Path, result: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(13, 7), layout="constrained")
    (naive, log, table), (steps, noise, size) = canvas.subplots(2, 3)
    for row in result["gradients"]:
        label = f"η = {row['step-size']:g}"
        naive.plot(row["num-steps"], row["log10-naive"], marker=".", label=label)
        log.plot(row["num-steps"], np.abs(row["log"]), marker=".", label=label)
    naive.set(title="naive objective: log₁₀ |F'|", xlabel="t", xscale="log", ylim=(-40, 60))
    log.set(title="log objective: |F'|", xlabel="t", xscale="log", yscale="log")
    log.legend(fontsize=7)
    _table(table, [row for row in result["failures"] if row["type"] == "float32"])
    ts = [row["num-steps"] for row in result["learned"]]
    for name, style in (("learned", "o"), ("best", "-"), ("reference", "x")):
        steps.plot(ts, [row[name] for row in result["learned"]], style, label=name)
    steps.axhline(result["limit"], linestyle=":", color="gray", label="2/(L+α)")
    steps.set(title="step size, quadratic", xlabel="t", xscale="log")
    steps.legend(fontsize=7)
    rows = result["overfitting"]
    _errors(noise, "noise", [row for row in rows if 2 * row["num-examples"] == row["dim"]])
    _errors(size, "num-examples", [row for row in rows if row["noise"] == 1])
    noise.set(title="test RMSE, n = d/2", xlabel="noise σ")
    size.set(title="test RMSE, σ = 1", xlabel="examples n", xscale="log")
    canvas.savefig(path, dpi=110)


def _table(axis: Any, rows: list[dict[str, Any]]) -> None:
    names = ["exact", "wrong", "zero", "nan"]
    etas = sorted({row["step-size"] for row in rows})
    cells = {(row["step-size"], row["num-steps"]): row["outcome"] for row in rows}
    grid = [[names.index(cells[eta, t]) for t in STEPS] for eta in etas]
    axis.imshow(grid, aspect="auto", cmap="YlOrRd", vmin=0, vmax=4)
    for (eta, t), text in cells.items():
        axis.text(STEPS.index(t), etas.index(eta), text, ha="center", va="center", fontsize=6)
    axis.set_xticks(range(len(STEPS)), STEPS, fontsize=7)
    axis.set_yticks(range(len(etas)), etas, fontsize=7)
    axis.set(title="back-propagation in float32, log objective", xlabel="t", ylabel="η")


def _errors(axis: Any, key: str, rows: list[dict[str, Any]]) -> None:
    for i, (name, colour) in enumerate({"train": "C3", "validation": "C0"}.items()):
        for source, style in (("simulated", "o"), ("oracle", "-")):
            values = [row[source]["rmse"][i] for row in rows]
            label = f"by {name}, {source}"
            axis.plot([row[key] for row in rows], values, style, color=colour, label=label)
    axis.legend(fontsize=7)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/learned-step"))
    parser.add_argument("--full", action="store_true", help="d = 1000 and 1000 meta-steps")
    parser.add_argument(
        "--federated",
        action="store_true",
        help="part learned_step_federated alone",
    )
    args = parser.parse_args(arguments)
    if args.federated:
        learned_step_federated.main(["--out", str(args.out), *["--full"] * args.full])
        return
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    ends = torch.linalg.eigvalsh(problem().matrix)[[0, -1]]
    result = {
        "gradients": gradients([0.003, 0.01, 0.03, 0.04, 1.0, 10.0]),
        "failures": failures(),
        "learned": learned(1000 if args.full else 300),
        "limit": 2 / float(ends.sum()),
        "overfitting": overfitting(*((1000, 6, 10) if args.full else (100, 20, 20))),
    }
    result["statements"] = statements(result)
    plot(args.out / "learned-step.png", result)
    result["seconds"] = time.perf_counter() - start
    text = json.dumps(result, indent=1, allow_nan=False)
    (args.out / "learned-step.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
