"""Mechanisms and the private line search: laws, sensitivity, and the limit without noise."""

import numpy as np
import pytest

from fedexp.privacy.line_search import ArmijoSearch
from fedexp.privacy.mechanisms import clipped, first_above, noisy_sum
from fedexp.privacy.noise import SeededNoise

NOISE = SeededNoise(3)


def test_clipped_rows_keep_their_direction_and_a_broken_one_counts_for_nothing():
    rows = np.array([[30.0, 40.0], [0.3, 0.4], [1e300, 0.0], [np.nan, 1.0], [0.0, 0.0]])
    expected = [[1.2, 1.6], [0.3, 0.4], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(clipped(rows, 2.0), expected)


def test_one_example_more_moves_a_sum_by_at_most_the_norm_and_an_answer_by_at_most_one():
    rng = np.random.default_rng(0)
    search = ArmijoSearch(first=2.0, max_tries=3)
    for _ in range(300):
        n, scale = rng.integers(1, 6), 10 ** rng.uniform(-3, 3)
        rows = scale * rng.standard_cauchy((n, 4))
        norm = 10 ** rng.uniform(-2, 2)
        moved = clipped(rows, norm).sum(0) - clipped(rows[1:], norm).sum(0)
        assert np.linalg.norm(moved) <= norm * (1 + 1e-9)
        changes = scale * rng.standard_cauchy((3, n))
        changes[0, 0] = rng.choice([np.nan, np.inf, -np.inf, 1.0])
        of = dict(zip(search.steps(), changes, strict=True))
        both = [
            np.array([*search.answers(lambda eta, k=k, of=of: of[eta][k:], 2.0, 5.0, norm)])
            for k in (0, 1)
        ]
        assert np.abs(both[0] - both[1]).max() <= 1 + 1e-9


def test_the_noise_of_a_sum_has_its_variance():
    draws = noisy_sum(np.full(40_000, 7.0), 2.0, 1.5, NOISE)
    assert draws.mean() == pytest.approx(7, abs=0.1)
    assert draws.std() == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(
    ("answer", "probability"), [(0.0, 0.5), (5.0, 0.6570), (20.0, 0.9128), (60.0, 0.9983)]
)
def test_an_answer_is_accepted_by_the_law_of_two_laplace_variables(answer, probability):
    runs = 4000
    share = np.mean([first_above([answer], 5.0, NOISE) == 0 for _ in range(runs)])
    law = 1 - (4 * np.exp(-answer / 10) - np.exp(-answer / 5)) / 6
    assert law == pytest.approx(probability, abs=6e-5)
    assert share == pytest.approx(law, abs=5 * (law * (1 - law) / runs) ** 0.5 + 1e-3)


def test_nothing_is_asked_after_the_first_success_and_the_threshold_is_drawn_once():
    class Counted(SeededNoise):
        draws = 0

        def laplace(self, size):
            self.draws += size
            return 0 * super().laplace(size)

    noise, asked = Counted(0), []

    def answers():
        for x in (-1.0, -1.0, 1.0, 1.0):
            asked.append(x)
            yield x

    assert first_above(answers(), 1.0, noise) == 2
    assert len(asked) == 3
    assert noise.draws == 1 + 3
    assert first_above([-1.0], 0.0, noise) is None


def test_without_noise_it_is_armijo_backtracking():
    rng = np.random.default_rng(1)
    search = ArmijoSearch(first=4.0, shrink=0.6, decrease=0.3, max_tries=30)
    for _ in range(50):
        a, y, w = rng.normal(size=(20, 3)), rng.normal(size=20), rng.normal(size=3)

        def losses(w, a=a, y=y):
            return np.log1p(np.exp(-y * (a @ w)))

        g = (-y / (1 + np.exp(y * (a @ w)))) @ a / 20
        eta = 4.0
        while losses(w).mean() - losses(w - eta * g).mean() < 0.3 * eta * (g @ g):
            eta *= 0.6
        found = search(
            lambda eta, w=w, g=g, losses=losses: losses(w) - losses(w - eta * g),
            g @ g, 20, 1e6, 0.0, NOISE,
        )  # fmt: skip
        assert found == pytest.approx(eta)


@pytest.mark.parametrize(("c", "curvature"), [(0.1, 1.0), (0.5, 0.3), (0.25, 7.0)])
def test_on_a_quadratic_steps_up_to_twice_one_minus_c_over_the_curvature_pass(c, curvature):
    limit = 2 * (1 - c) / curvature
    for factor, passes in ((0.999, True), (1.001, False)):
        search = ArmijoSearch(first=factor * limit, decrease=c, max_tries=2)
        w, g = 1.3, 1.3 * curvature

        def differences(eta, w=w, g=g):
            return curvature / 2 * (np.array([w]) ** 2 - (w - eta * g) ** 2)

        found = search(differences, g * g, 1, 1e9, 0.0, NOISE)
        assert (found == search.first) is passes


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="shrink=1"):
        ArmijoSearch(shrink=1.0)
