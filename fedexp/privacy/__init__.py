"""Differential privacy: noise, private mechanisms, and what they cost; needs NumPy alone.

What a mechanism costs is never worked out here but by ``dp-accounting``: ``fedexp[dp]``.
"""

from fedexp.privacy.federated import client_epsilon, combined_multiplier, multiplier_for
from fedexp.privacy.noise import Noise, SeededNoise, SystemNoise, noise_of

__all__ = [
    "Noise",
    "SeededNoise",
    "SystemNoise",
    "client_epsilon",
    "combined_multiplier",
    "multiplier_for",
    "noise_of",
]
