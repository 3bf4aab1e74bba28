"""Step time and memory of hypergradient optimizers beside the plain ones: one table.

    OMP_NUM_THREADS=1 python -m benchmarks.hypergradient

A step is zero_grad, forward, backward and step. The optimizers of a row take turns, step by step,
in rotating order and each with a model of its own. Times are of the processor, in one thread: a
busy machine disturbs them less than it does the clock. Ratios are of medians. ``published`` is the
package gradient-descent-the-ultimate-optimizer, its column empty where that is not installed.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedexp.clients.adaptive_rules import Adam
from fedexp.clients.hypergradient import Hypergradient
from fedexp.clients.update_rules import SGD, Rule

Step = Callable[[], Any]
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


def training(
    build: Callable[[], nn.Module], optimizer: Callable[[Any], torch.optim.Optimizer], size: int
) -> Step:
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


def medians(steps: dict[str, Step], num_turns: int) -> dict[str, dict[str, float]]:
    """Median microseconds of each, and their ratio to the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(num_turns + 20):
        names = names[1:] + names[:1]  # Nobody always follows the same neighbour.
        for name in names:
            start = time.thread_time()
            steps[name]()
            if turn >= 20:  # warm-up
                seconds[name].append(time.thread_time() - start)
    middle = {name: 1e6 * statistics.median(mine) for name, mine in seconds.items()}
    first = next(iter(middle.values()))
    return {name: {"us": value, "ratio": value / first} for name, value in middle.items()}


def contenders(build: Callable[[], nn.Module], kind: str, size: int) -> dict[str, Step]:
    plain = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[kind]
    rules: dict[str, Rule] = {
        f"{h} level{'s' * (h > 1)}": (SGD if kind == "SGD" else Adam)(1e-3, hyper=tower(h))
        for h in (1, 3)
    }
    if kind == "Adam":
        rules["1 level, all tuned"] = Adam(1e-3, hyper=tower(1), tuned=ALL)
    steps = {"torch": training(build, lambda p: plain(p, lr=1e-3), size)}
    for name, rule in rules.items():
        steps[name] = training(build, lambda p, rule=rule: Hypergradient(p, rule), size)
    if theirs := published(build, kind, size):
        steps["published"] = theirs
    return steps


def peak_copies(height: int | None) -> float:
    """Peak memory of two SGD steps on 64 MB of parameters, in copies of these; own process."""
    weights = [nn.Parameter(torch.zeros(2**21)) for _ in range(8)]
    grads = [torch.ones(2**21) for _ in weights]
    rule = SGD(1e-3, hyper=tower(height or 0))
    optimizer = (
        Hypergradient(weights, rule) if height is not None else torch.optim.SGD(weights, 1e-3)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        optimizer.step()
    gc.collect()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**16


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-turns", type=int, default=300)
    parser.add_argument("--out", help="JSON file for the numbers")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.peak:
        print(peak_copies(None if args.peak == "torch" else int(args.peak)))
        return
    rows: dict[str, Any] = {}
    for model, build, size in (("MLP", mlp, 32), ("MLP", mlp, 256), ("CNN", cnn, 32)):
        for kind in ("SGD", "Adam"):
            name = f"{model} {kind}, batch {size}"
            rows[name] = medians(contenders(build, kind, size), args.num_turns)
            cells = [f"{k} {v['us']:.0f} us (x{v['ratio']:.2f})" for k, v in rows[name].items()]
            print(f"{name}: {', '.join(cells)}", flush=True)
            if "published" not in rows[name]:
                print("  (gradient-descent-the-ultimate-optimizer is not installed: no column)")
                continue
            for ours in [k for k in rows[name] if "level" in k]:
                faster = rows[name]["published"]["us"] / rows[name][ours]["us"]
                rows[name][ours]["times-faster-than-published"] = faster
                print(f"  {ours}: {faster:.1f} times faster than the published package")
    command = [sys.executable, "-m", "benchmarks.hypergradient", "--peak"]
    rows["peak"] = {
        label: float(subprocess.check_output([*command, which], text=True))
        for label, which in (("torch SGD", "torch"), ("1 level", "1"), ("3 levels", "3"))
    }
    print("peak memory of a step in copies of the parameters:", rows["peak"])
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
