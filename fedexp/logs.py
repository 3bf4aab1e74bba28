"""Flower's log, turned down for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fedexp.terminal import is_live


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


def without_escape_codes() -> None:
    """Let Flower's logger write colours only where they are shown; by itself it always does."""
    from flwr.common.logger import ConsoleHandler

    for handler in logging.getLogger("flwr").handlers:
        if isinstance(handler, ConsoleHandler):
            handler.colored = handler.colored and is_live(handler.stream)
