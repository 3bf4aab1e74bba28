"""Step time and memory of hypergradient optimizers beside the plain ones.

    OMP_NUM_THREADS=1 python -m benchmarks.hypergradient [--quick] [--repeats 3] [--out FILE]

A step is zero_grad, forward, backward and step. The optimizers of a row take turns of twenty
steps, as training takes one step after another, in rotating order, and each has its own model.
Times are of the processor, in one thread, since a busy machine disturbs them less than those of
the clock. Ratios are of medians. ``alone`` is forward and backward with no optimizer. ``published``
is the package gradient-descent-the-ultimate-optimizer; a machine without it skips that column. The
time of ``published`` over that of ``alone`` is the ceiling: so many times faster is an optimizer
that costs nothing.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedexp.hypergradients import SGD, Adam, HypergradientOptimizer, Rule

Step = Callable[[], Any]
Row = dict[str, dict[str, float]]
RESULTS = Path(__file__).parent / "results"
STEPS, TURNS, QUICK_TURNS = 20, 15, 4  # steps a turn; turns
# Step time over torch's, at most; and the published package's over ours, at least.
OVER_TORCH = {"1 level": 1.15, "3 levels": 1.2, "1 level, all tuned": 1.15}
FASTER = {"MLP SGD, batch 32": 2.5, "MLP Adam, batch 32": 4.0}
ALL = ("lr", "beta1", "beta2")
KAPPA = 1e-6  # Small: every contender then does the same work on the same numbers.


def tower(height: int) -> Rule | None:
    return SGD(KAPPA, hyper=tower(height - 1)) if height else None


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 1, 28, 28, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


class Nothing:
    """No optimizer: gradients are dropped, weights stay."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        self.params = list(params)

    def zero_grad(self) -> None:
        """As the optimizers do."""
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Do nothing."""


def training(build: Callable[[], nn.Module], optimizer: Callable[[Any], Any], size: int) -> Step:
    torch.manual_seed(0)
    model, (images, labels) = build(), batch_of(size)
    stepper = optimizer(model.parameters())

    def step() -> None:
        stepper.zero_grad()
        cross_entropy(model(images), labels).backward()
        stepper.step()

    return step


def published(build: Callable[[], nn.Module], kind: str, size: int) -> Step | None:
    try:
        from gradient_descent_the_ultimate_optimizer import gdtuo
    except ImportError:
        return None
    torch.manual_seed(0)
    model, (images, labels) = build(), batch_of(size)
    above = gdtuo.SGD(KAPPA)
    wrapper = gdtuo.ModuleWrapper(
        model, gdtuo.SGD(1e-3, optimizer=above) if kind == "SGD" else gdtuo.Adam(optimizer=above)
    )
    wrapper.initialize()

    def step() -> None:
        wrapper.begin()
        loss = cross_entropy(wrapper.forward(images), labels)
        wrapper.zero_grad()
        loss.backward(create_graph=True)
        wrapper.step()

    return step


def medians(steps: dict[str, Step], num_turns: int) -> dict[str, float]:
    """Median microseconds of a step of each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(num_turns + 1):
        names = names[1:] + names[:1]  # Nobody always follows the same neighbour.
        for name in names:
            for _ in range(STEPS):
                start = time.thread_time()
                steps[name]()
                if turn:  # The first warms up.
                    seconds[name].append(time.thread_time() - start)
    return {name: 1e6 * statistics.median(mine) for name, mine in seconds.items()}


def compared(us: dict[str, float]) -> Row:
    """Times of one sitting, and what they are to each other."""
    row = {name: {"us": mine, "over-torch": mine / us["torch"]} for name, mine in us.items()}
    if "published" in us:
        for name, mine in us.items():
            row[name]["times-faster-than-published"] = us["published"] / mine
    return row


