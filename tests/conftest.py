"""Every test may make Flower messages and read what was logged."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from fedexp.simulation.grid import identify

settings.register_profile("tests", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("tests")
identify()
os.environ.pop("COLUMNS", None)  # what runs the tests side by side sets a width


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Lines of Flower's logger, which does not reach pytest's own capture."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
