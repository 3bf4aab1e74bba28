"""Handwritten digits with NumPy and the older API of Flower."""
