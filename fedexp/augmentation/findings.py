"""The result of a check of schedules, in numbers and in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from fedexp.augmentation.schedules import PowerLaw


@dataclass(frozen=True)
class ScheduleCheck:
    """What is known of a pair of power laws; ``str()`` of it is plain sentences.

    With ``eta_t = Θ(t^-x)`` and ``sigma_t² = Θ(t^-y)``:

    Attributes:
        eta: the learning rate ``eta_t``.
        sigma: the standard deviation ``sigma_t`` of the noise.
        noise_lasts: whether ``Σ eta_t sigma_t² = ∞``, that is ``x + y <= 1``.
        noise_averages_out: whether ``Σ eta_t² sigma_t² < ∞``, that is ``2x + y > 1``.
        destination: where the mean goes: ``minimum norm``, ``ridge``, or ``depends on the start``.
        ridge: ``sigma²`` if the destination is ridge, whose coefficient is then ``sigma² N``.
        unseen_factor: what is left of the mean of the component that is orthogonal to all examples,
            as a multiple of its start.
        rate: ``r`` such that ``t^(r - ε) ‖W_t - W_min‖ → 0`` for every ``ε > 0``, if one is
            guaranteed.
        guaranteed: whether the conditions of a theorem hold, so that ``W_t`` itself goes there.
            They are sufficient only: False does not mean that it goes elsewhere.

    Example:
        >>> from fedexp.augmentation import PowerLaw, check_schedule
        >>> check = check_schedule(PowerLaw(0.25, 0.6), PowerLaw(1.0, 0.3))
        >>> check.noise_lasts, check.noise_averages_out, check.destination
        (False, True, 'depends on the start')
        >>> round(check.unseen_factor, 3)
        0.048
    """

    eta: PowerLaw
    sigma: PowerLaw
    noise_lasts: bool
    noise_averages_out: bool
    destination: str
    ridge: float | None
    unseen_factor: float
    rate: float | None
    guaranteed: bool

    def __str__(self) -> str:
        return self.text

    @property
    def x(self) -> float:
        """The exponent of the learning rate."""
        return self.eta.exponent

    @property
    def y(self) -> float:
        """The exponent of the variance of the noise."""
        return 2 * self.sigma.exponent

    @property
    def text(self) -> str:
        """The verdict in plain sentences."""
        return _stays(self) if self.destination == "depends on the start" else _arrives(self)


def _arrives(check: ScheduleCheck) -> str:
    place = "the minimum-norm solution"
    if check.ridge is not None:
        place = f"the ridge solution with coefficient {check.ridge:g} N for N examples"
    if not check.guaranteed:
        text = (
            "Not guaranteed: the sum of eta^2 sigma^2 is infinite, and the theorem asks for a "
            "finite one. The condition is sufficient only. "
            f"The mean goes to {place} (derived){_if_small(check)}."
        )
        if check.x == check.y == 0:
            text += " The weights keep fluctuating around it (derived)."
        return text
    text = f"Guaranteed: the weights go to {place} (theorem)"
    if check.ridge is not None:
        return f"{text}."
    if check.rate is not None:
        return f"{text}, faster than t^-r for every r below {check.rate:.4g}."
    power = 2 * check.eta.scale * check.sigma.scale**2
    return (
        f"{text}. The theorem names no rate where x + y = 1: the mean of the component orthogonal "
        f"to all examples falls as t^-{power:.4g} there (derived)."
    )


def _stays(check: ScheduleCheck) -> str:
    factor = check.unseen_factor
    if check.noise_lasts:
        size = "grows without bound" if factor == inf else "does not shrink"
        return (
            "Not guaranteed: eta sigma^2 is constant and at least 1, so the mean of the component "
            f"orthogonal to all examples {size} (derived). Use a smaller rate."
        )
    why = "the sum of eta sigma^2 is finite, and the theorem asks for an infinite one"
    if check.sigma.scale == 0:
        why = "there is no noise"
    rest = f"goes to the minimum-norm solution (derived){_if_small(check)}"
    if round(check.x, 12) > 1:
        rest = "stops on its way, because the sum of eta is finite (derived)"
    return (
        f"Not guaranteed: {why}. The mean of the component orthogonal to all examples ends at "
        f"{factor:.4g} times its start (derived). The mean of the rest {rest}."
    )


def _if_small(check: ScheduleCheck) -> str:
    """A constant rate must suit the data; one that falls does so in the end."""
    return "" if check.x > 0 else ", if eta (lambda_max(X X^T) / N + sigma^2) stays below 1"
