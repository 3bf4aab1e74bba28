import numpy as np
import pytest

from fedexp.datasets import Parts, by_key, heterogeneity, iid, label_counts, plot

LABELS = np.arange(1_000) % 5


def test_one_class_each_is_one_minus_one_over_the_number_of_classes():
    assert heterogeneity(LABELS, by_key(LABELS, seed=0)) == pytest.approx(1 - 1 / 5)


def test_clients_alike_have_no_heterogeneity():
    assert heterogeneity(LABELS, by_key(np.arange(1_000) // 5 % 4, seed=0)) == 0


def test_counts_are_those_of_each_client():
    parts = iid(LABELS, num_clients=7, seed=0)
    slow = [np.bincount(LABELS[part], minlength=5) for part in parts]
    assert np.array_equal(label_counts(LABELS, parts), slow)


@pytest.mark.parametrize("num_clients", [10, 100])
def test_the_picture_is_a_png(tmp_path, num_clients):
    parts: Parts = iid(LABELS, num_clients=num_clients, seed=0)
    plot(LABELS, parts, tmp_path / "parts.png")
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")
