"""A draw of nodes that a seed fixes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from logging import INFO
from zlib import crc32

import numpy as np
from flwr.common.logger import log
from flwr.serverapp import Grid


def wait_for_nodes(grid: Grid, minimum: int) -> Sequence[int]:
    """Ids of the connected nodes in ascending order, once there are ``minimum`` of them."""
    while len(nodes := _ascending(grid)) < minimum:
        log(INFO, "Waiting for nodes to connect: %d of %d.", len(nodes), minimum)
        time.sleep(1)
    return nodes


def _ascending(grid: Grid) -> Sequence[int]:
    ids = grid.get_node_ids()
    return ids if isinstance(ids, range) else sorted(ids)  # a range costs nothing per node


def sample(nodes: Sequence[int], size: int, *, seed: int, server_round: int, use: str) -> list[int]:
    """Draw ``size`` of ``nodes`` uniformly without replacement, in their order.

    The draw is a pure function of its arguments; ``use`` keeps training and evaluation apart.
    """
    rng = np.random.default_rng([seed, server_round, crc32(use.encode())])
    return [nodes[i] for i in sorted(rng.choice(len(nodes), size, replace=False).tolist())]
