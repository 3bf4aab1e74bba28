"""Costs agree with tables of dp-accounting and autodp, and with integrals that they stand for."""

import sys

import numpy as np
import pytest
from scipy import integrate, stats

from fedexp.privacy import accounting
from fedexp.privacy.accounting import (
    PrivacyFilter,
    PrivateStep,
    dominating_mean,
    epsilon_of,
    multiplier_of,
    planned_multiplier,
)

Q = 256 / 32561  # a batch of Adult
DELTA = 1e-5


@pytest.mark.parametrize(
    ("steps", "s", "b", "gradient", "both", "rdp"),
    [(500, 2, 10, 0.3323, 0.3853, 0.4100), (1000, 4, 20, 0.2094, 0.2381, 0.2554)],
)
def test_epsilons_of_the_table(steps, s, b, gradient, both, rdp):
    assert epsilon_of(PrivateStep(Q, s), steps, DELTA) == pytest.approx(gradient, abs=5e-4)
    step = PrivateStep(Q, s, search_epsilon=2 / b)
    assert epsilon_of(step, steps, DELTA) == pytest.approx(both, abs=5e-4)
    orders = (2, 4, 8, 16, 32, 64)  # those of the table
    best = min(PrivacyFilter(1.0, DELTA, a).epsilon_at(steps * step.rdp(a)) for a in orders)
    assert best == pytest.approx(rdp, abs=5e-4)
    assert epsilon_of(step, 0, DELTA) == 0


def test_divergences_of_the_table():
    step = PrivateStep(0.01, 2.0, search_epsilon=0.2)
    found = [step.rdp(a) for a in (2, 4, 8, 16, 32)]
    table = [3.35552e-5, 6.75999e-5, 1.3722e-4, 2.83073e-4, 6.06153e-4]
    np.testing.assert_allclose(found, table, rtol=2e-6)


def test_the_divergence_is_the_integral_over_a_gaussian_and_a_coin():
    q, s, e, a = 0.2, 0.8, 0.7, 3
    heads = np.exp(e) / (1 + np.exp(e))

    def moment(p, p_coin, r, r_coin):  # of the drawn pair, against the pair of the neighbour
        def at(x):
            gauss = stats.norm.pdf(x, 0, s), stats.norm.pdf(x, 1, s)
            without, with_ = gauss[0] * p_coin, gauss[1] * r_coin
            return ((1 - q) * without + q * with_) ** a / without ** (a - 1)

        return integrate.quad(at, -12, 14)[0]

    total = moment(0, 1 - heads, 1, heads) + moment(0, heads, 1, 1 - heads)
    assert PrivateStep(q, s, e).rdp(a) == pytest.approx(np.log(total) / (a - 1), rel=1e-8)


def test_without_a_search_the_divergence_is_that_of_dp_accounting():
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant([2, 7, 32])
    accountant.compose(PoissonSampledDpEvent(0.3, GaussianDpEvent(1.5)))
    found = [PrivateStep(0.3, 1.5).rdp(a) for a in (2, 7, 32)]
    np.testing.assert_allclose(found, accountant._rdp, rtol=1e-9)
    assert PrivateStep(1.0, 1.5).rdp(7) == pytest.approx(7 / (2 * 1.5**2))  # nothing is left out


def test_noise_multipliers_of_the_table():
    for epsilon, multiplier in {0.1: 7.731, 0.8: 1.378}.items():
        assert planned_multiplier(epsilon, DELTA, Q, 1000) == pytest.approx(multiplier, abs=2e-3)
    found = planned_multiplier(0.8, DELTA, Q, 1000)
    assert found == pytest.approx(1.378, abs=2e-3)
    assert epsilon_of(PrivateStep(Q, found), 1000, DELTA) <= 0.8
    # Where Renyi's bound is far from the distribution's there is a multiplier as well.
    few = PrivateStep(0.1, planned_multiplier(100.0, DELTA, 0.1, 9))
    assert epsilon_of(few, 9, DELTA, 0.02) <= 100
    assert 0 < planned_multiplier(1e6, DELTA, 0.1, 9) < 1


def test_the_noise_of_a_single_step_of_rare_examples_is_that_of_the_closed_form():
    # Renyi's bound, at which the search begins, asks for a quarter more noise.
    q, epsilon = 0.001, 10.0
    s = planned_multiplier(epsilon, DELTA, q, 1)
    x = 0.5 + s**2 * np.log((np.exp(epsilon) - 1 + q) / q)  # where the loss is epsilon
    with_, without = stats.norm.sf((x - 1) / s), stats.norm.sf(x / s)
    delta = (1 - q) * without + q * with_ - np.exp(epsilon) * without
    assert DELTA * 0.9 < delta <= DELTA


def test_a_search_is_as_one_gaussian_and_shares_divide_it():
    assert dominating_mean(0.2) == pytest.approx(0.25048391)
    step = PrivateStep.shared(Q, 3.0, 0.25)
    assert step.multiplier == pytest.approx(3)
    assert step.noise_multiplier == pytest.approx(3 / np.sqrt(0.75))
    assert PrivateStep.shared(Q, 3.0, 0.0) == PrivateStep(Q, 3.0, 0.0)


def test_a_filter_admits_as_many_equal_steps_as_were_planned_and_spends_its_epsilon():
    filter_, multiplier = PrivacyFilter.planned(0.8, DELTA, Q, 100, 0.2)
    cost = PrivateStep.shared(Q, multiplier, 0.2).rdp(filter_.order)
    spent = taken = 0
    while filter_.admits(spent, cost):
        spent, taken = spent + cost, taken + 1
    assert taken == 100
    assert 0.79 < filter_.epsilon_at(spent) <= 0.8
    assert filter_.epsilon_at(0.0) == 0
    # A budget that grows on the way stops it sooner, within the same epsilon.
    spent = taken = 0
    while filter_.admits(spent, cost):
        spent, taken = spent + cost, taken + 1
        cost = PrivateStep.shared(Q, multiplier * 0.97**taken, 0.2).rdp(filter_.order)
    assert taken < 60
    assert filter_.epsilon_at(spent) <= 0.8


def test_noise_of_a_cost_has_that_cost_at_the_order_and_is_not_below_it():
    # The closed form, where every example is drawn: a / 2 s^2, if nothing goes to the search.
    assert multiplier_of(0.07, 7, 1.0, 0.0) == pytest.approx(np.sqrt(7 / 0.14), rel=1e-7)
    for epsilon in (0.1, 0.8):
        filter_, multiplier = PrivacyFilter.planned(epsilon, DELTA, Q, 300, 0.2)
        order = filter_.order
        first = PrivateStep.shared(Q, multiplier, 0.2).rdp(order)
        assert multiplier_of(first, order, Q, 0.2) == pytest.approx(multiplier, rel=1e-7)
        for times in (0.25, 1.02, 4.0):
            step = PrivateStep.shared(Q, multiplier_of(times * first, order, Q, 0.2), 0.2)
            assert 0.99999 * times * first < step.rdp(order) <= times * first
        # Twice the inverse square of the noise costs far more than twice as much.
        step = PrivateStep.shared(Q, multiplier / np.sqrt(2), 0.2)
        assert step.rdp(order) > 100 * first


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="sampling_rate=0"):
        PrivateStep(0, 1.0)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        planned_multiplier(0.0, DELTA, Q, 10)
    with pytest.raises(ValueError, match="too little for any"):
        PrivacyFilter.planned(1e-3, DELTA, Q, 10, 0.2)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ModuleNotFoundError, match=r"fedexp\[dp\]"):
        accounting._dp_accounting()
