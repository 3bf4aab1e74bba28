"""Hanin & Sun 2021 (arXiv:2010.11171): joint schedules of learning rate and augmentation.

    OMP_NUM_THREADS=1 python -m experiments.augmentation_schedules --out runs/schedules

Linear regression with three examples in six dimensions, so three dimensions are not seen. Noise of
variance ``(t + 1)^-y`` at rates ``(t + 1)^-x / 4`` leads to the minimum-norm solution or not. For
each pair the root mean square distance to that solution is printed: by the exact recursion, by
simulation with its standard error, and the reference value, which was computed by other code. Then
constant noise is held against ridge regression, and constant rank against the fixed point of
projections.
By default the table ends at 10,000 steps and simulations take 200 runs of 1,000 steps; ``--full``
goes to 30,000, with 2,000 runs of 10,000 steps.

At last the same regression as a federation, by ordinary runs, and the digits with and without
schedules (``experiments.augmented_federations``).
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.augmented_federations import Size, digits, regressions
from fedexp.augmentation import (
    Moments,
    PowerLaw,
    ProjectionMoments,
    check_schedule,
    min_norm,
    noise_step,
    projection_fixed_point,
    projection_step,
    ridge,
    unseen_component,
)

CHECKPOINTS = (1_000, 10_000, 30_000)
CURVE = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)  # of the picture
# x, y: reference rms distances at the checkpoints, and norms of the mean's unseen component.
REFERENCE: dict[tuple[float, float], tuple[list[float], list[float | None]]] = {
    (2 / 3, 1 / 3): ([0.512229, 0.342421, 0.265758], [0.022035, 0.006969, 0.004024]),
    (0.6, 0.3): ([0.516890, 0.367012, 0.299294], [None, None, None]),
    (0.7, 0.25): ([0.590448, 0.468961, 0.410556], [None, None, None]),
    (0.55, 0.4): ([0.404920, 0.211243, 0.144830], [None, None, None]),
    (0.5, 0.45): ([0.339207, 0.145490, 0.091905], [None, None, None]),
    (0.6, 0.6): ([0.465481, 0.292303, 0.262576], [0.110436, 0.087596, 0.081011]),
    (0.8, 0.5): ([0.715918, 0.568007, 0.509688], [None, None, 0.147382]),
    (0.2, 0.5): ([0.247594, 0.098599, 0.061156], [None, None, None]),
}
RIDGE_REFERENCE = [0.11313, 0.012570, 0.002583]  # ‖E W - ridge‖ at sigma = 0.5, x = 0.75


@dataclass(frozen=True)
class Problem:
    """Inputs ``[6, 3]``, targets ``[1, 3]`` that a linear map fits, and a start ``[1, 6]``."""

    x: np.ndarray
    y: np.ndarray
    start: np.ndarray

    @classmethod
    def drawn(cls) -> "Problem":
        """The draw of the reference values."""
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(6, 3)), rng.normal(size=(1, 6))
        return cls(x, w @ x, rng.normal(size=(1, 6)))


def recursion(
    problem: Problem, eta: PowerLaw, sigma: PowerLaw, checkpoints: list[int]
) -> list[Moments]:
    """Exact moments of the weights at the checkpoints."""
    moments, found = Moments.certain(problem.start), []
    for t in range(checkpoints[-1]):
        moments = noise_step(moments, problem.x, problem.y, eta(t), sigma(t))
        if t + 1 in checkpoints:
            found.append(moments)
    return found


def simulation(
    problem: Problem, eta: PowerLaw, sigma: PowerLaw, checkpoints: list[int], num_runs: int
) -> list[np.ndarray]:
    """Weights ``[num_runs, 6]`` of independent runs at the checkpoints."""
    rng = np.random.default_rng(1)
    w, found = np.repeat(problem.start, num_runs, axis=0)[:, None, :], []
    for t in range(checkpoints[-1]):
        inputs = problem.x + sigma(t) * rng.standard_normal((num_runs, *problem.x.shape))
        residual = problem.y - w @ inputs
        w = w + 2 * eta(t) / problem.x.shape[1] * residual @ inputs.swapaxes(1, 2)
        if t + 1 in checkpoints:
            found.append(w[:, 0])
    return found


def schedule_table(
    problem: Problem, checkpoints: list[int], num_runs: int, num_simulated: int
) -> list[dict[str, Any]]:
    """A row for each pair of exponents; simulations end at checkpoint ``num_simulated``."""
    target, rows = min_norm(problem.x, problem.y), []
    for (x, y), (distances, unseen) in REFERENCE.items():
        eta, sigma = PowerLaw(0.25, x), PowerLaw(1.0, y / 2)
        check = check_schedule(eta, sigma)
        curve = [t for t in CURVE if t <= checkpoints[-1]]
        by_step = dict(zip(curve, recursion(problem, eta, sigma, curve), strict=True))
        exact = [by_step[t] for t in checkpoints]
        runs = simulation(problem, eta, sigma, checkpoints[:num_simulated], num_runs)
        squares = [((w - target) ** 2).sum(axis=1) for w in runs]
        rms = [float(np.sqrt(s.mean())) for s in squares]
        row = {
            "x": x,
            "y": y,
            "check": check.text,
            "guaranteed": check.guaranteed,
            "steps": checkpoints,
            "rms": [m.sq_distance(target) ** 0.5 for m in exact],
            "rms-reference": distances[: len(checkpoints)],
            "rms-simulated": rms,
            # Of a root: the error of the mean square over twice the root.
            "rms-standard-error": [
                float(s.std(ddof=1) / len(s) ** 0.5 / (2 * r))
                for s, r in zip(squares, rms, strict=True)
            ],
            "unseen": [float(np.linalg.norm(unseen_component(m.mean, problem.x))) for m in exact],
            "unseen-reference": unseen[: len(checkpoints)],
            "curve-steps": curve,
            "curve-rms": [m.sq_distance(target) ** 0.5 for m in by_step.values()],
            "unseen-limit": check.unseen_factor
            * float(np.linalg.norm(unseen_component(problem.start, problem.x))),
        }
        rows.append(row)
        print(f"x = {x:.3f}, y = {y:.3f}   {check.text}")
        for i, steps in enumerate(checkpoints):
            line = f"  {steps:6} steps: {row['rms'][i]:.6f}   reference {distances[i]:.6f}"
            if i < len(rms):
                line += f"   simulated {rms[i]:.4f} ± {row['rms-standard-error'][i]:.4f}"
            print(line, flush=True)
    return rows


def ridge_limit(problem: Problem, checkpoints: list[int]) -> dict[str, Any]:
    """Distance of the mean from ridge regression at constant noise 0.5 and ``x = 0.75``."""
    eta, sigma = PowerLaw(0.25, 0.75), PowerLaw(0.5)
    check = check_schedule(eta, sigma)
    assert check.ridge is not None
    target = ridge(problem.x, problem.y, check.ridge * problem.x.shape[1])
    exact = recursion(problem, eta, sigma, checkpoints)
    found = {
        "check": check.text,
        "steps": checkpoints,
        "distance-of-mean": [float(np.linalg.norm(m.mean - target)) for m in exact],
        "reference": RIDGE_REFERENCE[: len(checkpoints)],
        "rms": [m.sq_distance(target) ** 0.5 for m in exact],
        "ridge-to-min-norm": float(np.linalg.norm(target - min_norm(problem.x, problem.y))),
    }
    print(f"\nconstant noise   {check.text}")
    print("  distance of the mean:", *(f"{d:.6f}" for d in found["distance-of-mean"]))
    print("  reference:           ", *(f"{d:.6f}" for d in found["reference"]), flush=True)
    return found


def projection_limit(problem: Problem, num_steps: int, num_runs: int) -> list[dict[str, Any]]:
    """Projections at rate 0.2: the exact and a simulated mean against the fixed point."""
    rows = []
    for rank in range(1, len(problem.x)):
        moments, exact = Moments.certain(problem.start), ProjectionMoments.of(problem.x, rank)
        for _ in range(num_steps):
            moments = projection_step(moments, exact, problem.x, problem.y, 0.2)
        target = projection_fixed_point(problem.x, problem.y, rank)
        runs = projected_runs(problem, rank, num_runs)
        error = runs.std(axis=0, ddof=1) / num_runs**0.5
        row = {
            "rank": rank,
            "steps": num_steps,
            "fixed-point": target.tolist(),
            "distance-of-mean": float(np.linalg.norm(moments.mean - target)),
            "rms": moments.sq_distance(target) ** 0.5,
            "simulated-mean": runs.mean(axis=0).tolist(),
            "largest-error-in-standard-errors": float(
                np.abs((runs.mean(axis=0) - target[0]) / error).max()
            ),
        }
        rows.append(row)
        print(
            f"rank {rank}: mean {row['distance-of-mean']:.2e} from the fixed point, weights "
            f"{row['rms']:.4f} rms; simulated mean within "
            f"{row['largest-error-in-standard-errors']:.1f} standard errors",
            flush=True,
        )
    return rows


def projected_runs(problem: Problem, rank: int, num_runs: int, num_steps: int = 300) -> np.ndarray:
    """Weights ``[num_runs, 6]`` of runs that start at the fixed point, so that no bias remains."""
    rng = np.random.default_rng(rank)
    n, num = problem.x.shape
    w = np.repeat(projection_fixed_point(problem.x, problem.y, rank)[None], num_runs, axis=0)
    for _ in range(num_steps):
        basis = np.linalg.qr(rng.standard_normal((num_runs, n, rank)))[0]
        inputs = basis @ (basis.swapaxes(1, 2) @ problem.x)
        w = w + 0.4 / num * (problem.y - w @ inputs) @ inputs.swapaxes(1, 2)
    return w[:, 0]


def recursions(problem: Problem, out: Path, number: int) -> dict[str, Any]:
    """The table, the ridge limit and the projections, to as many checkpoints."""
    checkpoints, num_runs = list(CHECKPOINTS[:number]), (50, 200, 2000)[number - 1]
    return {
        "schedules": schedule_table(
            problem, checkpoints, num_runs, num_simulated=max(1, number - 1)
        ),
        "ridge": ridge_limit(problem, checkpoints),
        "projections": projection_limit(problem, 6000, num_runs),
        "num-runs": num_runs,
    }


def federations(problem: Problem, out: Path, number: int) -> dict[str, Any]:
    """Federations with FedAvg and FedExP: the same regression, and digits."""
    size = (
        Size(steps=20, seeds=2, rounds=2, grid=[0.3]),
        Size(steps=100, seeds=3, rounds=20, grid=[0.1, 0.3, 1.0]),
        Size(steps=1000, seeds=10, rounds=40, grid=[0.1, 0.3, 1.0]),
    )[number - 1]
    rows = regressions(out, problem.x, problem.y, problem.start, size)
    return {"federated": {"regression": rows, "digits": digits(size)}}


def plot(path: Path, found: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    rows, limit = found["schedules"], found["ridge"]
    canvas = Figure(figsize=(11, 9), layout="constrained")
    (left, right), (regression, images) = canvas.subplots(2, 2)
    for number, row in enumerate(rows):
        style = "-" if row["guaranteed"] else "--"
        name = f"x = {row['x']:.2f}, y = {row['y']:.2f}"
        left.plot(row["curve-steps"], row["curve-rms"], style, color=f"C{number}", label=name)
        left.plot(row["steps"], row["rms-reference"], "x", color=f"C{number}", markersize=5)
        left.errorbar(
            row["steps"][: len(row["rms-simulated"])],
            row["rms-simulated"],
            [3 * e for e in row["rms-standard-error"]],
            fmt="o",
            color=f"C{number}",
            markersize=3,
        )
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="rms distance to minimum norm")
    left.set_title(
        "recursion (lines; dashed: not guaranteed), reference (x), simulation (dots)", fontsize=9
    )
    left.legend(fontsize=7, loc="lower left")
    right.plot(limit["steps"], limit["distance-of-mean"], "o-", label="here")
    right.plot(limit["steps"], limit["reference"], "x--", label="reference")
    right.set(xscale="log", yscale="log", xlabel="step", ylabel="distance of the mean to ridge")
    right.set_title("constant noise, sigma = 0.5", fontsize=9)
    right.legend()
    plot_regression(regression, found["federated"]["regression"], rows[0])
    plot_digits(images, found["federated"]["digits"])
    canvas.savefig(path, dpi=120)


def plot_regression(axes: Any, federations: list[dict[str, Any]], exact: dict[str, Any]) -> None:
    for row in federations:
        name = f"{row['strategy'].partition('(')[0]}, {row['local-steps']} local"
        style = "-" if row["augmentation"] else ":"
        color = f"C{2 * (row['local-steps'] > 1) + row['strategy'].startswith('fedexp')}"
        label = name if row["augmentation"] else None
        axes.plot(row["curve-steps"], row["curve-rms"], style, color=color, label=label)
    axes.plot(exact["curve-steps"], exact["curve-rms"], "kx", label="recursion: fedavg, 1 local")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="rms distance to minimum norm")
    axes.set_title("federations, x = 2/3, y = 1/3 (dotted: no noise)", fontsize=9)
    axes.legend(fontsize=7, loc="lower left")


def plot_digits(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    for number, strategy in enumerate(("fedavg", "fedexp")):
        scores = [row["accuracy"] for row in rows if row["strategy"] == strategy]
        at = np.arange(len(names)) + 0.4 * number
        axes.bar(at, [np.mean(s) for s in scores], 0.35, label=strategy)
        axes.plot(at, scores, "k.", markersize=4)
    axes.set_xticks(np.arange(len(names)) + 0.2, names, fontsize=8)
    low = min(min(row["accuracy"]) for row in rows)
    axes.set(ylim=(max(0.0, low - 0.05), None), ylabel="test accuracy")
    axes.set_title("digits: bars are means of three seeds, at the best rate of a grid", fontsize=9)
    axes.legend(fontsize=7, loc="lower left")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/augmentation-schedules"))
    parser.add_argument("--full", action="store_true", help="30,000 steps, and 2,000 runs")
    parser.add_argument("--smoke", action="store_true", help="1,000 steps and 50 runs only")
    parts = {"schedules": recursions, "federated": federations}
    parser.add_argument("--part", choices=parts, help="only this; the rest of --out stays")
    args = parser.parse_args(arguments)
    number, problem = 1 if args.smoke else 3 if args.full else 2, Problem.drawn()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "augmentation-schedules.json"
    found: dict[str, Any] = {}
    if args.part and path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    for name in [args.part] if args.part else parts:
        start = time.perf_counter()
        found |= parts[name](problem, args.out, number)
        found[f"{name}-seconds"] = round(time.perf_counter() - start)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if parts.keys() <= found.keys():
        plot(path.with_suffix(".png"), found)


if __name__ == "__main__":
    main()
