"""Where the noise of private runs comes from: the operating system, unless a test fixes it."""

from __future__ import annotations

import os
import warnings
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Noise(Protocol):
    """A source of independent draws.

    Example:
        A source that hides nothing:

        >>> import numpy as np
        >>> from fedexp.privacy import Noise
        >>> from fedexp.privacy.mechanisms import noisy_sum
        >>> class Silence(Noise):
        ...     def normal(self, size):
        ...         return np.zeros(size)
        >>> noisy_sum(np.ones(2), 1.0, 4.0, Silence())
        array([1., 1.])
    """

    def uniform(self, size: int) -> Floats:
        """``size`` draws, uniform in (0, 1): neither end is ever drawn."""

    def normal(self, size: int) -> Floats:
        """``size`` standard normal draws."""

    def laplace(self, size: int) -> Floats:
        """``size`` draws of density ``exp(-|x|) / 2``."""


class SystemNoise:
    """Noise that nobody can predict, from the system's generator (``os.urandom``).

    A float64 normal is made from two uniforms of 53 bits (Box and Muller 1958). As with every
    floating-point sampler, the last bits of a draw could tell something about what it hides
    (Mironov 2012); sums of many values and noise in float32 or wider keep that small, not nil.

    Example:
        >>> from fedexp.privacy import SystemNoise
        >>> draws = SystemNoise().normal(1000)
        >>> draws.shape, bool(abs(draws.mean()) < 0.3)
        ((1000,), True)
    """

    def uniform(self, size: int) -> Floats:
        """``size`` draws, uniform in (0, 1)."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(11)
        # The middle of one of 2^53 cells; where that rounds to 1, the largest number below it.
        middles: Floats = np.asarray((bits + 0.5) * 2.0**-53, dtype=np.float64)
        return np.minimum(middles, 1 - 2.0**-53, dtype=np.float64)

    def normal(self, size: int) -> Floats:
        """``size`` standard normal draws."""
        half = (size + 1) // 2
        radius, angle = np.sqrt(-2 * np.log(self.uniform(half))), 2 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]

    def laplace(self, size: int) -> Floats:
        """``size`` draws of density ``exp(-|x|) / 2``: the difference of two exponentials."""
        return np.log(self.uniform(size)) - np.log(self.uniform(size))


class SeededNoise:
    """Noise that a seed fixes, for tests and figures: whoever knows the seed can take it off.

    Args:
        key: the seed, and what else tells this source from others.

    Example:
        >>> from fedexp.privacy import SeededNoise
        >>> bool((SeededNoise(1, 2).normal(3) == SeededNoise(1, 2).normal(3)).all())
        True
    """

    def __init__(self, *key: int) -> None:
        self._rng = np.random.default_rng(key)

    def uniform(self, size: int) -> Floats:
        """``size`` draws, uniform in (0, 1)."""
        return np.maximum(self._rng.random(size), 2.0**-54)

    def normal(self, size: int) -> Floats:
        """``size`` standard normal draws."""
        return self._rng.standard_normal(size)

    def laplace(self, size: int) -> Floats:
        """``size`` draws of density ``exp(-|x|) / 2``."""
        return self._rng.laplace(size=size)


def noise_of(seed: int | None, *key: int) -> Noise:
    """The system's noise; that of a seed only when asked, and with a warning.

    Args:
        seed: None for the system's.
        key: tells one source of that seed from another, e.g. the client and the round.

    Example:
        >>> from fedexp.privacy import noise_of
        >>> type(noise_of(None)).__name__
        'SystemNoise'
    """
    if seed is None:
        return SystemNoise()
    warnings.warn(
        f"The noise is fixed by the seed {seed}: whoever knows it can take the noise off. "
        "Use this for tests and figures alone.",
        stacklevel=2,
    )
    return SeededNoise(seed, *key)
