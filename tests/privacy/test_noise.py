"""The noise has the distribution that it claims, and a seed fixes it only when asked."""

import numpy as np
import pytest
from scipy import stats

from fedexp.privacy.noise import SeededNoise, SystemNoise, noise_of

KINDS = [SystemNoise(), SeededNoise(0)]
LAWS = {"uniform": stats.uniform, "normal": stats.norm, "laplace": stats.laplace}


@pytest.mark.parametrize("noise", KINDS, ids=lambda noise: type(noise).__name__)
@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_their_law(noise, name):
    draws = getattr(noise, name)(20_001)
    # A true law fails this once in 1e6 runs.
    assert draws.shape == (20_001,)
    assert stats.kstest(draws, LAWS[name].cdf).pvalue > 1e-6
    assert abs(stats.pearsonr(draws[:10_000], draws[-10_000:]).statistic) < 0.06


def test_no_uniform_draw_of_the_system_is_an_end(monkeypatch):
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr("os.urandom", lambda size, byte=byte: byte * size)
        assert np.all((SystemNoise().uniform(2) > 0) & (SystemNoise().uniform(2) < 1))
        assert np.isfinite(SystemNoise().normal(3)).all()
        assert np.isfinite(SystemNoise().laplace(3)).all()


def test_only_a_seed_that_was_asked_for_fixes_the_noise_and_warns():
    assert isinstance(noise_of(None), SystemNoise)
    assert not np.array_equal(noise_of(None, 1).normal(4), noise_of(None, 1).normal(4))
    with pytest.warns(UserWarning, match="fixed by the seed 5"):
        one, same, other = noise_of(5, 1), noise_of(5, 1), noise_of(5, 2)
    draws = one.normal(4)
    np.testing.assert_array_equal(draws, same.normal(4))
    assert not np.array_equal(draws, other.normal(4))
