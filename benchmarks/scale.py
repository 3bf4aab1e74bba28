"""A million registered clients: seconds to start, seconds a round, memory over the rounds.

python -m benchmarks.scale [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path

from benchmarks.processes import Remote
from benchmarks.systems import ours
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
ROUNDS, QUICK_ROUNDS, STEP = 100, 20, 10
MANY = replace(WORKLOADS["W3"], title="logistic, many clients", num_clients=1_000_000, cohort=1000)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = QUICK_ROUNDS if parser.parse_args(argv).quick else ROUNDS
    with Remote("benchmarks.scale", "serve") as remote:
        remote.ask(1)
        first = time.perf_counter() - remote.start
        print(f"first round done after {first:.1f} s")
        rows = []
        for done in range(STEP, rounds + 1, STEP):
            seconds, _, _ = remote.ask(STEP)
            rows.append({"rounds": done, "seconds": sum(seconds) / STEP, "gb": remote.gb()})
            print("{rounds:4} rounds {seconds:7.3f} s a round {gb:6.3f} GB".format(**rows[-1]))
    growth = rows[-1]["gb"] / rows[0]["gb"]
    print(f"memory after {rounds} rounds over that after {STEP}: {growth:.2f} (flat is 1)")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"clients": MANY.num_clients, "first": first, "rounds": rows}, indent=1)
    (RESULTS / "scale.json").write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        with Client(sys.argv[2]) as link:
            ours(MANY, link)
    else:
        main()
