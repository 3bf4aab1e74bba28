"""The digits are read and split here as scikit-learn, which is not imported for it, would do."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedexp.datasets import load
from fedexp.datasets.digits import digits, split_as_scikit_learn

pytestmark = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="scikit-learn is not installed"
)


def test_the_digits_are_read_without_importing_scikit_learn(monkeypatch):
    for name in ("datasets", "model_selection", "utils"):
        monkeypatch.setitem(sys.modules, f"sklearn.{name}", None)  # which fails to import
    assert len(digits().train[1]) == 1437


def test_they_are_the_examples_of_scikit_learn_split_as_it_splits_them():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    data = load("digits")
    own = [data.train[0].flatten(1), data.test[0].flatten(1), data.train[1], data.test[1]]
    for x, theirs in zip(own, split, strict=True):
        np.testing.assert_array_equal(x.numpy(), theirs)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.floats(0.2, 0.8))
def test_any_stratified_split_is_that_of_scikit_learn(sizes, fraction):
    """Classes of one size tie for the rows that are left over."""
    from sklearn.model_selection import train_test_split

    labels = np.random.default_rng(0).permutation(np.repeat(range(len(sizes)), sizes))
    num_test = round(fraction * len(labels))
    assume(len(sizes) <= num_test <= len(labels) - len(sizes))
    expected = train_test_split(
        np.arange(len(labels)), test_size=num_test, stratify=labels, random_state=0
    )
    for own, theirs in zip(split_as_scikit_learn(labels, num_test), expected, strict=True):
        np.testing.assert_array_equal(own, theirs)
