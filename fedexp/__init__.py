"""Federated learning on Flower with an adaptive server step size."""

__version__ = "0.1.0"

__all__ = ["__version__"]
