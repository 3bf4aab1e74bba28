"""Whether a pair of schedules leads linear regression with noise to the minimum-norm solution.

Hanin & Sun 2021, arXiv:2010.11171. Each statement says what it rests on:

- *theorem*: the paper's, for noise ``sigma_t → 0`` and rates ``eta_t → 0``; at constant noise that
  of Robbins & Monro 1951. The paper's text was not at hand: the theorem is quoted from notes, which
  the recursions of this package agree with;
- *derived*: by algebra from the mean recursion
  ``E W ← E W (I - (2 eta_t/N)(X Xᵀ + N sigma_t² I)) + (2 eta_t/N) Y Xᵀ``;
- *measured*: seen in runs only.
"""

from __future__ import annotations

from fedexp.augmentation.findings import ScheduleCheck
from fedexp.augmentation.schedules import PowerLaw
from fedexp.augmentation.unseen import unseen_factor


def check_schedule(eta: PowerLaw, sigma: PowerLaw) -> ScheduleCheck:
    """Whether the conditions of Hanin & Sun hold for two power laws, and where the weights go.

    For random projections the same exponents hold with the dropped fraction ``1 - gamma_t`` in
    place of ``sigma_t²`` (theorem, quoted likewise). The factors and ridge coefficients
    given here are those of noise alone.

    Args:
        eta: ``eta_t``, the learning rate.
        sigma: ``sigma_t``, the standard deviation of the noise; its exponent is ``y/2``.

    Raises:
        ValueError: one of them is not a `PowerLaw`, or the learning rate is 0.

    Example:
        >>> from fedexp.augmentation import PowerLaw, check_schedule
        >>> print(check_schedule(PowerLaw(0.25, 0.6), PowerLaw(1.0, 0.15)))
        Guaranteed: the weights go to the minimum-norm solution (theorem)...
        >>> check_schedule(PowerLaw(0.25, 0.75), PowerLaw(0.5)).ridge
        0.25
    """
    for name, law in (("eta", eta), ("sigma", sigma)):
        if not isinstance(law, PowerLaw):
            raise ValueError(
                f"check_schedule({name}={law!r}): needs a PowerLaw; run others instead."
            )
    if eta.scale == 0:
        raise ValueError("check_schedule(eta=0): nothing is learned. Use a rate > 0.")
    x, y = eta.exponent, 2 * sigma.exponent
    # Rounded, so that 0.7 + 0.3 counts as 1 whatever its last bit.
    lasts = sigma.scale > 0 and round(x + y, 12) <= 1
    averages_out = sigma.scale == 0 or round(2 * x + y, 12) > 1
    factor = unseen_factor(eta, sigma)
    destination = _destination(x, y, lasts, factor)
    guaranteed = lasts and averages_out and factor < 1
    # On the line x + y = 1 the theorem names no rate.
    rate = min(y, x / 2) if guaranteed and y > 0 and round(x + y, 12) < 1 else None
    ridge = sigma.scale**2 if destination == "ridge" else None
    return ScheduleCheck(
        eta, sigma, lasts, averages_out, destination, ridge, factor, rate, guaranteed
    )


def schedule_report(
    x: float, y: float, eta: float = 1.0, sigma: float = 1.0, offset: float = 1.0
) -> str:
    """What `check_schedule` says of ``eta (t + offset)^-x`` and ``sigma² (t + offset)^-y``.

    Args:
        x: exponent of the learning rate, at least 0.
        y: exponent of the variance of the noise, at least 0.
        eta: the learning rate at ``t + offset = 1``.
        sigma: the standard deviation of the noise there.
        offset: greater than 0.

    Raises:
        ValueError: a value is not a number or lies outside its range.

    Example:
        >>> from fedexp.augmentation import schedule_report
        >>> print(schedule_report(0.75, 0.0))
        Guaranteed: the weights go to the ridge solution with coefficient 1 N...
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, int | float):
            raise ValueError(f"schedule_report({name}={value!r}): must be a number.")
    return str(check_schedule(PowerLaw(eta, x, offset), PowerLaw(sigma, y / 2, offset)))


def _destination(x: float, y: float, lasts: bool, factor: float) -> str:
    if not lasts or factor >= 1:
        return "depends on the start"
    return "minimum norm" if y > 0 else "ridge"
