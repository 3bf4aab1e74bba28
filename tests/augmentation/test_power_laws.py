"""Schedules and what is known of where they lead."""

import math

import pytest

from fedexp.augmentation import (
    PowerLaw,
    check_schedule,
    constant,
    schedule_report,
    unseen_factor,
)


def laws(x, y, eta=0.25, sigma=1.0, offset=1.0):
    return PowerLaw(eta, x, offset), PowerLaw(sigma, y / 2, offset)


def check(x, y, **more):
    return check_schedule(*laws(x, y, **more))


def test_a_power_law_is_its_formula_and_its_square_is_the_square():
    law = PowerLaw(3.0, 0.7, offset=2.5)
    for t in (0, 1, 10, 12345):
        assert law(t) == pytest.approx(3.0 / (t + 2.5) ** 0.7, rel=1e-14)
        assert law.squared(t) == pytest.approx(law(t) ** 2, rel=1e-14)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"exponent": "a third"}, "PowerLaw(exponent='a third'): must be a finite number."),
        ({"exponent": math.nan}, "PowerLaw(exponent=nan): must be a finite number."),
        ({"exponent": None}, "PowerLaw(exponent=None): must be a finite number."),
        ({"exponent": True}, "PowerLaw(exponent=True): must be a finite number."),
        ({"scale": -0.1}, "PowerLaw(scale=-0.1): must be >= 0."),
        ({"exponent": -1}, "PowerLaw(exponent=-1): must be >= 0."),
        ({"offset": 0}, "PowerLaw(offset=0): must be > 0. Step 0 has no power otherwise."),
    ],
)
def test_a_power_law_of_nonsense_is_refused_in_one_line(settings, line):
    with pytest.raises(ValueError, match="PowerLaw") as error:
        PowerLaw(**settings)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("x", "y", "lasts", "averages_out", "rate"),
    [
        (0.6, 0.3, True, True, 0.3),
        (0.7, 0.25, True, True, 0.25),
        (0.5, 0.45, True, True, 0.25),
        (2 / 3, 1 / 3, True, True, None),  # on the line x + y = 1, where no rate is named
        (0.7, 0.3, True, True, None),
        (0.2, 0.5, True, False, None),
        (0.25, 0.5, True, False, None),  # 2x + y = 1: the sum is the harmonic one
        (0.6, 0.6, False, True, None),
        (1.5, 0.2, False, True, None),
    ],
)
def test_conditions_and_rate_are_those_of_the_theorem(x, y, lasts, averages_out, rate):
    found = check(x, y)
    assert (found.noise_lasts, found.noise_averages_out) == (lasts, averages_out)
    assert found.guaranteed == (lasts and averages_out)
    assert found.rate == (None if rate is None else pytest.approx(rate))
    assert found.destination == ("minimum norm" if lasts else "depends on the start")
    assert (found.x, found.y) == (x, y)


def test_a_sufficient_condition_that_fails_is_no_divergence():
    for x, y in ((0.2, 0.5), (0.0, 0.5), (0.3, 0.0), (0.0, 0.0), (0.6, 0.6), (2.0, 1.0)):
        text = str(check(x, y))
        assert text.startswith("Not guaranteed: ")
        assert "diverge" not in text
        assert "\n" not in text


@pytest.mark.parametrize(("x", "guaranteed"), [(0.75, True), (1.0, True), (0.5, False), (0, False)])
def test_constant_noise_leads_to_ridge(x, guaranteed):
    found = check(x, 0, sigma=0.5)
    assert (found.destination, found.ridge) == ("ridge", 0.25)
    assert found.guaranteed == guaranteed
    assert "ridge solution with coefficient 0.25 N" in found.text
    assert ("fluctuating" in found.text) == (x == 0)


