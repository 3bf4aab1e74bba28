"""Simulation: Flower's Grid on virtual clients."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.simulation.ray.grid import RayGrid
    from fedexp.simulation.serial import SerialGrid
else:  # imported when asked for: the first imports Ray, the second the engine
    __getattr__, __dir__ = _later(
        __name__,
        "simulation",
        RayGrid="fedexp.simulation.ray.grid",
        SerialGrid="fedexp.simulation.serial",
    )

__all__ = ["RayGrid", "SerialGrid"]
