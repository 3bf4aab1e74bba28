"""Private mechanisms: clipped sums with noise, and the first of many answers above a threshold.

Neighbours differ by one example more or less, so one example moves a sum of clipped rows by at most
the clipping norm.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedexp.privacy.noise import Noise

Floats = NDArray[np.float64]


def clipped(rows: Floats, max_norm: float) -> Floats:
    """Every row, scaled down to the norm ``max_norm``; a row that is not finite becomes zero.

    Args:
        rows: ``[num_examples, size]``.
        max_norm: ``C``.

    Example:
        >>> import numpy as np
        >>> from fedexp.privacy.mechanisms import clipped
        >>> clipped(np.array([[3.0, 4.0], [0.3, 0.4], [np.inf, 0.0]]), 1.0)
        array([[0.6, 0.8],
               [0.3, 0.4],
               [0. , 0. ]])
    """
    finite = np.isfinite(rows).all(axis=1, keepdims=True)
    rows = np.where(finite, rows, 0.0)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=1e-300)  # squares of it may overflow
    norms = largest * np.linalg.norm(rows / largest, axis=1, keepdims=True)
    return np.asarray(rows * np.minimum(1.0, max_norm / np.maximum(norms, 1e-300)))


def noisy_sum(total: Floats, max_norm: float, noise_multiplier: float, noise: Noise) -> Floats:
    """A sum of rows of norm at most ``C``, with Gaussian noise: ``total + s C N(0, I)``.

    Args:
        total: ``[size]``.
        max_norm: ``C``.
        noise_multiplier: ``s``.
        noise: where it comes from.

    Example:
        >>> import numpy as np
        >>> from fedexp.privacy import SystemNoise
        >>> from fedexp.privacy.mechanisms import noisy_sum
        >>> noisy_sum(np.ones(2), 1.0, 0.0, SystemNoise())
        array([1., 1.])
    """
    return np.asarray(total + noise_multiplier * max_norm * noise.normal(len(total)))


def first_above(answers: Iterable[float], scale: float, noise: Noise) -> int | None:
    """Which answer is the first above zero, with noise; None if none is.

    The sparse vector technique with cut-off 1 (Dwork & Roth 2014, alg. 1): one threshold ``Lap(b)``
    for all answers, ``Lap(2 b)`` on each, and an end at the first success. It is ``2/b``-private,
    however many answers fail. One that is asked for is accepted at ``x`` with probability ``1 -
    (4 e^(-x / 2b) - e^(-x / b)) / 6`` for ``x >= 0``.

    Args:
        answers: one example more or less changes each by at most 1. They are asked one by one.
        scale: ``b``; 0 for no noise.
        noise: where it comes from.

    Example:
        >>> from fedexp.privacy import SystemNoise
        >>> from fedexp.privacy.mechanisms import first_above
        >>> first_above([-3.0, -1.0, 2.0, 5.0], scale=0.0, noise=SystemNoise())
        2
    """
    threshold = scale * float(noise.laplace(1)[0])
    for index, answer in enumerate(answers):
        if answer + 2 * scale * float(noise.laplace(1)[0]) >= threshold:
            return index
    return None
