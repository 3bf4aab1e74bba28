"""What noise leaves of the component of the weights that no example sees."""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from fedexp.augmentation.schedules import PowerLaw, Schedule

Vector = NDArray[np.float64]


def unseen_factor(eta: Schedule, sigma: Schedule, num_steps: int | None = None) -> float:
    """``Π (1 - 2 eta_t sigma_t²)``, by which noise multiplies the mean of the unseen component.

    The component is orthogonal to all examples, see `unseen_component`. The product is exact
    (derived). Its limit is 0 if ``Σ eta_t sigma_t² = ∞``, and otherwise some of the start remains
    for ever. The limit of two power laws takes the first 10⁵ factors as they are, or more, and the
    rest by the Euler-Maclaurin formula, to about 10 digits for offsets below 10⁵.

    Args:
        eta: ``eta_t``, the learning rate.
        sigma: ``sigma_t``, the standard deviation of the noise.
        num_steps: the number of factors; None for the limit, which needs two power laws.

    Returns:
        The product; ``inf`` for a limit that does not exist because the factors' size is above 1.

    Raises:
        ValueError: the limit is asked for schedules that are not power laws, or ``eta sigma²`` is
            huge.

    Example:
        >>> from fedexp.augmentation import PowerLaw, constant, unseen_factor
        >>> unseen_factor(constant(0.25), constant(1.0), num_steps=3)
        0.125
        >>> unseen_factor(constant(0.25), constant(1.0))
        0.0
        >>> round(unseen_factor(PowerLaw(0.5, 1.0, offset=2.0), PowerLaw(1.0, 0.5, offset=2.0)), 9)
        0.5
    """
    if num_steps is not None:
        return float(np.prod([1 - 2 * eta(t) * sigma(t) ** 2 for t in range(num_steps)]))
    if not (isinstance(eta, PowerLaw) and isinstance(sigma, PowerLaw)):
        raise ValueError("unseen_factor(num_steps=None): needs power laws. Give a number of steps.")
    variance = sigma.squared
    # Factors are 1 - z_t with z_t ~ first · t^-power: their product is above 0 only if Σ z_t is
    # finite, that is for a power above 1.
    power = round(eta.exponent + variance.exponent, 12)
    first = 2 * eta.scale * variance.scale
    if first == 0:
        return 1.0
    if power == 0:
        size = abs(1 - first)
        return 0.0 if size < 1 else 1.0 if size == 1 else inf
    if power <= 1:
        return 0.0
    if (settled := (10 * first) ** (1 / power)) > 1e7:
        raise ValueError(f"unseen_factor: 2 eta sigma^2 starts at {first:g}. Use smaller values.")
    exact = max(100_000, int(settled))  # the tail's formula needs factors near 1
    factors = 1 - first * _decay(np.arange(exact, dtype=np.float64), eta, variance)
    if not factors.all():
        return 0.0
    with np.errstate(over="ignore"):
        size = np.exp(np.log(np.abs(factors)).sum() + _log_tail(exact, first, eta, variance))
    return float(np.prod(np.sign(factors)) * size)


def _decay(t: Vector, eta: PowerLaw, variance: PowerLaw) -> Vector:
    return (t + eta.offset) ** -eta.exponent * (t + variance.offset) ** -variance.exponent


def _log_tail(start: int, first: float, eta: PowerLaw, variance: PowerLaw) -> float:
    """``Σ_{t >= T} log(1 - z_t)`` with ``z_t = first · decay``: an integral and a correction.

    With ``t + offset = (T + offset) exp(v / (p - 1))`` and ``p`` the sum of the exponents, the
    integrand is ``exp(-v)`` times a function that is nearly constant. That suits Gauss-Laguerre
    quadrature. All is computed by logarithms, because ``t`` overflows for ``p`` near 1.
    """
    excess = eta.exponent + variance.exponent - 1
    nodes, weights = np.polynomial.laguerre.laggauss(40)
    offset = max(eta.offset, variance.offset)
    log_t = np.log(start + offset) + nodes / excess
    log_z = np.log(first) - sum(
        law.exponent * (log_t + np.log1p((law.offset - offset) * np.exp(-log_t)))
        for law in (eta, variance)
    )
    z = np.exp(log_z)
    ratio = np.where(z > 1e-12, np.log1p(-z) / np.maximum(z, 1e-300), -1.0)  # log(1 - z) / z
    integral = (weights * ratio * np.exp(log_z + log_t + nodes)).sum() / excess
    end = first * float(_decay(np.array(float(start)), eta, variance))
    return float(integral + np.log1p(-end) / 2)
