"""Simulation: Flower's Grid on virtual clients, and runs recorded on disk."""

from fedexp.simulation.serial import SerialGrid

__all__ = ["SerialGrid"]