def test_each_case_is_told_in_its_own_words():
    assert "faster than t^-r for every r below 0.3" in check(0.6, 0.3).text
    assert "falls as t^-0.5 there" in check(2 / 3, 1 / 3).text
    assert "orthogonal to all examples ends at 0.04772 times its start" in check(0.6, 0.6).text
    assert "stops on its way" in check(1.5, 0.6).text
    assert "there is no noise" in check(0.5, 0, sigma=0).text
    assert "ends at 1 times" in check(0.5, 0, sigma=0).text
    assert "lambda_max" in check(0, 0.5).text
    assert "grows without bound" in check(0, 0, eta=2.0).text
    assert "does not shrink" in check(0, 0, eta=1.0).text
    assert schedule_report(0.6, 0.3) == check(0.6, 0.3, eta=1.0).text


@pytest.mark.parametrize("offset", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("first", [0.3, 0.9])
def test_the_unseen_limit_is_that_of_a_gamma_function(offset, first):
    """``Π (1 - c/(t + o)²) = Γ(o)² / (Γ(o - √c) Γ(o + √c))``."""
    root = math.sqrt(first)
    expected = math.gamma(offset) ** 2 / (math.gamma(offset - root) * math.gamma(offset + root))
    found = unseen_factor(*laws(1.2, 0.8, eta=first / 2, offset=offset))
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_limit_of_fourth_powers_with_a_negative_factor():
    c = 1.5  # Π (1 - c⁴/t⁴) is the product of Π (1 - c²/t²) and Π (1 + c²/t²)
    expected = math.sin(math.pi * c) * math.sinh(math.pi * c) / (math.pi * c) ** 2
    found = unseen_factor(*laws(3.0, 1.0, eta=c**4 / 2))
    assert found == pytest.approx(expected, rel=1e-10)
    assert found < 0


def test_a_slow_limit_is_where_the_long_product_and_its_integral_end():
    eta, sigma = laws(0.6, 0.6)
    n = 4000
    finite = unseen_factor(eta, sigma, num_steps=n)
    # The factors left out, by the midpoint rule of the first two powers of their logarithm.
    tail = -0.5 * (n + 0.5) ** -0.2 / 0.2 - 0.125 * (n + 0.5) ** -1.4 / 1.4
    assert unseen_factor(eta, sigma) == pytest.approx(finite * math.exp(tail), rel=1e-9)


def test_the_limit_joins_its_cases():
    assert unseen_factor(*laws(0.5, 0.5)) == 0.0
    assert unseen_factor(*laws(0.5, 0.51)) < 1e-10
    assert unseen_factor(*laws(0.5, 0.5 + 1e-11)) == 0.0
    assert unseen_factor(*laws(1.0, 1.0, eta=0.5)) == 0.0  # its first factor is 0
    assert unseen_factor(constant(0.25), constant(0.0)) == 1.0
    assert unseen_factor(PowerLaw(0.5, 1.0, 3.0), PowerLaw(1.0, 0.5, 3.0)) == pytest.approx(2 / 3)
    mixed = unseen_factor(PowerLaw(0.5, 1.0, 1.0), PowerLaw(1.0, 0.5, 3.0), num_steps=200_000)
    limit = unseen_factor(PowerLaw(0.5, 1.0, 1.0), PowerLaw(1.0, 0.5, 3.0))
    assert limit == pytest.approx(mixed * (1 - 1 / 200_000), rel=1e-9)


def test_any_callable_is_a_schedule_for_a_number_of_steps():
    assert unseen_factor(lambda t: 0.1 * t, lambda t: 1.0, num_steps=4) == pytest.approx(
        1.0 * 0.8 * 0.6 * 0.4
    )


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: check_schedule(lambda t: 1.0, constant(1)), "needs a PowerLaw"),
        (lambda: check_schedule(constant(0), constant(1)), "nothing is learned"),
        (lambda: unseen_factor(lambda t: 1.0, constant(1)), "needs power laws"),
        (lambda: unseen_factor(*laws(1, 1, eta=1e20)), "Use smaller values"),
        (lambda: schedule_report("x", 0.3), "x='x'"),
        (lambda: schedule_report(0.3, "y"), "y='y'"),
        (lambda: schedule_report(-1, 0.3), "exponent=-1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call, line):
    with pytest.raises(ValueError, match=line) as error:
        call()
    assert "\n" not in str(error.value)
