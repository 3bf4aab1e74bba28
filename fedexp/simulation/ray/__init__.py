"""Flower's Grid on Ray's workers: all that imports Ray."""

__all__: list[str] = []
