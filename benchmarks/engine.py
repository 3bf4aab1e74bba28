"""Round times of the engine beside Flower's, a loop in two processes and a loop in one.

python -m benchmarks.engine [--quick] [--only W2,W3] [--systems bare,ours] [--repeats 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.loops import Loop
from benchmarks.processes import Remote
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import EXAMPLES, WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results"
TURNS, QUICK_TURNS = 6, 2
ROUNDS = {"flower": 3}  # a turn, of which the first is not counted
DEFAULT_ROUNDS = 6
# Round time over that of bare, at most; and Flower's round time over it, at least.
OVER_BARE = {
    "ours": {"W1": 1.1, "W2": 0.9, "W3": 0.4, "W4": 1.1},
    "foreign": {"W1": 1.25, "W2": 1.6, "W3": 2.0, "W4": 1.4},
}
FASTER = {
    "ours": {"W1": 2.2, "W2": 20, "W3": 25, "W4": 5.5},
    "foreign": {"W1": 2, "W2": 12, "W3": 7, "W4": 4.5},
}
FIRST_ROUND, MEMORY = 0.65, 0.8  # of Flower's, at most

Row = dict[str, Any]


def measure(key: str, systems: Sequence[str], turns: int) -> dict[str, Row]:
    """One sitting: every system started, checked, then measured in turns."""
    with ExitStack() as stack:
        remotes, rows = {}, {}
        for name in systems:
            remotes[name] = stack.enter_context(Remote("benchmarks.systems", name, key))
            rows[name] = _first(remotes[name], WORKLOADS[key])
        for _ in range(turns):
            for name, remote in remotes.items():
                seconds, _, _ = remote.ask(ROUNDS.get(name, DEFAULT_ROUNDS))
                rows[name]["turns"].append(median(seconds[1:]))
        for name, remote in remotes.items():
            rows[name]["gb"] = remote.gb("VmHWM")
    return rows


def _first(remote: Remote, workload: Workload) -> Row:
    """Take the first two rounds; compare their models with a sequential loop's."""
    _, first, _ = remote.ask(1)
    row: Row = {"first": time.perf_counter() - remote.start, "turns": []}
    _, second, arrays = remote.ask(1)
    expected = _by_hand(workload, first + second)
    row["error"] = max(float(np.abs(x - w).max()) for x, w in zip(arrays, expected, strict=True))
    if row["error"] > 1e-4:
        raise RuntimeError(f"{workload.title}: a model is off by {row['error']:.1g}.")
    return row


def _by_hand(workload: Workload, rounds: Sequence[Sequence[int]]) -> list[Any]:
    loop = Loop(workload)
    model = [p.detach().clone() for p in loop.params]
    total = [torch.zeros_like(w) for w in model]
    for t, clients in enumerate(rounds, start=1):
        loop.sums(model, clients, t, total)
        torch._foreach_copy_(model, total)
        torch._foreach_div_(model, EXAMPLES * len(clients))
    return [w.numpy() for w in model]


def summary(sittings: Sequence[dict[str, Row]]) -> dict[str, Row]:
    """Medians over all sittings; ratios are taken turn by turn, where the machine was the same."""
    rows = {}
    for name in sittings[0]:
        rows[name] = {
            "seconds": median(t for sitting in sittings for t in sitting[name]["turns"]),
            "best": min(t for sitting in sittings for t in sitting[name]["turns"]),
            "first": median(sitting[name]["first"] for sitting in sittings),
            "gb": median(sitting[name]["gb"] for sitting in sittings),
            "error": max(sitting[name]["error"] for sitting in sittings),
        }
        for other in {"bare", "flower"} & sittings[0].keys():
            rows[name][f"over-{other}"] = median(
                mine / theirs
                for sitting in sittings
                for mine, theirs in zip(
                    sitting[name]["turns"], sitting[other]["turns"], strict=True
                )
            )
    return rows


def table(key: str, rows: dict[str, Row]) -> str:
    """A table of one workload; targets in brackets."""
    head = f"{key} {WORKLOADS[key].title}"
    lines = [
        f"{head:28} {'s/round':>8} {'best':>6} {'of bare':>17} {'x Flower':>17} {'first, s':>9} "
        f"{'of Flower':>15} {'GB':>5} {'of Flower':>14}"
    ]
    flower = rows.get("flower")
    for name, row in rows.items():
        bare = _verdict(row.get("over-bare"), OVER_BARE.get(name, {}).get(key))
        speed = 1 / row["over-flower"] if flower else None
        faster = _verdict(speed, FASTER.get(name, {}).get(key), at_least=True)
        aim = name in OVER_BARE
        first = _verdict(flower and row["first"] / flower["first"], FIRST_ROUND if aim else None)
        memory = _verdict(flower and row["gb"] / flower["gb"], MEMORY if aim else None)
        lines.append(
            f"{name:28} {row['seconds']:8.3f} {row['best']:6.3f} {bare:>17} {faster:>17} "
            f"{row['first']:9.1f} {first:>15} {row['gb']:5.2f} {memory:>14}"
        )
    return "\n".join(lines)


def _verdict(value: float | None, target: float | None, *, at_least: bool = False) -> str:
    if value is None:
        return "-"
    if target is None:
        return f"{value:.2f}"
    met = value >= target if at_least else value <= target
    return f"{value:.2f} ({target:g} {'met' if met else 'not'})"


def machine() -> Row:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one sitting of few turns")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, by comma")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="systems, by comma")
    parser.add_argument("--repeats", type=int, help="sittings, each with fresh processes")
    args = parser.parse_args(argv)
    repeats = args.repeats or (1 if args.quick else 3)
    turns = QUICK_TURNS if args.quick else TURNS
    torch.set_num_threads(1)
    # Ended in between, it ends its systems too: they wait stopped, and would do so for ever.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    systems = args.systems.split(",")
    for library in ("fedjax", "fedlab"):
        if library in systems and importlib.util.find_spec(library) is None:
            print(f"{library}: not installed, left out (pip install -c constraints.txt {library}).")
            systems.remove(library)
    results = {}
    for key in args.only.split(","):
        sittings = [measure(key, systems, turns) for _ in range(repeats)]
        results[key] = summary(sittings)
        print(table(key, results[key]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "workloads": results}, indent=1)
    (RESULTS / "engine.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
