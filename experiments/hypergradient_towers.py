"""Chandra et al. 2022 (arXiv:1909.13371), Table 1 and Figure 3: towers on handwritten digits.

    OMP_NUM_THREADS=1 python -m experiments.hypergradient_towers --data-dir data --out runs/towers

``data/mnist`` holds the four ``*-ubyte.gz`` files; without them scikit-learn's small digits are
used, whose errors are not comparable. The network is the authors': 784-128-10 with tanh after both
layers, log-softmax, batch 256. The rates of the upper levels of Figure 3 are not published; here
every upper level starts at ``--kappa``.
"""

import argparse
import gzip
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.optimizer import HypergradientOptimizer
from fedexp.hypergradients.rules import SGD, Rule

ALL = ("lr", "beta1", "beta2")
# The row, its rule, epochs, published test error in %.
TABLE: list[tuple[str, Rule, int, float]] = [
    ("SGD", SGD(0.01), 30, 8.99),
    ("SGD / SGD", SGD(0.01, hyper=SGD(0.01)), 30, 4.81),
    ("SGD / RMSprop(0.1)", SGD(0.01, hyper=RMSprop(0.1)), 30, 4.52),
    ("Adam", Adam(1e-3, first_v=1e-8), 5, 4.67),
    ("Adam / SGD(1e-5)", Adam(1e-3, first_v=1e-8, tuned=ALL, hyper=SGD(1e-5)), 5, 3.03),
    (
        "AdaGrad / AdaGrad",
        Adagrad(0.01, first_v=0.1, hyper=Adagrad(0.01, first_v=0.1)),
        30,
        5.03,
    ),
]
# Figure 3, left: test error in % of SGD towers of height 0 to 3 at α = 1e-8, 1e-7, ..., 1.
FIGURE = [
    [90, 90, 78, 65, 41, 18, 13, 14, 60],
    [32, 27, 20, 15, 18, 23, 13, 14, 39],
    [16, 15, 14, 14, 14, 14, 16, 16, 21],
    [13, 13, 14, 12.5, 12.5, 13, 13, 15, 14],
]


@dataclass(frozen=True)
class Digits:
    """Images ``[n, d]`` in [0, 1] and labels ``[n]``, resident in memory."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(data_dir: Path) -> Digits:
    if not (data_dir / "mnist" / "train-images-idx3-ubyte.gz").exists():
        return small_digits()

    def read(part: str) -> tuple[Tensor, Tensor]:
        images = idx(data_dir / "mnist" / f"{part}-images-idx3-ubyte.gz", header=16)
        labels = idx(data_dir / "mnist" / f"{part}-labels-idx1-ubyte.gz", header=8)
        return images.view(len(labels), -1).float() / 255, labels.long()

    return Digits("mnist", read("train"), read("t10k"))


def idx(path: Path, header: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(gzip.open(path).read(), np.uint8, offset=header).copy())


def small_digits() -> Digits:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    return Digits("digits", (x[:1437], y[:1437]), (x[1437:], y[1437:]))


class MLP(nn.Module):
    """The authors' network."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(num_inputs, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[n, 10]``."""
        return log_softmax(self.out(self.hidden(x).tanh()).tanh(), dim=1)


def trained(data: Digits, rule: Rule, num_epochs: float, seed: int) -> dict[str, Any]:
    """Test error in %, and the values the tower ended at."""
    torch.manual_seed(seed)  # Layers draw their first weights from the global generator.
    images, labels = data.train
    model = MLP(images.shape[1])
    optimizer = HypergradientOptimizer(model.parameters(), rule)
    generator = torch.Generator().manual_seed(seed)
    num_steps, batches = round(num_epochs * -(-len(labels) // 256)), iter(())
    for _ in range(num_steps):
        if (rows := next(batches, None)) is None:
            batches = iter(torch.randperm(len(labels), generator=generator).split(256))
            rows = next(batches)
        optimizer.zero_grad()
        nll_loss(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        wrong = model(data.test[0]).argmax(1) != data.test[1]
    return {"error": 100 * wrong.double().mean().item(), "learned": optimizer.learned().values()}


def table(data: Digits, num_seeds: int, num_epochs: float | None) -> list[dict[str, Any]]:
    rows = []
    for name, rule, epochs, published in TABLE:
        runs = [trained(data, rule, num_epochs or epochs, seed) for seed in range(num_seeds)]
        errors = [run["error"] for run in runs]
        rows.append(
            {
                "name": name,
                "epochs": num_epochs or epochs,
                "errors": errors,
                "mean": statistics.mean(errors),
                "std": statistics.pstdev(errors),
                "published": published,
                "learned": [run["learned"] for run in runs],
            }
        )
        mean, std = rows[-1]["mean"], rows[-1]["std"]
        print(f"{name:20} {mean:6.2f} ± {std:.2f} %   published {published:.2f} %", flush=True)
    return rows


def tower(height: int, kappa: float) -> Rule | None:
    return SGD(kappa, hyper=tower(height - 1, kappa)) if height else None


def figure(
    data: Digits, exponents: list[int], num_epochs: float, kappa: float
) -> list[list[float]]:
    curves = []
    for height in range(4):
        above = tower(height, kappa)
        curves.append(
            [
                trained(data, SGD(10.0**exponent, hyper=above), num_epochs, seed=0)["error"]
                for exponent in exponents
            ]
        )
        print(f"height {height}:", " ".join(f"{error:5.1f}" for error in curves[-1]), flush=True)
    return curves


def plot(path: Path, exponents: list[int], curves: list[list[float]], name: str) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.6), layout="constrained")
    ours, theirs = canvas.subplots(1, 2, sharey=True)
    for axis, source, xs in ((ours, curves, exponents), (theirs, FIGURE, list(range(-8, 1)))):
        for height, errors in enumerate(source):
            axis.plot([10.0**x for x in xs], errors, marker="o", label=f"height {height}")
        axis.set(xscale="log", xlabel="initial step size", ylim=(0, 100))
    ours.set(title=f"here, on {name}", ylabel="test error, %")
    theirs.set(title="published, Figure 3")
    ours.legend()
    canvas.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/hypergradient-towers"))
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--figure-epochs", type=float, default=5)
    parser.add_argument("--kappa", type=float, default=1e-5, help="upper rates of the figure")
    parser.add_argument("--quick", action="store_true", help="a smoke test: a part of an epoch")
    args = parser.parse_args(arguments)
    start, data = time.perf_counter(), digits(args.data_dir)
    args.out.mkdir(parents=True, exist_ok=True)
    exponents = [-4, -2, 0] if args.quick else list(range(-8, 1))
    rows = table(data, 1 if args.quick else args.num_seeds, 0.1 if args.quick else None)
    curves = figure(data, exponents, 0.1 if args.quick else args.figure_epochs, args.kappa)
    plot(args.out / "hypergradient-towers.png", exponents, curves, data.name)
    result = {
        "data": data.name,
        "table": rows,
        "figure": {
            "log10-step-size": exponents,
            "epochs": 0.1 if args.quick else args.figure_epochs,
            "kappa": args.kappa,
            "errors-by-height": curves,
            "published": FIGURE,
        },
        "seconds": time.perf_counter() - start,
    }
    text = json.dumps(result, indent=1)
    (args.out / "hypergradient-towers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
