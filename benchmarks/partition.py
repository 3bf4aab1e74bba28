"""Time and memory of every partitioner, small (60,000 labels) and large (10 million).

    python -m benchmarks.partition
    python -m benchmarks.partition --mnist FOLDER    # also the memory of 1,000 clients on MNIST

The memory is the peak that numpy allocates beside the labels and the result, in units of the labels
(int64). The targets are 0.2 s and 20 s, and 3 units.
"""

import argparse
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np

from fedexp.datasets import PARTITIONERS, Dataset, Partition, load
from fedexp.datasets.partition import partition_named

SETTINGS = {"alpha": 0.3, "sigma": 1.0, "shards_per_client": 2, "classes_per_client": 2}


def measured(make: Callable[[], Partition], num_bytes: int) -> tuple[float, float]:
    """Best of three in seconds, and peak memory beside the result in units of ``num_bytes``."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        make()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    parts = make()
    peak = tracemalloc.get_traced_memory()[1] - parts.indices.nbytes - parts.offsets.nbytes
    tracemalloc.stop()
    return min(seconds), peak / num_bytes


def report(num_clients: int, num_examples: int) -> None:
    import torch

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, num_examples)
    targets = torch.from_numpy(labels)
    keys = rng.integers(0, num_clients, num_examples)
    data = Dataset((targets, targets), (targets, targets), 10, keys)
    print(f"{num_clients:,} clients, {num_examples:,} labels")
    for name in PARTITIONERS:

        def make(name: str = name) -> Partition:
            return partition_named(name, data, num_clients=num_clients, seed=0, **SETTINGS)

        try:
            seconds, units = measured(make, labels.nbytes)
            print(f"  {name:20s} {seconds:8.3f} s {units:6.2f} x labels")
        except ValueError as error:  # the unequal forms may leave a client empty
            print(f"  {name:20s} {error}")


def mnist_memory(data_dir: str) -> None:
    """Resident memory of MNIST, then with one batch taken by each of 1,000 clients."""

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    before = resident()
    data = load("mnist", data_dir=data_dir)
    loaded = resident()
    parts = partition_named("dirichlet", data, num_clients=1_000, seed=0, alpha=0.3)
    clients = [(data.train, part) for part in parts]  # what a client app holds
    for (x, y), part in clients:
        x[part[:20]], y[part[:20]]
    tensors = sum(t.nbytes for t in (*data.train, *data.test)) / 2**20
    print(f"MNIST: tensors {tensors:.0f} MiB, process grew {loaded - before:.0f} MiB by loading")
    print(f"and to {resident() - before:.0f} MiB with 1,000 clients")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", default="", metavar="FOLDER")
    arguments = parser.parse_args(argv)
    if arguments.mnist:
        mnist_memory(arguments.mnist)
    report(1_000, 60_000)
    report(100_000, 10_000_000)


if __name__ == "__main__":
    main()
