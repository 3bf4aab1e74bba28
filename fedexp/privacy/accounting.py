"""What private steps cost, from ``dp-accounting``: for a plan, and for budgets that change.

A step draws every example with probability ``q`` (Poisson), and releases two things about the
examples drawn: the sum of their clipped gradients with Gaussian noise of multiplier ``s``, and the
outcome of a search that is ``eps_s``-differentially private. Both are composed before they are
amplified by sampling, which is sound where the sampled examples are the same; amplified one by one
they would seem cheaper than they are.

``dp-accounting`` does not sample such a pair. But whatever is ``eps_s``-private tells no more than
one Gaussian of mean 0 or ``mu = 2 Phi^-1(e^eps_s / (1 + e^eps_s))``, so the pair tells no more than
one Gaussian of multiplier ``(s^-2 + mu^2)^(-1/2)``, which it samples well. Neighbours differ by one
example more or less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from fedexp.extras import missing

_NORMAL = NormalDist()
_LEAST_MULTIPLIER = 0.1  # below it the accountant's tables take minutes
_ORDERS = (*range(2, 16), *range(16, 64, 4), *range(64, 257, 16))


@dataclass(frozen=True)
class PrivateStep:
    """One step: what it releases about the examples that it draws.

    Attributes:
        sampling_rate: ``q`` in (0, 1].
        noise_multiplier: ``s > 0``, the noise's deviation over the clipping norm.
        search_epsilon: ``eps_s``; 0 for no search.

    Raises:
        ValueError: one of them is out of its range.

    Example:
        >>> from fedexp.privacy.accounting import PrivateStep
        >>> PrivateStep(0.01, 2.0, search_epsilon=0.2).multiplier  # of one Gaussian for both
        1.788...
    """

    sampling_rate: float
    noise_multiplier: float
    search_epsilon: float = 0.0

    def __post_init__(self) -> None:
        sound = {
            "sampling_rate": 0 < self.sampling_rate <= 1,
            "noise_multiplier": 0 < self.noise_multiplier < math.inf,
            "search_epsilon": 0 <= self.search_epsilon < math.inf,
        }
        for name, holds in sound.items():
            if not holds:
                raise ValueError(f"PrivateStep({name}={getattr(self, name)}): is out of its range.")

    @classmethod
    def shared(cls, sampling_rate: float, multiplier: float, search_share: float) -> PrivateStep:
        """The step that costs as one Gaussian of ``multiplier``, divided between its two parts.

        Args:
            sampling_rate: ``q``.
            multiplier: of both parts together.
            search_share: of ``multiplier^-2`` that goes to the search, in [0, 1).

        Example:
            >>> from fedexp.privacy.accounting import PrivateStep
            >>> round(PrivateStep.shared(0.01, 2.0, search_share=0.2).multiplier, 9)
            2.0
        """
        half = _NORMAL.cdf(math.sqrt(search_share) / (2 * multiplier))
        spread = multiplier / math.sqrt(1 - search_share)
        return cls(sampling_rate, spread, math.log(half / (1 - half)))

    @property
    def multiplier(self) -> float:
        """The noise multiplier of the one Gaussian that tells no less than the whole step."""
        information = self.noise_multiplier**-2 + dominating_mean(self.search_epsilon) ** 2
        return 1 / math.sqrt(information)

    def rdp(self, order: int) -> float:
        """The Renyi divergence of a whole order ``a >= 2``, after sampling.

        ``log(sum_j C(a, j) (1 - q)^(a-j) q^j e^((j-1) (eG(j) + eR(j)))) / (a - 1)`` with
        ``eG(j) = j / (2 s^2)`` for the Gaussian and ``eR(j) = log((e^(j eps_s) + e^((1-j) eps_s))
        / (1 + e^eps_s)) / (j - 1)`` for a coin that shows its side with the odds ``e^eps_s``, which
        tells no less than the search. Mironov, Talwar & Zhang 2019, arXiv:1908.10530, sec. 3.3.

        Example:
            >>> from fedexp.privacy.accounting import PrivateStep
            >>> PrivateStep(0.01, 2.0, search_epsilon=0.2).rdp(2)
            3.355...e-05
        """
        q, s = self.sampling_rate, self.noise_multiplier
        terms = [
            math.lgamma(order + 1) - math.lgamma(j + 1) - math.lgamma(order - j + 1)
            + _times_log(order - j, 1 - q) + _times_log(j, q)
            + j * (j - 1) / (2 * s**2) + _coin(self.search_epsilon, j)
            for j in range(order + 1)
        ]  # fmt: skip
        top = max(terms)
        return max(0.0, top + math.log(math.fsum(math.exp(x - top) for x in terms))) / (order - 1)


def dominating_mean(epsilon: float) -> float:
    """``mu`` of the Gaussian that tells no less than any ``epsilon``-private mechanism.

    Example:
        >>> from fedexp.privacy.accounting import dominating_mean
        >>> dominating_mean(0.2)
        0.25048...
    """
    return -2 * _NORMAL.inv_cdf(1 / (1 + math.exp(epsilon)))


def _coin(epsilon: float, j: int) -> float:
    """``(j - 1) eR(j)``; 0 for ``j`` of 0 and 1."""
    high, low = j * epsilon, (1 - j) * epsilon
    top = max(high, low)
    both = top + math.log(math.exp(high - top) + math.exp(low - top))
    return both - epsilon - math.log1p(math.exp(-epsilon))


def _times_log(count: int, x: float) -> float:
    if not count:
        return 0.0
    return count * math.log(x) if x else -math.inf


def epsilon_of(step: PrivateStep, num_steps: int, delta: float, grid: float = 1e-4) -> float:
    """``epsilon`` of ``num_steps`` such steps at ``delta``, by their privacy loss distribution.

    It holds for plans that were fixed before the first step.

    Args:
        step: each of them.
        num_steps: ``T``; 0 costs nothing.
        delta: in (0, 1).
        grid: of the privacy losses; the result is an upper bound on every grid.

    Raises:
        ModuleNotFoundError: ``dp-accounting`` is not installed.

    Example:
        >>> from fedexp.privacy.accounting import PrivateStep, epsilon_of
        >>> round(epsilon_of(PrivateStep(256 / 32561, 4.0, 2 / 20), 500, 1e-5), 3)
        0.164
    """
    if not num_steps:
        return 0.0
    accountant = _pld(grid)
    accountant.compose(_event(step.sampling_rate, step.multiplier), num_steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def planned_multiplier(epsilon: float, delta: float, sampling_rate: float, num_steps: int) -> float:
    """The least noise multiplier at which ``num_steps`` steps cost at most ``epsilon``.

    It is found to a thousandth, on the safe side, by ``dp-accounting``'s own search. Where even 0.1
    is more than enough, it is a number below that.

    Raises:
        ModuleNotFoundError: ``dp-accounting`` is not installed.
        ValueError: a number is out of its range.

    Example:
        >>> from fedexp.privacy.accounting import planned_multiplier
        >>> round(planned_multiplier(0.8, 1e-5, 256 / 32561, 1000), 2)
        1.38
    """
    dp, grid = _dp_accounting(), 1e-4 * max(1.0, 2 * epsilon)
    # The loss distribution of too little noise takes minutes; Renyi's bound says where to look.
    _, enough = PrivacyFilter.planned(epsilon, delta, sampling_rate, num_steps, 0.0)

    def is_enough(multiplier: float) -> bool:
        step = PrivateStep(sampling_rate, multiplier)
        return epsilon_of(step, num_steps, delta, grid) <= epsilon

    low, high = 0.8 * enough, 1.05 * enough
    while is_enough(low):  # the bound is far off for few steps and rare examples
        if low < _LEAST_MULTIPLIER:
            return low
        low, high = 0.8 * low, low
    try:
        found = dp.calibrate_dp_mechanism(
            lambda: _pld(grid),
            lambda multiplier: dp.SelfComposedDpEvent(_event(sampling_rate, multiplier), num_steps),
            epsilon,
            delta,
            bracket_interval=dp.ExplicitBracketInterval(low, high),
            tol=1e-3,
        )
    except ValueError:  # the distribution's rounding hides that Renyi's bound proves it enough
        return high
    return float(found)


@dataclass(frozen=True)
class PrivacyFilter:
    """Stops before a budget is spent, where what a step costs depends on the steps before.

    One Renyi order is fixed before the first step; steps go on while the sum of their divergences
    of that order stays within ``bound``. Feldman & Zrnic 2021, arXiv:2008.11193, th. 4.3. The sum
    is kept by the caller.

    Attributes:
        epsilon: of the whole budget.
        delta: of the whole budget.
        order: ``a``, a whole number of at least 2.

    Example:
        >>> from fedexp.privacy.accounting import PrivacyFilter
        >>> whole = PrivacyFilter(epsilon=1.0, delta=1e-5, order=32)
        >>> whole.admits(0.0, 0.1), whole.admits(0.7, 0.1), round(whole.epsilon_at(whole.bound), 9)
        (True, False, 1.0)
    """

    epsilon: float
    delta: float
    order: int

    @classmethod
    @lru_cache(maxsize=1024)
    def planned(
        cls, epsilon: float, delta: float, sampling_rate: float, num_steps: int, share: float
    ) -> tuple[PrivacyFilter, float]:
        """The order, and the multiplier at which ``num_steps`` equal steps use the budget up.

        Of all orders the one that needs the least noise.

        Args:
            epsilon: of the budget.
            delta: of the budget.
            sampling_rate: ``q``.
            num_steps: that fit if the budget of a step never grows.
            share: of a step's budget that goes to its search.

        Raises:
            ValueError: no order fits, or a number is out of its range.
        """
        _check(epsilon, delta, num_steps)
        filters = cls.possible(epsilon, delta)

        def fits(multiplier: float, filter_: PrivacyFilter) -> bool:
            step = PrivateStep.shared(sampling_rate, multiplier, share)
            return num_steps * step.rdp(filter_.order) <= filter_.bound

        found = _least(lambda multiplier: any(fits(multiplier, x) for x in filters), 1e-4)
        return next(x for x in filters if fits(found, x)), found

    @classmethod
    @lru_cache(maxsize=1024)
    def possible(cls, epsilon: float, delta: float) -> list[PrivacyFilter]:
        """The filters that let anything pass, by their orders.

        Raises:
            ModuleNotFoundError: ``dp-accounting`` is not installed.
            ValueError: there are none.
        """
        filters = [x for x in (cls(epsilon, delta, order) for order in _ORDERS) if x.bound > 0]
        if not filters:
            raise ValueError(
                f"PrivacyFilter(epsilon={epsilon}, delta={delta}): too little for any Renyi order. "
                "Give more."
            )
        return filters

    @property
    def bound(self) -> float:
        """The greatest sum of divergences that stays within ``epsilon`` at ``delta``."""
        large = 100.0  # the conversion adds to a divergence, if that is not tiny, a constant
        return self.epsilon - (_converted(self.order, large, self.delta) - large)

    def admits(self, spent: float, cost: float) -> bool:
        """Whether a step of divergence ``cost`` may follow steps that sum to ``spent``."""
        return spent + cost <= self.bound

    def epsilon_at(self, spent: float) -> float:
        """``epsilon`` at ``delta`` of steps whose divergences sum to ``spent``."""
        return _converted(self.order, spent, self.delta) if spent else 0.0


@lru_cache(maxsize=4096)
def multiplier_of(cost: float, order: int, sampling_rate: float, search_share: float) -> float:
    """The least multiplier at which a step's divergence of ``order`` is at most ``cost``.

    No formula inverts the divergence, so it is found by bisection; below 0.05 nothing is tried.

    Args:
        cost: positive.
        order: as of ``PrivateStep.rdp``.
        sampling_rate: as of ``PrivateStep.shared``.
        search_share: as of ``PrivateStep.shared``.

    Example:
        Where sampling hides less, four times the cost buys little: noise that is 2 % less.

        >>> from fedexp.privacy.accounting import PrivateStep, multiplier_of
        >>> cost = PrivateStep.shared(256 / 32561, 1.58, 0.2).rdp(28)
        >>> round(multiplier_of(cost, 28, 256 / 32561, 0.2), 6)
        1.58
        >>> round(multiplier_of(4 * cost, 28, 256 / 32561, 0.2), 3)
        1.547
    """
    return _least(
        lambda x: PrivateStep.shared(sampling_rate, x, search_share).rdp(order) <= cost, 1e-8
    )


def _least(is_enough: Callable[[float], bool], tolerance: float) -> float:
    """The least multiplier that is enough, to a relative tolerance on the safe side."""
    high = 1.0
    while not is_enough(high):
        high *= 2
    low = high / 2 if high > 1 else 0.05
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _converted(order: int, divergence: float, delta: float) -> float:
    _dp_accounting()
    from dp_accounting.rdp import rdp_privacy_accountant

    epsilon, _ = rdp_privacy_accountant.compute_epsilon([order], [divergence], delta)
    return float(epsilon)


def _check(epsilon: float, delta: float, num_steps: int) -> None:
    if not (0 < epsilon < math.inf and 0 < delta < 1 and num_steps >= 1):
        raise ValueError(
            f"privacy(epsilon={epsilon}, delta={delta}, steps={num_steps}): epsilon must be "
            "positive, delta between 0 and 1, steps at least 1."
        )


def _event(sampling_rate: float, multiplier: float) -> Any:
    dp = _dp_accounting()
    return dp.PoissonSampledDpEvent(sampling_rate, dp.GaussianDpEvent(multiplier))


def _pld(grid: float) -> Any:
    _dp_accounting()
    from dp_accounting import pld

    return pld.PLDAccountant(value_discretization_interval=grid)


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ModuleNotFoundError:
        raise missing("dp_accounting", "dp") from None
    return dp_accounting
