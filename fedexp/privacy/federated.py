"""What private rounds cost a client: epsilon after some rounds, and the noise for an epsilon.

The unit of privacy is a client: two cohorts are neighbours if one of them lacks a client that the
other has. Each client takes part in a round with the same probability, whoever else does (Poisson
sampling), and what the round releases is a sum over the clients plus Gaussian noise. The accounting
is that of ``dp-accounting`` (``fedexp[dp]``) by privacy loss distributions.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import import_module
from typing import Any

from fedexp.extras import missing

LEAST_MULTIPLIER = 0.3  # below it the accountant's tables grow without end
# Of privacy loss. The accountant rounds up: by less than 0.002 in epsilon for hundreds of rounds,
# but by 0.02 for 5,000 rounds of q = 0.01 and z = 10, of which each costs less than the interval.
_INTERVAL = 1e-3


def combined_multiplier(*multipliers: float) -> float:
    """``z = (Σ zₖ⁻²)^(-1/2)``: several Gaussian sums of the same clients as one.

    A sum of which a client moves by at most ``Sₖ``, plus ``N(0, (zₖ Sₖ)²)``, each divided by its
    ``zₖ Sₖ``: together a Gaussian vector of unit noise that a client moves by at most ``1/z``.

    Args:
        *multipliers: ``zₖ > 0``; infinite for a sum that is not released.

    Example:
        Noise of 2 on the updates and of 10 on their squared norms:

        >>> from fedexp.privacy import combined_multiplier
        >>> round(combined_multiplier(2.0, 10.0), 4)
        1.9612
    """
    return math.sqrt(1 / sum(z**-2 for z in multipliers))


def client_epsilon(
    noise_multiplier: float, sampling_rate: float, num_rounds: int, delta: float
) -> float:
    """``ε`` at ``delta`` of one client after so many rounds of the Poisson-sampled Gaussian.

    Args:
        noise_multiplier: ``z``, of all that a round releases together.
        sampling_rate: ``q``, in (0, 1], of each client in each round.
        num_rounds: that have been released.
        delta: ``δ``, in (0, 1); below 1 over the number of clients, if it is to mean something.

    Raises:
        ModuleNotFoundError: ``dp-accounting`` is not installed.
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.privacy import client_epsilon
        >>> round(client_epsilon(8.0, 0.1, 100, 1e-5), 2)
        0.45
    """
    _check("client_epsilon", sampling_rate, delta)
    if not noise_multiplier >= LEAST_MULTIPLIER:
        raise ValueError(
            f"client_epsilon(noise_multiplier={noise_multiplier}): must be at least "
            f"{LEAST_MULTIPLIER}; with less noise epsilon says little: at 0.3 one round with all "
            "clients costs 19. Use 1.0."
        )
    if num_rounds == 0 or math.isinf(noise_multiplier):  # nothing has been released
        return 0.0
    return _epsilon(float(noise_multiplier), float(sampling_rate), int(num_rounds), float(delta))


def multiplier_for(epsilon: float, sampling_rate: float, num_rounds: int, delta: float) -> float:
    """The least ``z`` with which so many rounds cost at most ``epsilon``; see ``client_epsilon``.

    Args:
        epsilon: ``ε``, above 0.
        sampling_rate: ``q``, in (0, 1], of each client in each round.
        num_rounds: that are to be released.
        delta: ``δ``, in (0, 1).

    Raises:
        ModuleNotFoundError: ``dp-accounting`` is not installed.
        ValueError: an argument is out of its range.

    Example:
        >>> from fedexp.privacy import client_epsilon, multiplier_for
        >>> z = multiplier_for(2.0, 1.0, 1, 1e-5)
        >>> 1.99 < client_epsilon(z, 1.0, 1, 1e-5) <= 2.0
        True
    """
    _check("multiplier_for", sampling_rate, delta)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"multiplier_for(epsilon={epsilon}): must be > 0. Use 2.0.")
    if client_epsilon(LEAST_MULTIPLIER, sampling_rate, num_rounds, delta) <= epsilon:
        return LEAST_MULTIPLIER
    high = 2 * LEAST_MULTIPLIER
    while client_epsilon(high, sampling_rate, num_rounds, delta) > epsilon:
        high *= 2
    low = high / 2
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if client_epsilon(middle, sampling_rate, num_rounds, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high  # which was found to cost no more


@lru_cache(maxsize=4096)
def _epsilon(z: float, q: float, num_rounds: int, delta: float) -> float:
    events, pld = _dp_accounting()
    accountant = pld.PLDAccountant(value_discretization_interval=_INTERVAL)
    accountant.compose(events.PoissonSampledDpEvent(q, events.GaussianDpEvent(z)), num_rounds)
    return float(accountant.get_epsilon(delta))


def _dp_accounting() -> tuple[Any, Any]:
    try:
        import_module("dp_accounting")
    except ModuleNotFoundError as error:
        raise missing("dp_accounting", "dp") from error
    return import_module("dp_accounting.dp_event"), import_module("dp_accounting.pld")


def _check(owner: str, sampling_rate: float, delta: float) -> None:
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"{owner}(sampling_rate={sampling_rate}): must be in (0, 1]. Use 0.1.")
    if not 0 < delta < 1:
        raise ValueError(f"{owner}(delta={delta}): must be in (0, 1). Use 1e-5.")
