"""Draws of code that is not ours: Flower's strategies use Python's and NumPy's own generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded(seed: int | None, server_round: int) -> Iterator[None]:
    """Python's and NumPy's own generators seeded for a round, and afterwards as they were."""
    if seed is None:
        yield
        return
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - others use it
    state = np.random.SeedSequence([seed, server_round]).generate_state(1)
    random.seed(int(state[0]))
    np.random.seed(state)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