def summary(sittings: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Median, least and greatest over the sittings."""
    return {
        name: {
            key: [
                f(sitting[name][key] for sitting in sittings) for f in (statistics.median, min, max)
            ]
            for key in sittings[0][name]
        }
        for name in sittings[0]
    }


def contenders(build: Callable[[], nn.Module], kind: str, size: int) -> dict[str, Step]:
    plain = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[kind]
    rules: dict[str, Rule] = {
        f"{h} level{'s' * (h > 1)}": (SGD if kind == "SGD" else Adam)(1e-3, hyper=tower(h))
        for h in (1, 3)
    }
    if kind == "Adam":
        rules["1 level, all tuned"] = Adam(1e-3, hyper=tower(1), tuned=ALL)
    steps = {
        "alone": training(build, Nothing, size),
        "torch": training(build, lambda p: plain(p, lr=1e-3), size),
    }
    if kind == "Adam":
        steps["torch, fused"] = training(build, lambda p: plain(p, lr=1e-3, fused=True), size)
    for name, rule in rules.items():
        steps[name] = training(build, lambda p, rule=rule: HypergradientOptimizer(p, rule), size)
    if theirs := published(build, kind, size):
        steps["published"] = theirs
    return steps


def peak_copies(height: int | None) -> float:
    """Peak memory of three SGD steps on 64 MB of parameters, in copies of these; own process."""
    weights = [nn.Parameter(torch.zeros(2**21)) for _ in range(8)]
    for weight in weights:
        weight.grad = torch.ones(2**21)
    rule = SGD(1e-3, hyper=tower(height or 0))

    def build(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return (
            torch.optim.SGD(params, 1e-3)
            if height is None
            else HypergradientOptimizer(params, rule)
        )

    small = nn.Parameter(torch.zeros(2))
    small.grad = torch.zeros(2)
    warm = build([small])
    for _ in range(3):  # What code takes is no part of the answer.
        warm.step()
    optimizer = build(weights)
    before = _peak_kilobytes()
    for _ in range(3):
        optimizer.zero_grad()
        for weight in weights:  # As a backward pass does.
            weight.grad = torch.ones(2**21)
        optimizer.step()
    gc.collect()
    return (_peak_kilobytes() - before) / 2**16


def _peak_kilobytes() -> int:
    """Of this process; `resource` would begin with what its parent had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0])


def table(title: str, row: dict[str, dict[str, list[float]]]) -> str:
    """A table of one row: medians, and the range over the sittings; targets in brackets."""
    lines = [f"{title:24} {'us':>6} {'over torch':>34} {'published over it':>34}"]
    for name, mine in row.items():
        ratio = _verdict(mine["over-torch"], OVER_TORCH.get(name), at_least=False)
        aim = FASTER.get(title) if "level" in name else None
        faster = _verdict(mine.get("times-faster-than-published"), aim, at_least=True)
        lines.append(f"{name:24} {mine['us'][0]:6.0f} {ratio:>34} {faster:>34}")
    return "\n".join(lines)


def _verdict(values: list[float] | None, target: float | None, *, at_least: bool) -> str:
    if values is None:
        return "-"
    middle, low, high = values
    text = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    if target is None:
        return text
    met = middle >= target if at_least else middle <= target
    return f"{text} ({target:g} {'met' if met else 'not met'})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one sitting of few turns")
    parser.add_argument("--repeats", type=int, help="sittings")
    parser.add_argument("--out", type=Path, default=RESULTS / "hypergradient.json")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.peak:
        print(peak_copies(None if args.peak == "torch" else int(args.peak)))
        return
    repeats = args.repeats or (1 if args.quick else 3)
    turns = QUICK_TURNS if args.quick else TURNS
    rows = {}
    for model, build, size in (("MLP", mlp, 32), ("MLP", mlp, 256), ("CNN", cnn, 32)):
        for kind in ("SGD", "Adam"):
            title = f"{model} {kind}, batch {size}"
            sittings = [
                compared(medians(contenders(build, kind, size), turns)) for _ in range(repeats)
            ]
            rows[title] = summary(sittings)
            print(table(title, rows[title]), flush=True)
    command = [sys.executable, "-m", "benchmarks.hypergradient", "--peak"]
    peak = {
        label: float(subprocess.check_output([*command, which], text=True))
        for label, which in (("torch SGD", "torch"), ("1 level", "1"), ("3 levels", "3"))
    }
    print("peak memory of a step in copies of the parameters:", peak)
    args.out.parent.mkdir(exist_ok=True)
    text = json.dumps({"torch": torch.__version__, "steps": rows, "peak": peak}, indent=1)
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
