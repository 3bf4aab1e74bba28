"""The process that `benchmarks.aggregation` measures: one aggregation per message."""

import sys
from multiprocessing.connection import Client

from benchmarks.aggregation import aggregate

if __name__ == "__main__":
    system, address = sys.argv[1:]
    with Client(address) as link:
        while count := link.recv():
            link.send(aggregate(system, count))
