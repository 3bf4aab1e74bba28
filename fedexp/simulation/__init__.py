"""Simulation: Flower's Grid on virtual clients."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.simulation.serial import SerialGrid

# Imported when asked for: the first imports the engine, the second Ray as well.
__getattr__ = _later(
    __name__, SerialGrid="fedexp.simulation.serial", RayGrid="fedexp.simulation.ray.grid"
)
__all__ = ["RayGrid", "SerialGrid"]
