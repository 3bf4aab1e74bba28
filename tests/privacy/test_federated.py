"""What private rounds cost: against the Gaussian's closed form, and known numbers."""

import math
import sys

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedexp.privacy import client_epsilon, combined_multiplier, multiplier_for


def closed_epsilon(z, delta):
    """The Gaussian's own, Balle & Wang 2018, arXiv:1805.06530, theorem 8."""
    mu = 1 / z

    def excess(epsilon):
        return (
            norm.cdf(mu / 2 - epsilon / mu)
            - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
            - delta
        )

    return brentq(excess, 0, 50)


@pytest.mark.parametrize("num_rounds", [1, 30])
def test_without_sampling_epsilon_is_that_of_one_gaussian(num_rounds):
    # t sums with noise z are as one with z/√t.
    ours = client_epsilon(4.0, 1.0, num_rounds, 1e-5)
    exact = closed_epsilon(4.0 / math.sqrt(num_rounds), 1e-5)
    assert exact - 1e-4 <= ours <= exact + 2e-3


def test_squared_norms_beside_the_updates_cost_little():
    z = combined_multiplier(2.0, 10.0)
    assert z == pytest.approx(1.9611614)
    assert client_epsilon(2.0, 0.1, 100, 1e-5) == pytest.approx(2.3374, abs=5e-4)
    assert client_epsilon(z, 0.1, 100, 1e-5) == pytest.approx(2.4008, abs=5e-4)


def test_a_sum_that_is_not_released_costs_nothing():
    assert combined_multiplier(2.0, math.inf) == 2.0
    assert client_epsilon(2.0, 0.1, 0, 1e-5) == 0.0


def test_the_multiplier_for_an_epsilon_is_the_least_that_keeps_it():
    z = multiplier_for(0.5, 0.1, 20, 1e-5)
    assert client_epsilon(z, 0.1, 20, 1e-5) <= 0.5 < client_epsilon(z * 0.998, 0.1, 20, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.1, 0.1, 5, 1e-5), r"noise_multiplier=0.1\): must be at least 0.3"),
        ((1.0, 0.0, 5, 1e-5), r"sampling_rate=0.0\): must be in"),
        ((1.0, 0.1, 5, 1.0), r"delta=1.0\): must be in"),
    ],
)
def test_what_cannot_be_accounted_is_said(arguments, words):
    with pytest.raises(ValueError, match=words):
        client_epsilon(*arguments)


def test_without_the_accountant_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fedexp\[dp\]'"):
        client_epsilon(5.5, 0.1, 3, 1e-5)
