"""Simulation: Flower's Grid on virtual clients, and runs recorded on disk."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later
from fedexp.simulation.serial import SerialGrid

if TYPE_CHECKING:
    from fedexp.simulation.ray.grid import RayGrid
else:  # so that Ray is imported where it is used alone
    __getattr__, __dir__ = _later(
        __name__,
        "simulation",
        RayGrid="fedexp.simulation.ray.grid",
    )

__all__ = ["RayGrid", "SerialGrid"]
