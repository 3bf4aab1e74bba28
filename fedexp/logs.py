"""Flower's log, turned down for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def level(threshold: int) -> Iterator[None]:
    """Show only messages of Flower's logger at or above ``threshold``."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(max(before, threshold))
    try:
        yield
    finally:
        logger.setLevel(before)
