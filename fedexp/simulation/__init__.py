"""Simulation: Flower's Grid on virtual clients, and runs recorded on disk."""

from fedexp.extras import later as _later
from fedexp.simulation.serial import SerialGrid

__getattr__ = _later(__name__, RayGrid="fedexp.simulation.ray.grid")  # starts with importing Ray
__all__ = ["RayGrid", "SerialGrid"]
