"""Benchmarks: `python -m benchmarks` runs the quick form of all of them."""
