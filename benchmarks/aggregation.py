"""One round's aggregation alone: FedExP with its norms beside Flower's FedAvg without.

python -m benchmarks.aggregation [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.processes import Remote

RESULTS = Path(__file__).parent / "results"
REPLIES, QUICK_REPLIES = 50, 20
# A convolutional network of 5.0 million parameters.
SHAPES = {
    "conv1.weight": (32, 3, 3, 3),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 3, 3),
    "conv2.bias": (64,),
    "fc1.weight": (1024, 4096),
    "fc1.bias": (1024,),
    "fc2.weight": (720, 1024),
    "fc2.bias": (720,),
    "fc3.weight": (62, 720),
    "fc3.bias": (62,),
}
TIME, MEMORY = 1.0, 0.1  # of Flower's, at most


def replies(model: dict[str, Any], count: int) -> Iterator[Any]:
    """Replies as they come from the network: bytes, different in every one."""
    return (_reply(model, i) for i in range(count))


def _reply(model: dict[str, Any], i: int) -> Any:
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    record = ArrayRecord({name: _changed(x, i) for name, x in model.items()})
    metrics = MetricRecord({"num-examples": 7, "train-loss": 0.5})
    content = RecordDict({"arrays": record, "metrics": metrics})
    return Message(content, reply_to=Message(RecordDict(), i + 2, "train"))


def _changed(array: Any, i: int) -> Any:
    from flwr.app import Array

    data = b"".join((memoryview(array.data)[:-4], np.float32(i).tobytes()))
    return Array(array.dtype, array.shape, array.stype, data)


def arrays(seed: int) -> dict[str, Any]:
    """A model."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def aggregate(system: str, count: int) -> dict[str, float]:
    """Seconds and growth of the peak of one ``aggregate_train``, making replies left out."""
    from flwr.app import Array

    model = {name: Array(x) for name, x in arrays(seed=1).items()}
    strategy, start = _strategy(system), time.perf_counter()
    for _ in replies(model, count):
        pass
    making = time.perf_counter() - start
    level = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    start = time.perf_counter()
    strategy.aggregate_train(1, replies(model, count))
    seconds = time.perf_counter() - start
    return {"seconds": seconds - making, "gb": (_status("VmHWM") - level) / 1e6}


def _strategy(system: str) -> Any:
    from flwr.app import ConfigRecord
    from flwr.serverapp.strategy import FedAvg

    from fedexp.records import to_record
    from fedexp.simulation.grid import identify
    from fedexp.strategies import FedExP

    identify()
    if system == "flower":
        return FedAvg()
    strategy = FedExP(fraction_train=0.0)
    strategy.configure_train(1, to_record(arrays(seed=0)), ConfigRecord(), None)  # type: ignore[arg-type]
    return strategy


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(argv).quick
    count, repeats = (QUICK_REPLIES, 3) if quick else (REPLIES, 5)
    measured: dict[str, list[dict[str, float]]] = {"flower": [], "fedexp": []}
    for _ in range(repeats):
        for system, rows in measured.items():
            with Remote("benchmarks.aggregation_process", system) as remote:
                rows.append(remote.ask(count))
    table = {
        system: {key: median(row[key] for row in rows) for key in rows[0]}
        for system, rows in measured.items()
    }
    for system, row in table.items():
        print(f"{system:8} {row['seconds']:7.3f} s {row['gb']:7.3f} GB")
    for key, target in ("seconds", TIME), ("gb", MEMORY):
        ratios = [b[key] / a[key] for a, b in zip(*measured.values(), strict=True)]
        met = "met" if median(ratios) <= target else "not met"
        print(f"{key} of Flower's: {median(ratios):.2f} (target {target:g}, {met})")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"replies": count, **table}, indent=1)
    (RESULTS / "aggregation.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
