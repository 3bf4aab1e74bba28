"""Memory over 1,000 rounds, of the driver and of its workers: its slope is to be nothing.

python -m benchmarks.memory [--rounds N] [--engine serial|ray]

Every engine runs in a process of its own. The slope is that of a line through what is measured
after the first fifth of the rounds, in which caches fill, in MB per 1,000 rounds. The driver keeps
the rows of all rounds, and of all clients that evaluated, for the result: so it is not quite flat.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fedexp
from benchmarks.harm import descendants

RESULTS = Path(__file__).parent / "results" / "memory.json"
ENGINES = {"serial": {}, "ray": {"num_workers": 2}}
POINTS = 50
FLAT = 15.0  # MB per 1,000 rounds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both engines, or one; exits with code 1 if memory grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--engine", choices=ENGINES)
    given = parser.parse_args(argv)
    if given.engine:
        print(json.dumps(measured(given.engine, given.rounds)))
        return
    found = {}
    for engine in ENGINES:
        command = [sys.executable, "-m", "benchmarks.memory", "--engine", engine]
        own = [*command, "--rounds", str(given.rounds)]
        done = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True)
        found[engine] = json.loads(done.stdout.splitlines()[-1])
        for who, megabytes in found[engine]["mb"].items():
            slope = slope_of(found[engine]["rounds"], megabytes)
            found[engine].setdefault("slope", {})[who] = round(slope, 2)
            print(f"{engine:7} {who:8} {megabytes[-1]:8.1f} MB {slope:+8.2f} MB per 1,000 rounds")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if any(slope > FLAT for one in found.values() for slope in one["slope"].values()):
        sys.exit(1)


def measured(engine: str, rounds: int) -> dict[str, object]:
    """Rounds at which memory was measured, and megabytes of the driver and of all workers then."""
    at: list[int] = []
    megabytes: dict[str, list[float]] = {"driver": []}

    def measure(row: dict[str, object]) -> None:
        number = int(str(row["round"]))
        if number % max(1, rounds // POINTS):
            return
        at.append(number)
        megabytes["driver"].append(_resident([os.getpid()]))
        if engine == "ray":
            below = descendants(os.getpid()).items()
            workers = [pid for pid, text in below if text.startswith("ray::_")]
            megabytes.setdefault("workers", []).append(_resident(workers))

    with tempfile.TemporaryDirectory() as folder:
        fedexp.simulate(
            strategy="scaffold",
            num_clients=20,
            fraction_train=0.5,
            fraction_evaluate=0.5,
            local_steps=2,
            num_server_rounds=rounds,
            engine=engine,
            faults="crash=0.05, drop=0.05",
            out=f"{folder}/run",
            on_round=measure,
            **ENGINES[engine],
        )
    return {"rounds": at, "mb": megabytes}


def slope_of(rounds: Sequence[int], megabytes: Sequence[float]) -> float:
    """Megabytes per 1,000 rounds, of the rounds after the first fifth."""
    later = [i for i, number in enumerate(rounds) if number > rounds[-1] / 5]
    x, y = np.array(rounds)[later], np.array(megabytes)[later]
    return float(1000 * np.polyfit(x, y, 1)[0])


def _resident(pids: Sequence[int]) -> float:
    texts = [Path(f"/proc/{pid}/statm").read_text() for pid in pids]
    return sum(int(text.split()[1]) for text in texts) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
